#!/bin/sh
# The state of a machine, a line each: a word and its value. $marker: the file that an earlier run wrote to mark the machine.
# $names: domain names, of which the machine's programs look up the addresses. $kept: secrets that must not change, each with a
# file that is there once it was used.
sudo=; [ "$(id -u)" = 0 ] || sudo="sudo -n"
# The slowest of all: it goes on beside the others.
command -v pg_lsclusters >/dev/null && $sudo pg_lsclusters -h 2>/dev/null | awk '{ print "cluster", $1 "/" $2, $3 }' &
# As programs look them up: by /etc/hosts as well, and both families, whether the machine has IPv6 or not.
for name in $names; do
  echo "name $name $(timeout 5 getent -A ahosts "$name" | awk '!seen[$1]++ { printf "%s ", $1 }')" &
done
# By which of its ports this run came.
[ -z "${SSH_CONNECTION:-}" ] || echo "connection $SSH_CONNECTION"
# Its interfaces, with their kind if they are not of hardware: the one that has the address it came to, the one for answers.
# shellcheck disable=SC2086 # four words
set -- ${SSH_CONNECTION:-}
if [ $# = 4 ]; then
  came_to=$(ip -o address show to "$3" 2>/dev/null | awk 'NR == 1 { print $2 }')
  answers=$(ip -o route get "$1" 2>/dev/null | sed -nE 's/.* dev ([^ ]+).*/\1/p')
  for each in "came_to $came_to" "answers ${answers:-$came_to}"; do
    echo "$each $(ip -j -details link show dev "${each#* }" 2>/dev/null | sed -nE 's/.*"info_kind":"([^"]*)".*/\1/p')"
  done
fi
# Who is changing the machine now, when the last run began (operations/sh/lock.sh), and how many sessions sshd allows.
# shellcheck disable=SC2016,SC2086 # root's shell expands it; several words
$sudo sh -c 'while [ $# -gt 0 ]; do
    [ ! -s "$2" ] || echo "kept $1"
    shift 2
  done
  sed -nE "s/^\s*MaxSessions[[:space:]=]+([0-9]+).*/sessions \1/Ip" /etc/ssh/sshd_config /etc/ssh/sshd_config.d/*.conf
  # What MAS has encrypted with it is lost with any other: only the digest leaves the machine.
  [ ! -s /etc/mas/secrets/encryption ] || sha256sum </etc/mas/secrets/encryption | sed "s/^/secret mas_encryption_secret /; s/  -$//"
  if [ -s /etc/matrix-metal/signing_key ]; then
    if [ ! -s /var/lib/matrix-synapse/signing.key ]; then
      echo "signing_key gone"
    elif [ "$(sha256sum </var/lib/matrix-synapse/signing.key)" != "$(cat /etc/matrix-metal/signing_key)" ]; then
      echo "signing_key another"
    fi
  elif [ ! -e /etc/matrix-metal/signing_key ] && [ ! -s /var/lib/matrix-synapse/signing.key ]; then
    echo "signing_key none"
  fi
  # Versions of PostgreSQL that there are data of, and those that are installed.
  for each in /var/lib/postgresql/*/main/PG_VERSION; do [ ! -e "$each" ] || echo "data $(cat "$each")"; done
  for each in /usr/lib/postgresql/*/bin/postgres; do
    each=${each%/bin/postgres} && [ ! -e "$each/bin/postgres" ] || echo "server ${each##*/}"
  done
  sed -n "s/^ \"machine\": \"\(.*\)\",\$/backed_up_as \1/p" /etc/matrix-metal/backup/plan.json
  counted=/var/lib/matrix-metal-housekeeping/synapse.json
  [ ! -s $counted ] || echo "counted $(sed -nE "s/^  \"newest\": ([0-9]+),?\$/\1/p" $counted) $(date -u -r $counted +%F)"
  ! cd /etc/matrix-metal/firewall.d || echo own_rules *.nft
  ! command -v wg >/dev/null || wg show all listen-port | sed "s/^/wireguard /"
  ! grep -qs "^matrix_authentication_service:" /etc/matrix-synapse/homeserver.yaml || echo "delegated yes"
  [ ! -e /etc/matrix-metal/migration ] || echo "migrating yes"
  [ ! -e /etc/matrix-metal/restore ] || { [ -e /etc/matrix-metal/restore/done ] && echo "restoring done" || echo "restoring begun"; }
  [ ! -s /etc/matrix-metal/postgresql-upgrade ] || echo "upgrading $(cat /etc/matrix-metal/postgresql-upgrade)"
  for each in /var/lib/matrix-metal/upgrades/*; do
    [ -e "$each" ] || continue
    name=${each##*/}
    case $each in
      *.failed) printf "failure %s\t%s\n" "${name%.failed}" "$(cat "$each")" ;;
      *) ! systemctl is-active --quiet "matrix-metal-upgrade-$name" || echo "other_run the trial of a new version of $name" ;;
    esac
  done
  cd /run/matrix-metal && [ -s run ] && echo "last_run $(stat -c %.9Y run)" &&
  { flock -n -s run true || echo "other_run $(cat run)"; }' sh $kept 2>/dev/null &
# An activating job is at work: both end.
! systemctl is-active apt-daily-upgrade.service matrix-metal-updates.service 2>/dev/null | grep -qx activating || echo "updating yes" &
echo "user $(id -un)"
$sudo true 2>/dev/null && echo "root yes"
( . /etc/os-release; echo "distribution $ID"; echo "release ${VERSION_ID:-unknown}" )
echo "architecture $(dpkg --print-architecture 2>/dev/null || uname -m)"
echo "processors $(nproc)"
for directory in /opt/*/*-????????????; do [ -d "$directory" ] && echo "installed ${directory#/opt/}"; done
# What people call a virtualenv's version is that of its distribution, which is named like the program or has "matrix-" before it.
for link in /opt/*/current; do
  [ -L "$link" ] || continue
  program=${link#/opt/} directory=$(readlink "$link")
  program=${program%/current} version=${directory%-*}
  for found in "$link"/lib/python3*/site-packages/matrix_*.dist-info; do
    name=${found##*/}
    case $(echo "${name%%-*}" | tr _ -) in "$program" | "matrix-$program") version=${name#*-} version=${version%.dist-info} ;; esac
  done
  echo "program $program $directory $version"
done
grep -ls '^# Written by matrix-metal' /etc/systemd/system/*.service /etc/systemd/system/*.service.d/*.conf 2>/dev/null |
  sed 's,^/etc/systemd/system/\([^/]*\.service\).*,unit \1,'
awk '/^MemTotal:/ { print "memory", int($2 / 1024) }' /proc/meminfo
df -Pk /opt /var 2>/dev/null | awk 'NR > 1 { if (!n || $4 < n) n = $4 } END { print "disk", int(n / 1024) }'
echo "addresses $(hostname -I 2>/dev/null)"
# Addresses that last, as a server's should, with their interface: not the temporary ones that IPv6 makes for outgoing connections.
# One that is tentative, just after a boot, is about to be there.
ip -o address show up scope global 2>/dev/null | grep -vwE 'temporary|deprecated|dadfailed' |
  awk '{ sub("/.*", "", $4); print "interface", $2, $4 }'
# The interface and the address with which it reaches the world; no packet is sent. (Addresses of a root name server.)
for there in 198.41.0.4 2001:503:ba3e::2:30; do
  ip -o route get "$there" 2>/dev/null | sed -nE 's/^(.*) dev ([^ ]+)(.*) src ([^ ]+).*/outgoing \2 \4/p'
done
for cluster in /etc/postgresql/*/main; do
  [ -e "$cluster/postgresql.conf" ] && echo "postgresql $(basename "$(dirname "$cluster")")"
done
found=
if [ -e "$marker" ] || [ -L "$marker" ]; then
  { [ -f "$marker" ] && [ ! -L "$marker" ]; } || echo "marker other"
  reader=; [ -r "$marker" ] || reader=$sudo
  found=$($reader head -c 4096 "$marker" 2>/dev/null | tr -cd '\040-\176')
  echo "deployment $found"
fi
# Without a marker the machine's secrets show which vault it was deployed with. Only digests leave it: -vvv prints what is asked.
# shellcheck disable=SC2016 # dpkg-query and root's shell expand it
case $found in
  '{'*'"server_name": "'*'"vault": "'*'"}') ;;
  *)
    # matrix.org's package and Debian's: when they are purged later, they take files of the new Synapse with them.
    dpkg-query -W -f '${db:Status-Status} ${Package}\n' matrix-synapse-py3 matrix-synapse 2>/dev/null |
      while read -r state package; do
        case $state in
          not-installed) ;;
          config-files) echo "foreign the package $package, which was removed and not purged" ;;
          *) echo "foreign the package $package" ;;
        esac
      done
    $sudo sh -c '
    secret() { value=$(cat); [ -z "$value" ] || echo "secret $1 $(printf %s "$value" | sha256sum | cut -d " " -f 1)"; }
    cd /etc
    sed -n "s/^server_name: \"\(.*\)\"$/server_name \1/p" matrix-synapse/homeserver.yaml
    for path in /var/lib/matrix-synapse/homeserver.db /etc/matrix-synapse/homeserver.yaml; do
      [ ! -e $path ] || [ -e matrix-synapse/secrets ] || grep -qs "^# Written by matrix-metal" $path || echo "foreign $path"
    done
    for name in registration_shared_secret macaroon_secret_key form_secret; do
      [ ! -e matrix-synapse/secrets/$name ] || secret synapse_$name <matrix-synapse/secrets/$name
    done
    sed -n "s/^static-auth-secret=//p" turnserver.conf | head -n 1 | secret turn_shared_secret
    sed -n "s/^ed25519.signingkey = //p" sydent/sydent.conf | secret sydent_signing_key
    sed -n "s/^SYNCV3_SECRET=\"\{0,1\}\([0-9a-f]*\).*/\1/p" sliding-sync/environment | secret sliding_sync_secret
    ' 2>/dev/null ;;
esac
# The marker of version 0.1.0 does not name the database.
grep -qs '"database"' "$marker" || $sudo sed -n '/^database:/,/^$/ { s/^    host: "\(.*\)"$/database \1/p; s/^    port: \([0-9]*\)$/database_port \1/p }' \
  /etc/matrix-synapse/homeserver.yaml 2>/dev/null
$sudo ss -Hlntup 2>/dev/null | awk '{ print $1, $5, $7 }' | while read -r protocol address users; do
  pid=${users#*pid=}; pid=${pid%%,*}
  group=; [ -r "/proc/$pid/cgroup" ] && while read -r line; do case $line in 0::*) group=$line ;; esac; done <"/proc/$pid/cgroup"
  # The innermost service: ".../system.slice/caddy.service/..."
  unit=; case $group in *.service*) unit=${group%.service*}.service; unit=${unit##*/} ;; esac
  # systemd listens for a socket's unit.
  [ "$pid" != 1 ] || unit=$(systemctl list-sockets --no-legend --no-pager | awk -v port=":${address##*:}" \
    'index($1, port) && substr($1, length($1) - length(port) + 1) == port { print $2; exit }')
  echo "listener $protocol ${address%:*} ${address##*:} $users ${pid:-0} $unit"
done
wait
