#!/bin/bash
# One run at a time: whoever changes this machine holds a lock, in a directory that only root can enter.
#
# hold WHO LAST: takes the lock, prints "held", and keeps it until standard input ends or has no line for 30 s: the connection is
# gone, or the computer at its other end. LAST: when the last run before began, as that computer knows; "" for none. Otherwise
# prints "busy" and who holds it, or "later" and who has changed the machine since.
hold() {
  umask 077
  install -d -m 700 /run/matrix-metal && cd /run/matrix-metal && exec 9>>run || return
  if ! flock -w 2 9; then
    echo "busy $(cat run)"
  elif last=$(stat -c %.9Y run) && [ -s run ] && [ "$last" != "$2" ]; then
    echo "later $(cat run)"
  else
    echo "$1, since $(date -u '+%Y-%m-%d %H:%M:%S UTC')" >run
    echo held
    while read -r -t 30 line; do
      # The end of a run that did not fail: what was deployed, as JSON. The time is that of the file.
      case $line in '{'*) install -d -m 755 /var/lib/matrix-metal && printf '%s\n' "$line" >/var/lib/matrix-metal/last_deploy.json ;; esac
    done
  fi
}
