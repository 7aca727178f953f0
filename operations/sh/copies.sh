#!/bin/sh
# Copies of data that stay on the machine, readable by root only. $copies: their directory. Needs databases.sh.

# keep_copy NAME BYTES COMMAND...: keeps what the command prints, as a file that is complete or not there. BYTES: about how many.
keep_copy() (
  name=$1 needed=$2
  shift 2
  install -d -m 700 "$copies"
  if [ "$(df -B1 --output=avail "$copies" | tail -n 1)" -lt "$needed" ]; then
    echo "$copies has no space for $name ($needed bytes): nothing was changed" >&2
    exit 1
  fi
  umask 077
  new=$(mktemp "$copies/.arriving-XXXXXXXXXX")
  trap 'rm -f -- "$new"' EXIT
  trap 'exit 1' HUP INT PIPE TERM
  "$@" >"$new"
  sync "$new"
  mv -fT "$new" "$copies/$name"
)

# dump DATABASE NAME: for pg_restore.
dump() {
  size=$(as_superuser psql -XAtqc "SELECT pg_database_size('$1')")
  keep_copy "$2" "$size" as_superuser pg_dump -Fc "$1"
}

# pack NAME PATH...: directories as a .tar, also what a link leads to. PATH: from the root directory, in which this runs.
pack() {
  name=$1
  shift
  size=$(du -sLB1 "$@" | awk '{ n += $1 } END { print n }')
  keep_copy "$name" "$size" tar -ch "$@"
}
