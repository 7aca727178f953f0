#!/bin/sh
# apt COMPLAINTS ARGUMENT...: runs apt-get, again and again while another package manager is at work, whatever it has locked: apt
# itself waits for dpkg only, not for the lists that another one fetches. COMPLAINTS: the file for what it complains of.
apt() {
  complaints=$1
  shift
  end=$(( $(date +%s) + 300 ))
  until apt-get "$@" 2>"$complaints"; do
    other=$(sed -n 's/.*Could not get lock \([^ ]*\)\. It is held by process \(.*\)$/process \2, which holds \1/p' "$complaints")
    if [ -z "$other" ] || [ "$(date +%s)" -ge "$end" ]; then
      [ -z "$other" ] || echo "another package manager has been at work for five minutes: $other" >&2
      return 1
    fi
    echo "waiting for $other"
    sleep 1
  done
}
# Why packages cannot be fetched: the first complaint that names an address.
mirror() { sed -nE 's/^(E|W|Error|Warning): Failed to fetch ([^ ]+) +(.*)$/\2: \3/p' "$1" | head -n 1; }
