#!/bin/sh
# What a role has on a machine, and its removal. To be read after apt.sh.

is_installed() { dpkg-query --show --showformat '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }
is_present() { [ -e "$1" ] || [ -L "$1" ]; }
# Whether it runs, or would be started at boot.
is_wanted_unit() {
  systemctl is-active --quiet "$1" || systemctl is-failed --quiet "$1" ||
    case $(systemctl is-enabled "$1" 2>/dev/null) in enabled* | linked*) ;; *) false ;; esac
}
# is_used TOOL DEFINITION...: whether a unit runs it that none of the definitions defines.
is_used() {
  tool=$1
  shift
  grep -rlF -- "$tool" /etc/systemd/system 2>/dev/null | while read -r file; do
    for definition; do
      [ "$file" != "$definition" ] || continue 2
    done
    echo yes
  done | grep -q yes
} 2>/dev/null

# is_orphan USER: whether no package has a unit that runs as this user, which packages share.
is_orphan() { ! grep -rqsx "User=$1" /usr/lib/systemd/system /lib/systemd/system; }

# left KIND NAME...: a line for each that is there.
left() {
  kind=$1
  shift
  for name; do
    case $kind in
      unit) is_wanted_unit "$name" || continue ;;
      path | definition | tool) is_present "$name" || continue ;;
      user) getent passwd "$name" >/dev/null || continue ;;
      group) getent group "$name" >/dev/null || continue ;;
      table) nft list table inet "$name" >/dev/null 2>&1 || continue ;;
    esac
    echo "$kind $name"
  done
}

# For apt where only installed packages matter: without the lists of all others it takes a twentieth of the time.
INSTALLED='-o Dir::State::lists=/nonexistent -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache='

# unneeded PACKAGE...: those of these packages that deploys have installed, and all that came with them, unless something else
# needs it: what apt would remove if they were not wanted any more, and would not if they were.
unneeded() {
  marks=$(mktemp -d)
  ours=$(for package; do
    if is_installed "$package" && grep -qxF -- "$package" "$RECORDED" 2>/dev/null; then echo "$package"; fi
  done)
  [ -z "$ours" ] || for mark in manual auto; do
    cp /var/lib/apt/extended_states "$marks/states" 2>/dev/null || : >"$marks/states"
    # shellcheck disable=SC2086 # a word for each package and option
    apt-mark $INSTALLED -o Dir::State::extended_states="$marks/states" "$mark" $ours >/dev/null
    # A package that is only suggested is not needed.
    # shellcheck disable=SC2086
    apt-get -s $INSTALLED -o Dir::State::extended_states="$marks/states" -o APT::AutoRemove::SuggestsImportant=false autoremove |
      sed -nE 's/^(Remv|Purg) ([^ ]+) .*/\2/p' | LC_ALL=C sort >"$marks/$mark"
  done
  [ -z "$ours" ] || LC_ALL=C comm -13 "$marks/manual" "$marks/auto"
  rm -rf -- "$marks"
}

# purge PACKAGE...: those that are not needed.
purge() {
  # shellcheck disable=SC2046 # a word for each package
  set -- $(unneeded "$@")
  [ $# != 0 ] || return 0
  # shellcheck disable=SC2086
  more=$(apt-get -s $INSTALLED purge "$@" | sed -nE 's/^(Remv|Purg) ([^ ]+) .*/\2/p' | LC_ALL=C sort | while read -r package; do
    case " $* " in *" $package "*) ;; *) echo "$package" ;; esac
  done | xargs)
  if [ "$more" ]; then
    echo "apt would remove $more as well: nothing was removed of $*" >&2
    return 1
  fi
  # Some are not stopped by their package: unattended-upgrades.
  dpkg -L "$@" | sed -n 's,^.*/systemd/system/\([^/@]*\.service\)$,\1,p' | sort -u | while read -r unit; do
    ! systemctl is-active --quiet "$unit" || systemctl stop "$unit"
  done
  export DEBIAN_FRONTEND=noninteractive
  messages=$(mktemp)
  # shellcheck disable=SC2086
  if ! apt "$messages" purge $INSTALLED -q -y -o DPkg::Lock::Timeout=300 "$@"; then
    cat "$messages" >&2
    rm -f -- "$messages"
    return 1
  fi
  rm -f -- "$messages"
  for package; do sed -i "/^$package\$/d" "$RECORDED"; done
}

# stop UNIT...: they do not run, and are not started at boot.
stop() {
  for unit; do
    ! is_wanted_unit "$unit" || systemctl disable --now --quiet "$unit" 2>/dev/null || systemctl stop "$unit"
    systemctl reset-failed --quiet "$unit" 2>/dev/null || true
  done
}

# remove PATH...: also what a link leads to, as an administrator may have moved a directory to another disk, and what is in a
# directory that is another disk. Directories of drop-ins and caches that are empty now go as well.
remove() {
  for path; do
    is_present "$path" || continue
    [ ! -d "$path" ] || find "$path/" -mindepth 1 -xdev -depth -delete
    mountpoint -q "$path" || rm -rf -- "$path"
    case $path in /etc/systemd/system/*.d/* | /root/.cache/*) rmdir --ignore-fail-on-non-empty -- "${path%/*}" ;; esac
  done
}

# forget NAME...: the user and the group of this name are removed. Not while files in /etc or /usr/local belong to them: the next
# new user could get their number, and with it these files.
forget() {
  for name; do
    for kind in user group; do
      getent "$([ $kind = user ] && echo passwd || echo group)" "$name" >/dev/null || continue
      [ -z "$(find /etc /usr/local -xdev "-$kind" "$name" -print -quit)" ] || continue
      if [ $kind = user ]; then userdel "$name"; else groupdel "$name"; fi
    done
  done
}
