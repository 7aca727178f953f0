#!/bin/bash
# One run at a time: whoever changes this machine holds a lock, in a directory that only root can enter.
#
# updating: whether security updates are being installed, or what they have replaced is being restarted: an activating job is at work.
# Their jobs begin, and wait until the lock is free, and do not hold it. So whoever has taken it asks: they have begun before, or wait.
updating() { systemctl is-active apt-daily-upgrade.service matrix-metal-updates.service 2>/dev/null | grep -qx activating; }

# take_lock WHAT: a job on this machine takes the lock, and keeps it until it ends. If it cannot, $refused says why.
take_lock() {
  install -d -m 700 /run/matrix-metal
  exec 9>>/run/matrix-metal/run
  if ! flock -n 9; then
    refused="another run is at work: $(cat /run/matrix-metal/run)"
  elif updating; then
    # shellcheck disable=SC2034 # the caller says it
    refused='security updates are being installed (apt-daily-upgrade.service): run this again when they are installed'
  else
    echo "$1, since $(date -u '+%Y-%m-%d %H:%M:%S UTC')" >/run/matrix-metal/run
    return
  fi
  return 1
}

# hold WHO LAST: takes the lock, prints "locked", and keeps it until standard input ends or has no line for 30 s: the connection is
# gone, or the computer at its other end. LAST: when the last run before began, as that computer knows; "" for none. Otherwise
# prints "busy" and who holds it, "later" and who has changed the machine since, or "updating".
hold() {
  umask 077
  install -d -m 700 /run/matrix-metal && cd /run/matrix-metal && exec 9>>run || return
  if ! flock -w 2 9; then
    echo "busy $(cat run)"
  elif last=$(stat -c %.9Y run) && [ -s run ] && [ "$last" != "$2" ]; then
    echo "later $(cat run)"
  elif updating; then
    echo updating
  else
    echo "$1, since $(date -u '+%Y-%m-%d %H:%M:%S UTC')" >run
    echo locked
    while read -r -t 30 line; do
      # The end of a run that did not fail: what was deployed, as JSON. The time is that of the file.
      case $line in '{'*) install -d -m 755 /var/lib/matrix-metal && printf '%s\n' "$line" >/var/lib/matrix-metal/last_deploy.json ;; esac
    done
  fi
}
