#!/bin/sh
# Accounts from Synapse to MAS. $configuration: MAS's configuration files, with : between them. $uri: Synapse's database.
# $borrowed: the PostgreSQL role whose rights MAS needs for it, if both are on this machine; $passwords: otherwise, a
# password file. Needs databases.sh.

# A copy that MAS's user may read: of Synapse's settings, not of its secrets.
settings_copied() {
  copy=$(runuser -u mas -- mktemp -d)
  cp /etc/matrix-synapse/homeserver.yaml "$copy"
  for file in /etc/matrix-synapse/conf.d/*.yaml; do
    [ "$file" = /etc/matrix-synapse/conf.d/email.yaml ] || [ ! -e "$file" ] || cp "$file" "$copy"
  done
  [ -z "$passwords" ] || cp "$passwords" "$copy/passwords"
  chown -R mas: "$copy"
  chmod -R u=rwX,go= "$copy"
}

syn2mas() (
  cd /
  export MAS_CONFIG="$configuration"
  set -- /opt/mas/current/mas-cli syn2mas "$@" --synapse-database-uri "$uri"
  for file in "$copy"/*.yaml; do set -- "$@" --synapse-config "$file"; done
  [ -z "$passwords" ] || export PGPASSFILE="$copy/passwords"
  exec runuser -u mas -- "$@"
)

# However it ends: a lost connection must not leave people without a homeserver.
returned() {
  [ -z "$stopped" ] || systemctl start matrix-synapse
  rm -rf -- "$copy"
  [ -z "$borrowed" ] || as_superuser psql -XAtqc "REVOKE \"$borrowed\" FROM mas"
}

move() {
  copy='' stopped=''
  trap 'returned' EXIT
  trap 'exit 1' HUP INT PIPE TERM
  settings_copied
  [ -z "$borrowed" ] || as_superuser psql -XAtq -v ON_ERROR_STOP=1 -c "GRANT \"$borrowed\" TO mas"
  code=0
  syn2mas check || code=$?
  # 11: warnings only.
  if [ "$code" != 0 ] && [ "$code" != 11 ]; then
    echo "MAS cannot take these accounts, see above: nothing was changed" >&2
    exit 1
  fi
  stopped=yes
  systemctl stop matrix-synapse
  if ! syn2mas migrate; then
    echo "MAS could not take the accounts, see above: Synapse goes on with them" >&2
    exit 1
  fi
  # It is started with its new configuration.
  stopped=''
}
