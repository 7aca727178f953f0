#!/bin/sh
# A unit as systemd sees it, a property a line, and what else its state depends on.
#
# show UNIT...: what systemd says of units, an empty line between two.
# about UNIT PATIENCE READY OWN CHECK PATH...: waits up to PATIENCE times 0.2 s while it starts. "Written=TIME PATH" says when each of the
# paths, and each file of its own definition, was last written or renamed into place; those that do not exist are left out.
# "Ready=yes" says that the shell command READY succeeds. "Changed=PATH" names what was changed after the unit was started in the
# paths OWN (words of shell), and "Refused=WHY" says that then the shell command CHECK failed; the last line that it printed.
# show_all UNIT...: asks once for all of them, which `about` needs not do then: to start systemctl takes longer than to answer.
# stat_all PATH...: the same for when the paths, and the definitions of these units, were written.
# property NAME: sets $value to that of $shown. (A function that prints it would take a process.)
newline='
'
show() {
  systemctl show --timestamp=us+utc -p Id -p LoadState -p ActiveState -p UnitFileState -p NeedDaemonReload -p FragmentPath -p DropInPaths \
    -p ExecMainStartTimestamp -p ActiveEnterTimestamp -p StateChangeTimestamp -- "$@"
}
# Line by line: to look for a part of all that it prints takes the shell more time than everything else that is asked.
show_all() {
  # shellcheck disable=SC2034 # by its number, below
  count=1 definitions='' shown_1=''
  IFS=$newline
  set -f
  for line in $(show "$@" 2>/dev/null | sed 's/^$/./'); do
    case $line in
      .) count=$((count + 1)) && eval "shown_$count=" ;;
      *) eval "shown_$count=\$shown_$count\$line\$newline" ;;
    esac
    case $line in FragmentPath=* | DropInPaths=*) definitions="$definitions ${line#*=}" ;; esac
  done
  unset IFS
  set +f
}
stat_all() {
  # shellcheck disable=SC2086 # they are several words
  written=$(stat -c '%.9Z %n' -- "$@" $definitions 2>/dev/null)
}
property() {
  value=$newline$shown
  case $value in *"$newline$1="*) value=${value##*"$newline$1="} ;; *) value= ;; esac
  value=${value%%"$newline"*}
}
about() {
  unit=$1 patience=$2 ready=$3 own=$4 check=$5
  shift 5
  number=${count:-0} shown=
  while [ "$number" -gt 0 ] && [ ! "$shown" ]; do
    eval "shown=\$shown_$number"
    case $newline$shown in *"${newline}Id=$unit$newline"*) ;; *) shown= ;; esac
    number=$((number - 1))
  done
  shown=${shown%"$newline"}
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
  set -- "$@" $definition $value
  if [ "${written+known}" ]; then
    IFS=$newline
    set -f
    mine=$newline$*$newline
    for line in $written; do
      case $mine in *"$newline${line#* }$newline"*) printf 'Written=%s\n' "$line" ;; esac
    done
    unset IFS
    set +f
  else
    stat -c 'Written=%.9Z %n' -- "$@" 2>/dev/null
  fi
  # Asked only of a running unit: a probe of a stopped one may be slow to fail.
  case $shown in
    *ActiveState=active* | *ActiveState=reloading*)
      (eval "$ready") >/dev/null 2>&1 && echo Ready=yes
      [ -z "$own" ] || changed
      ;;
  esac
  true
}
# Not our own, which the administrator has not changed.
changed() {
  property ExecMainStartTimestamp
  since=${value#* }
  # shellcheck disable=SC2086 # they are several words
  newer=$(find $own ! -name 'matrix-metal.*' -newerct "$since" 2>/dev/null)
  if [ -n "$since" ] && [ -n "$newer" ]; then
    printf '%s\n' "$newer" | sed 's/^/Changed=/'
    why=$(sh -c "$check" 2>&1 >/dev/null) || printf '%s\n' "$why" | sed '/^[[:space:]]*$/d' | tail -n 1 | sed 's/^[[:space:]]*/Refused=/'
  fi
}
