#!/bin/sh
# A unit as systemd sees it, a property a line, and what else its state depends on.
#
# show UNIT...: what systemd says of units, an empty line between two.
# about UNIT PATIENCE READY OWN CHECK PATH...: waits up to PATIENCE times 0.2 s while it starts. "Written=TIME PATH" says when each of the
# paths, and each file of its own definition, was last written or renamed into place; those that do not exist are left out.
# "Ready=yes" says that the shell command READY succeeds. "Changed=PATH" names what was changed after the unit was started in the
# paths OWN (words of shell), and "Refused=WHY" says that then the shell command CHECK failed; the last line that it printed.
# $units: what `show` has said already, if anything: to start systemctl takes longer than to answer.
# property NAME: sets $value to that of $shown. (A function that prints it would take a process.)
newline='
'
show() {
  systemctl show --timestamp=us+utc -p Id -p LoadState -p ActiveState -p UnitFileState -p NeedDaemonReload -p FragmentPath -p DropInPaths \
    -p ExecMainStartTimestamp -p ActiveEnterTimestamp -p StateChangeTimestamp -- "$@"
}
property() {
  value=$newline$shown
  case $value in *"$newline$1="*) value=${value##*"$newline$1="} ;; *) value= ;; esac
  value=${value%%"$newline"*}
}
about() {
  unit=$1 patience=$2 ready=$3 own=$4 check=$5
  shift 5
  shown=
  case ${units:-} in
    *"Id=$unit$newline"*)
      shown=${units%%"Id=$unit$newline"*}
      after=${units#"$shown"}
      shown=${shown##*"$newline$newline"}${after%%"$newline$newline"*}
      ;;
  esac
  while
    [ "$shown" ] || shown=$(show "$unit")
    case $shown in *ActiveState=activating*) [ "$patience" -gt 0 ] ;; *) false ;; esac
  do
    patience=$((patience - 1)) shown=
    sleep 0.2
  done
  printf '%s\n' "$shown"
  property FragmentPath
  definition=$value
  property DropInPaths
  # shellcheck disable=SC2086 # they are several words
  stat -c 'Written=%.9Z %n' -- "$@" $definition $value 2>/dev/null
  # Asked only of a running unit: a probe of a stopped one may be slow to fail.
  case $shown in
    *ActiveState=active* | *ActiveState=reloading*)
      (eval "$ready") >/dev/null 2>&1 && echo Ready=yes
      [ -z "$own" ] || changed
      ;;
  esac
  true
}
changed() {
  property ExecMainStartTimestamp
  since=${value#* }
  # shellcheck disable=SC2086 # they are several words
  newer=$(find $own -newerct "$since" 2>/dev/null)
  if [ -n "$since" ] && [ -n "$newer" ]; then
    printf '%s\n' "$newer" | sed 's/^/Changed=/'
    why=$(sh -c "$check" 2>&1 >/dev/null) || printf '%s\n' "$why" | sed '/^[[:space:]]*$/d' | tail -n 1 | sed 's/^[[:space:]]*/Refused=/'
  fi
}
