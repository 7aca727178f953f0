#!/bin/sh
# Service users that somebody removed, or that have other IDs than their files.
#
# restore NAME TITLE HOME SHELL GROUP UNIT PATH...: the user NAME and its group exist, with the IDs of the files if those are free;
# otherwise the files get the new ones. GROUP: another group that it is to be in, or "". UNIT runs as the user: it is stopped while
# files change their owner. PATH: files and directories that belong to the user or the group; the first that exists says the IDs.
# Without one, a process of the unit says the ID of the user.
restore() {
  name=$1 title=$2 home=$3 shell=$4 also=$5 unit=$6 gid_of_process=
  shift 6
  uid=0 gid=0
  for path; do
    [ -e "$path" ] || continue
    [ "$uid" != 0 ] || uid=$(stat -L -c %u "$path")
    [ "$gid" != 0 ] || gid=$(stat -L -c %g "$path")
  done
  [ "$uid" != 0 ] || uid=$(ids_of "$unit" Uid | cut -d ' ' -f 1 | grep . || echo 0)
  if ! getent group "$name" >/dev/null; then
    # A group that is removed stays the first group of its user.
    gid_wanted=$(getent passwd "$name" | cut -d: -f4)
    [ "$gid" != 0 ] || gid_of_process=$(nameless_of "$unit" | head -n 1)
    new_group "${gid_wanted:-${gid_of_process:-$gid}}"
  fi
  if ! getent passwd "$name" >/dev/null; then
    id=; { [ "$uid" = 0 ] || getent passwd "$uid" >/dev/null; } || id="--uid $uid"
    # shellcheck disable=SC2086 # an option and its value, or nothing
    useradd --system $id --gid "$name" --home-dir "$home" --no-create-home --shell "$shell" --comment "$title" "$name"
  fi
  { [ "$also" ] && getent group "$also" >/dev/null && usermod --append --groups "$also" "$name"; } || true
  [ "$(id -g "$name")" = "$(getent group "$name" | cut -d: -f3)" ] || usermod --gid "$name" "$name"
  { [ "$uid" = 0 ] || [ "$uid" = "$(id -u "$name")" ]; } && { [ "$gid" = 0 ] || [ "$gid" = "$(id -g "$name")" ]; } && return
  systemctl stop "$unit" 2>/dev/null || true
  for path; do
    [ -e "$path" ] || continue
    # What is in a directory first: if this is interrupted, the directory still says what has to be changed.
    [ "$gid" = 0 ] || find "$path/" -depth -gid "$gid" -execdir chgrp -h "$name" {} +
    [ "$uid" = 0 ] || find "$path/" -depth -uid "$uid" -execdir chown -h "$name" {} +
  done
}
# restore_group NAME UNIT...: the group NAME exists, with the ID that has no name any more in the processes of the units: that which
# most of them have. If none runs with one, they are stopped, to be started with the new ID.
restore_group() {
  name=$1
  shift
  gid=$(for unit; do nameless_of "$unit"; done | sort | uniq -c | sort -n | awk 'END { print $2 + 0 }')
  new_group "$gid"
  [ "$gid" != 0 ] || systemctl stop "$@" 2>/dev/null || true
}
# nameless_of UNIT: the IDs of groups in its main process that have no name, a line each.
nameless_of() {
  ids_of "$1" 'Gid|Groups' | tr ' ' '\n' | sort -u | while read -r id; do
    [ -z "$id" ] || getent group "$id" >/dev/null || echo "$id"
  done
}
# ids_of UNIT FIELD: the IDs of its main process, if it runs.
ids_of() {
  pid=$(systemctl show -p MainPID --value "$1")
  sed -nE "s/^($2):[[:space:]]*//p" "/proc/$pid/status" 2>/dev/null | xargs
}
new_group() {
  if [ "$1" != 0 ] && ! getent group "$1" >/dev/null; then
    groupadd --system --gid "$1" "$name"
  else
    groupadd --system "$name"
  fi
}
