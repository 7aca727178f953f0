#!/bin/sh
# read_definitions [UNIT]: has systemd read its units again, which takes a fifth of a second and more on a machine with many. Left
# out if all files are as they were when this was done last, and systemd does not remember that the unit, which is enabled, was not.
# By names and times in a listing, not by the clock, which may have been set. To enable a unit changes only links, which do not
# count: the unit is started by who enables it.
# shellcheck disable=SC2120 # operations give it the unit
read_definitions() {
  there=$(find /etc/systemd/system /run/systemd/system /usr/lib/systemd/system \( -name '*.wants' -o -name '*.requires' \) -prune \
    -o ! -type d -printf '%p %C@ %l\n') || there=
  if [ -n "$there" ] && [ "$there" = "$(cat /run/matrix-metal/definitions 2>/dev/null)" ] \
    && { [ $# = 0 ] || [ "$(systemctl show -P UnitFileState "$1")" != disabled ]; }; then
    return
  fi
  systemctl daemon-reload
  # As it was before.
  { printf '%s\n' "$there" >/run/matrix-metal/definitions; } 2>/dev/null || true
}
# forget_definitions: read_definitions does not leave it out.
forget_definitions() {
  rm -f /run/matrix-metal/definitions
}
# read_changed UNIT...: the same, if systemd knows one of the units otherwise than it is defined now. If the first is being started
# by now, by an interrupted run, that is waited for: Synapse cannot recover from being killed while it creates its tables.
read_changed() {
  known=$(systemctl show -p ActiveState -p NeedDaemonReload -p UnitFileState -- "$@")
  case $known in *=activating*) systemctl start "$1" 2>/dev/null || true ;; esac
  # shellcheck disable=SC2119
  case $known in *=yes* | *=disabled*) read_definitions ;; esac
}
