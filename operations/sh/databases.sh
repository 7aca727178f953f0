#!/bin/sh
# Databases of one cluster. $cluster: which, such as 17/main.
as_superuser() (cd / && exec runuser -u postgres -- env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 PGCLUSTER="$cluster" "$@")
# create DATABASE OWNER: with the encoding and the collation that Synapse needs.
create() {
  as_superuser createdb --owner="$2" --encoding=UTF8 --locale=C --template=template0 "$1"
  close "$1"
}
# close DATABASE: only its owner may connect, and the superuser.
close() { as_superuser psql -XAtq -v ON_ERROR_STOP=1 -c "REVOKE ALL ON DATABASE \"$1\" FROM PUBLIC"; }
# recreate DATABASE OWNER INCOMPLETE: while the query INCOMPLETE answers t. PostgreSQL does not drop a database with connections; it
# waits five seconds for them to end. So a first start that is still running is not disturbed and completes; one that keeps failing
# is disconnected between its attempts. Nobody else is waited for any longer.
recreate() {
  for _ in $(seq 30); do
    [ "$(as_superuser psql -XAtq -d "$1" -c "SELECT $3" 2>/dev/null)" = t ] || return 0
    if as_superuser dropdb "$1" 2>/dev/null; then
      create "$1" "$2"
      return 0
    fi
    others=$(as_superuser psql -XAtqc "SELECT string_agg(DISTINCT concat_ws(' with ', usename, nullif(application_name, '')), ', ')
      FROM pg_stat_activity WHERE datname = '$1' AND usename <> '$2'")
    if [ "$others" ]; then
      echo "the database $1 is incomplete, its first start was interrupted; it cannot be created again while somebody is connected" \
        "to it ($others): end that, then run the deploy again" >&2
      return 1
    fi
    sleep 0.5
  done
}
