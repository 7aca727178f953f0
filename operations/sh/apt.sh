#!/bin/sh
# The packages that deploys have installed on this machine, a line each: those of the administrator's own are not among them, and
# are never removed (removal.sh).
RECORDED=/var/lib/matrix-metal/packages
record_packages() {
  install -d -m 755 "${RECORDED%/*}"
  printf '%s\n' "$@" >>"$RECORDED"
}
# apt ERRORS ARGUMENT...: runs apt-get, and again for as long as another package manager holds any lock: apt itself waits for
# dpkg's lock only, not for that of the package lists. ERRORS: the file for its error messages.
apt() {
  errors=$1
  shift
  begin=$(date +%s)
  until apt-get "$@" 2>"$errors"; do
    # Without a process if it has just ended, or is in a container that shares the directory.
    other=$(sed -nE 's/.*Could not get lock ([^ ]*)\. It is held by process (.*)$/process \2, which holds \1/p
      s/.*Could not get lock ([^ ]*) - open \(11: .*/a process that holds \1/p' "$errors")
    # Security updates may take long, and end by themselves.
    case $other in *unattended-upgr*) minutes=60 ;; *) minutes=5 ;; esac
    if [ -z "$other" ] || [ "$(date +%s)" -ge "$(( begin + minutes * 60 ))" ]; then
      [ -z "$other" ] || echo "another package manager has been at work for $minutes minutes: $other" >&2
      return 1
    fi
    echo "waiting for $other"
    sleep 1
  done
}
# Who holds a lock of another package manager's just now: a process, and which lock, a line each.
lock_holders() {
  for lock in /var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/lib/apt/lists/lock /var/cache/apt/archives/lock; do
    inode=$(stat -c %i "$lock" 2>/dev/null) || continue
    awk -v inode="$inode" '{ split($6, id, ":") } id[3] == inode && $5 > 0 { print $5 }' /proc/locks | while read -r pid; do
      # Another file system may have a file of the same number.
      ! readlink "/proc/$pid/fd/"* 2>/dev/null | grep -qxF "$lock" || echo "process $pid ($(cat "/proc/$pid/comm")), which holds $lock"
    done
  done
}
# Why packages cannot be fetched: the first error that names an address.
fetch_error() { sed -nE 's/^(E|W|Error|Warning): Failed to fetch ([^ ]+) +(.*)$/\2: \3/p' "$1" | head -n 1; }
# The first error of another kind: a repository that is not there, not signed or too old, or a line that apt does not understand.
source_error() { sed -nE 's/^(E|Error): (.*)$/\2/p' "$1" | head -n 1; }
# Packages that dpkg has not completed; those of somebody else stop every installation as well.
incomplete_packages() {
  dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' | sed -nE 's/^(half-.*|unpacked|triggers-.*) //p' | xargs
}
# install_packages PACKAGE...: without their recommendations, in one transaction. $masked: units that stay masked meanwhile.
install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  messages=$(mktemp -d)
  # shellcheck disable=SC2086 # $masked is several words
  trap '[ -z "$masked" ] || systemctl unmask --runtime --quiet $masked; rm -rf "$messages"' EXIT
  # shellcheck disable=SC2086
  [ -z "$masked" ] || systemctl mask --runtime --quiet $masked
  # After a power failure in the middle of an installation, dpkg installs nothing before this. If another apt is at work, this
  # fails, and apt-get waits for that one.
  if [ "$(ls -A /var/lib/dpkg/updates 2>/dev/null)" ]; then dpkg --force-confold --configure -a || true; fi
  touch "$messages/update"
  # The package lists may be missing or out of date, and then name versions that the mirror no longer has.
  if [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*' -print -quit)" ] \
    || [ -z "$(find /var/lib/apt/lists -maxdepth 0 -mtime -1)" ]; then update_lists; fi
  if install_once "$@"; then return 0; fi
  if [ ! -s "$messages/update" ]; then
    update_lists
    if install_once "$@"; then return 0; fi
  fi
  cat "$messages/update" "$messages/install" >&2
  why=$(fetch_error "$messages/install")
  [ "$why" ] || why=$(fetch_error "$messages/update")
  if [ "$why" ]; then
    echo "packages cannot be fetched, a mirror of this machine does not answer as it should: $why" >&2
  elif grep -q 'Sub-process .* returned an error' "$messages/install"; then
    echo "dpkg could not complete a package ($(incomplete_packages)), see above; dpkg --configure -a on the machine tries again" >&2
  elif grep -qE 'has no installation candidate|Unable to locate package|list of sources could not' "$messages/install"; then
    why=$(source_error "$messages/update")
    echo "packages cannot be found: ${why:-the archive of Debian is not among the sources of this machine (/etc/apt/sources.list)}" >&2
  fi
  return 1
}
# A repository that does not answer may not be needed; the installation fails if it is.
update_lists() {
  apt "$messages/update" update -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o APT::Update::Error-Mode=any || true
}
install_once() {
  apt "$messages/install" install -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -y --no-install-recommends \
    -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=300 "$@"
}
