#!/bin/sh
# A program below /opt is switched to another version, and back to the one before if the other does not come up.
#
# $home: its directory below /opt. $title, $unit: what it is called, and what runs it. $wanted: the version that is wanted.
# $distribution: what it is called among Python's distributions, or "". $one_way: the version to which there need be no way back.
# $kept: until the version in use has come up, the directory with what is needed for the way back, which only root can enter.
# $kept.failed: a line about the last version that did not come up: its directory, the time, why.
# compatible FROM TO: see operations/programs.py.

# tell TEXT: the sentence with which the run ends.
tell() { echo "--> $*" >&2; }

# version_of DIRECTORY: what people call the version in a directory.
version_of() {
  set -- "$1" "$home/$1"/lib/python3*/site-packages/"$distribution"-*.dist-info
  if [ "$distribution" ] && [ -d "$2" ]; then
    set -- "${2##*/"$distribution"-}"
    echo "${1%.dist-info}"
  else
    echo "${1%-*}"
  fi
}

# before FROM TO: what the sentence about a version that does not come up calls the one before: it may be another file of the same.
before() {
  if [ "$(version_of "$1")" = "$(version_of "$2")" ]; then echo "The $(version_of "$1") of before"; else version_of "$1"; fi
}

# may_switch TO: fails, with a sentence, if that directory's version cannot run with the data, or if there is no way back from it.
may_switch() {
  from=$(cat "$kept/from" 2>/dev/null || readlink "$home/current") && [ "$from" != "$1" ] || return 0
  case $(compatible "$from" "$1") in
    impossible)
      tell "$title $wanted cannot run with the data any more, which a newer version has changed, so $title was not touched:" \
        "stay with $(version_of "$from"), or restore a backup from before the upgrade"
      return 1
      ;;
    one-way)
      [ "$wanted" != "$one_way" ] || return 0
      tell "from $title $wanted there is no way back: it changes the data so that $(version_of "$from"), which runs, could not run" \
        "with them any more. $title was not touched. To upgrade nevertheless, with a backup at hand: --data one_way=$wanted"
      return 1
      ;;
  esac
}

# keep PATH...: keeps which version is in use, and the files that it runs with, before either is replaced. If it does not run there
# is nothing to go back to. What an interrupted run has kept stays: its version has not come up yet.
keep() {
  if [ -e "$kept/from" ] || [ ! -L "$home/current" ] || ! systemctl is-active --quiet "$unit"; then return 0; fi
  (
    install -d -m 755 /var/lib/matrix-metal
    umask 077
    rm -rf "$kept.new"
    mkdir -p "$kept.new"
    printf '%s\n' "$@" >"$kept.new/paths"
    for path; do
      shift
      [ ! -e "$path" ] || set -- "$@" "$path"
    done
    tar -cPf "$kept.new/files" "$@"
    readlink "$home/current" >"$kept.new/from"
    sync -f "$kept.new"
    rm -rf "$kept"
    mv -T "$kept.new" "$kept"
  )
}

# The version in use has come up.
drop() { rm -rf "$kept" "$kept.failed"; }

put_back() {
  while read -r path; do rm -f "$path"; done <"$kept/paths"
  tar -xpPf "$kept/files"
  ln -sfn "$from" "$home/current.new"
  mv -fT "$home/current.new" "$home/current"
  systemctl daemon-reload
}

# try_new: runs the program that it reads, which calls `trial`, in a unit of its own.
try_new() {
  (umask 077 && cat >"$kept/trial" && : >"$kept.log")
  status=0
  systemd-run --quiet --collect --wait --unit="matrix-metal-upgrade-${home##*/}" -p StandardOutput="append:$kept.log" \
    -p StandardError=inherit sh "$kept/trial" || status=$?
  # The connection may be cut by now.
  cat "$kept.log" >&2 || true
  rm -f "$kept.log"
  return $status
}

invocation() { systemctl show "$unit" -p InvocationID --value; }

# Why it did not come up: the last line about an error that it has written since it was started, or that it did not answer in time,
# or its last line, or what systemd says about its end.
why() {
  late=$(sed -n "s/^$unit failed to \(answer within [0-9]* s\); the end of its log:\$/it did not \1/p" "$kept/output" | tail -n 1)
  found=$(journalctl -q --no-pager -o cat -u "$unit" --since "@$began" -n 1000 | awk -v unit="$unit: " -v late="$late" '
    /^Starting / { started = 1; next }
    !started || /^(Started|Stopping|Stopped|Failed to start|Scheduled) / || !/[[:alpha:]]/ { next }
    index($0, unit) == 1 { if (!ended && /exited|failed|Failed/) ended = $0; next }
    { last = $0 }
    /[Ee]rror|[Ee]xception|[Cc]annot|[Ff]ailed|[Pp]anic|[Ff]atal|FATAL/ { error = $0 }
    END { print error ? error : late ? late : last ? last : ended }')
  # The check of its configuration has failed.
  [ "$found" ] || found=$(grep -vE '^[[:space:]]*$|was not touched:|the end of its log:$' "$kept/output" | tail -n 1)
  printf %s "$found" | tr -d '\000-\037' | sed 's/^ *//; s/[. ]*$//' | cut -c -300
}

# in_shell COMMAND: runs it so that it ends at the first step that fails, which `if` and `||` would prevent.
in_shell() {
  (
    set -e
    "$1"
  ) >"$kept/output" 2>&1 &
  status=0
  wait $! || status=$?
  cat "$kept/output"
  return $status
}

# trial: starts the new version with `attempt`. If that fails, goes back, and starts the version before with `resume`.
trial() {
  from=$(cat "$kept/from") began=$(date +%s) earlier=$(invocation)
  to=$(readlink "$home/current")
  # Clients wait meanwhile: it is no failure of the unit's yet, which would have its sockets taken away.
  flag=/run/matrix-metal-trial.$unit
  mkdir -p "$flag"
  trap 'rmdir "$flag"' EXIT
  if in_shell attempt; then
    drop
    return
  fi
  failed=$(date +%s) old=$(before "$from" "$to") new=$(version_of "$to") serves="serves"
  cause=$(why)
  problem="$title $new did not come up: $cause"
  if [ "$(compatible "$to" "$from")" = impossible ]; then
    drop
    tell "$problem. $old cannot run with the data any more, so there is no way back: repair the cause, or restore a backup"
    return 1
  fi
  put_back
  # It still runs if the new version was not even started.
  if [ "$(invocation)" != "$earlier" ]; then
    began=$(date +%s)
    if ! in_shell resume; then
      rm -rf "$kept"
      tell "$problem. $old was put back, and does not come up either: $(why). Repair the cause, then deploy again"
      return 1
    fi
    serves="serves again, $(($(date +%s) - failed)) s later,"
  fi
  printf '%s\t%s\t%s\n' "$to" "$(date -u '+%Y-%m-%d %H:%M UTC')" "$cause" >"$kept.new"
  mv -fT "$kept.new" "$kept.failed"
  rm -rf "$kept"
  tell "$problem. $old $serves with the files that it had before. Repair the cause, then try again with" \
    "--data try_again=$new; or choose another version"
  return 1
}
