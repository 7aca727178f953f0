#!/bin/sh
# From the PostgreSQL of one Debian to that of the next. $old, $new: major versions; $units: those on this machine that use it.
# Read together with lock.sh. $backup: where the jobs of the backup keep what they know; $spool: where PostgreSQL leaves its log for them.
#
# $mark: while it exists, the cluster of the new version is not complete, and nothing else may use it. It says "OLD NEW PORT".
mark=/etc/matrix-metal/postgresql-upgrade
result=/run/matrix-metal/postgresql-upgrade
job=matrix-metal-postgresql-upgrade.service

as_superuser() (
  cluster=$1
  shift
  cd / && exec runuser -u postgres -- env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 PGCLUSTER="$cluster/main" "$@"
)
query() { as_superuser "$1" psql -XAtq -v ON_ERROR_STOP=1 -d "$2" -c "$3"; }

# about: a line each.
about() {
  (. /etc/os-release && echo "release $VERSION_ID")
  for cluster in /etc/postgresql/*/main; do
    [ -e "$cluster/postgresql.conf" ] || continue
    version=$(basename "$(dirname "$cluster")")
    echo "version $version"
    systemctl is-active --quiet "postgresql@$version-main" && echo "active $version"
    data=$(pg_conftool -s "$version" main show data_directory)
    # Not -x: in a container, files may be on another file system than their directory.
    echo "size $version $(du -sm "$data" | cut -f 1)"
    echo "free $version $(df -Pm "$data" | awk 'NR == 2 { print $4 }')"
  done
  [ ! -e "$mark" ] || echo "begun $(cat "$mark")"
  case $(systemctl is-active "$job") in active | activating) echo "working yes" ;; esac
}

# contents VERSION: each table of the cluster with its size: the upgrade copies their files as they are.
contents() {
  query "$1" postgres 'SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1' | while read -r database; do
    query "$1" "$database" "SELECT current_database(), nspname, relname, pg_relation_size(pg_class.oid)
      FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
      WHERE relkind IN ('r', 'm', 'S') AND nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema') ORDER BY 1, 2, 3"
  done
}

# back: the old cluster goes on, however far the upgrade has come.
back() {
  read -r old new port <"$mark"
  systemctl stop "postgresql@$new-main" 2>/dev/null || true
  if [ -e "/etc/postgresql/$new/main" ] || [ -e "/var/lib/postgresql/$new/main" ]; then
    pg_ctlcluster --skip-systemctl-redirect "$new" main stop -m fast 2>/dev/null || true
    pg_dropcluster "$new" main || rm -rf "/etc/postgresql/$new/main" "/var/lib/postgresql/$new/main"
  fi
  pg_ctlcluster --skip-systemctl-redirect "$old" main stop -m fast 2>/dev/null || true
  echo auto >"/etc/postgresql/$old/main/start.conf"
  pg_conftool "$old" main set port "$port"
  systemctl daemon-reload
  systemctl reset-failed "postgresql@$old-main" 2>/dev/null || true
  systemctl start "postgresql@$old-main" || return 1
  rm "$mark"
}

# finish: what the job does at its end, whatever happened; $1 is its exit status.
finish() {
  [ "$1" = 0 ] || [ ! -e "$mark" ] || back || why="$why; and PostgreSQL $old could not be started again: journalctl -u $job"
  # shellcheck disable=SC2086 # they are several
  [ "$1" = 0 ] || [ -z "$units" ] || systemctl start --no-block $units
  rm -rf -- "$work"
  [ "$1" != 0 ] || why=moved
  echo "$why" >"$result"
}

# upgrade: the job.
upgrade() {
  set -eu
  why='' work=$(mktemp -d)
  # A deploy finds that somebody is at work (lock.sh).
  take_lock 'the upgrade of PostgreSQL' || { echo "$refused" >"$result" && exit 1; }
  trap 'finish $?' EXIT
  trap 'exit 1' HUP INT TERM
  why="PostgreSQL $old could not be put back"
  [ ! -e "$mark" ] || back
  port=$(pg_conftool -s "$old" main show port)
  echo "$old $new $port" >"$mark.new"
  sync "$mark.new"
  mv -f "$mark.new" "$mark"
  why="the services could not be stopped"
  # shellcheck disable=SC2086
  [ -z "$units" ] || systemctl stop $units
  why="PostgreSQL $old does not say what it contains"
  contents "$old" >"$work/before"
  why="PostgreSQL $old could not be stopped"
  systemctl stop "postgresql@$old-main"
  [ ! -e "$backup/prepared" ] || timeout 60 systemctl start matrix-metal-backup-wal.service || true
  why="the data could not be taken over (pg_upgradecluster)"
  (cd / && pg_upgradecluster --method=upgrade --no-start -v "$new" "$old" main) 9>&-
  # Until all is compared it does not start with the machine: what people wrote there would be lost if the old one went on.
  echo manual >"/etc/postgresql/$new/main/start.conf"
  why="PostgreSQL $new does not start"
  # For itself: nothing else connects, and nothing changes sizes.
  pg_ctlcluster --skip-systemctl-redirect "$new" main start -o '-c autovacuum=off -c listen_addresses=' 9>&-
  why="PostgreSQL $new does not say what it contains"
  contents "$new" >"$work/after"
  why="PostgreSQL $new does not contain the same as $old"
  diff "$work/before" "$work/after"
  why="PostgreSQL $new could not analyze its tables"
  as_superuser "$new" vacuumdb --all --analyze-only --quiet
  why="PostgreSQL $new could not be started as a service"
  pg_ctlcluster --skip-systemctl-redirect "$new" main stop -m fast
  systemctl daemon-reload
  systemctl start "postgresql@$new-main"
  # The deploy that follows has the backup go on with the new cluster in the place of the old (`prepare` of its program).
  if [ -e "$backup/prepared" ]; then
    # What could not be sent of the old cluster's log fits the new one no more.
    find "$spool" -type f -delete
    touch "$backup/database/from_dumps"
    rm "$backup/prepared"
  fi
  echo auto >"/etc/postgresql/$new/main/start.conf"
  rm "$mark"
  systemctl daemon-reload
}

# begin PROGRAM: starts the job, unless it is at work.
begin() {
  case $(systemctl is-active "$job") in active | activating) return ;; esac
  rm -f "$result"
  systemctl reset-failed "$job" 2>/dev/null || true
  systemd-run --quiet --collect --unit="$job" sh -c "$1"
}

# watch: waits for the job; says why it failed.
watch() {
  while case $(systemctl is-active "$job") in active | activating) true ;; *) false ;; esac do sleep 0.5; done
  last=$(cat "$result" 2>/dev/null) || last='it was interrupted'
  [ "$last" != moved ] || return 0
  echo "$last" >&2
  return 1
}

# drop_old VERSION DROP_INS: removes the cluster, its data and packages, and the directory of its unit's drop-ins.
drop_old() {
  set -e
  pg_dropcluster "$1" main
  rm -rf "$2" "/etc/postgresql/$1/main"
  rmdir --ignore-fail-on-non-empty "/etc/postgresql/$1" "/var/lib/postgresql/$1" 2>/dev/null || true
  export DEBIAN_FRONTEND=noninteractive
  apt-get purge -q -y -o DPkg::Lock::Timeout=300 "postgresql-$1" "postgresql-client-$1" >&2
  systemctl daemon-reload
}

# told: the end of what the job has printed.
told() { journalctl -u "$job" --since=-1h -n 30 --no-pager -o cat; }
