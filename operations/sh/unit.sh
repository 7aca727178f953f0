#!/bin/sh
# A unit as systemd sees it, a property a line, and what else its state depends on.
#
# about UNIT PATIENCE READY PATH...: waits up to PATIENCE times 0.2 s while it starts. "Written=TIME PATH" says when each of the
# paths, and each file of its own definition, was last written or renamed into place; those that do not exist are left out.
# "Ready=yes" says that the shell command READY succeeds.
about() {
  unit=$1 patience=$2 ready=$3
  shift 3
  while shown=$(systemctl show "$unit" --timestamp=us+utc -p LoadState -p ActiveState -p UnitFileState -p NeedDaemonReload \
    -p FragmentPath -p DropInPaths -p ExecMainStartTimestamp -p ActiveEnterTimestamp -p StateChangeTimestamp); do
    case $shown in *ActiveState=activating*) [ "$patience" -gt 0 ] || break ;; *) break ;; esac
    patience=$((patience - 1))
    sleep 0.2
  done
  printf '%s\n' "$shown"
  # shellcheck disable=SC2046 # they are several words
  stat -c 'Written=%.9Z %n' -- "$@" $(printf '%s\n' "$shown" | sed -nE 's/^(FragmentPath|DropInPaths)=//p') 2>/dev/null
  # Asked only of a running unit: a probe of a stopped one may be slow to fail.
  case $shown in
    *ActiveState=active* | *ActiveState=reloading*) sh -c "$ready" >/dev/null 2>&1 && echo Ready=yes ;;
  esac
  true
}
