#!/bin/sh
# apt ERRORS ARGUMENT...: runs apt-get, and again for as long as another package manager holds any lock: apt itself waits for
# dpkg's lock only, not for that of the package lists. ERRORS: the file for its error messages.
apt() {
  errors=$1
  shift
  end=$(( $(date +%s) + 300 ))
  until apt-get "$@" 2>"$errors"; do
    other=$(sed -n 's/.*Could not get lock \([^ ]*\)\. It is held by process \(.*\)$/process \2, which holds \1/p' "$errors")
    if [ -z "$other" ] || [ "$(date +%s)" -ge "$end" ]; then
      [ -z "$other" ] || echo "another package manager has been at work for five minutes: $other" >&2
      return 1
    fi
    echo "waiting for $other"
    sleep 1
  done
}
# Why packages cannot be fetched: the first error that names an address.
fetch_error() { sed -nE 's/^(E|W|Error|Warning): Failed to fetch ([^ ]+) +(.*)$/\2: \3/p' "$1" | head -n 1; }
