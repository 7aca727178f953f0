#!/bin/sh
# The state of a machine, a line each: a word and its value. $marker: the file that an earlier run wrote to mark the machine.
# $names: domain names, of which the machine's programs look up the addresses.
sudo=; [ "$(id -u)" = 0 ] || sudo="sudo -n"
# The slowest of all: it goes on beside the others.
command -v pg_lsclusters >/dev/null && $sudo pg_lsclusters -h 2>/dev/null | awk '{ print "cluster", $1 "/" $2, $3 }' &
# As programs look them up: by /etc/hosts as well, and both families, whether the machine has IPv6 or not.
for name in $names; do
  echo "name $name $(timeout 5 getent -A ahosts "$name" | awk '!seen[$1]++ { printf "%s ", $1 }')" &
done
echo "user $(id -un)"
$sudo true 2>/dev/null && echo "root yes"
( . /etc/os-release; echo "distribution $ID"; echo "release ${VERSION_ID:-unknown}" )
echo "architecture $(dpkg --print-architecture 2>/dev/null || uname -m)"
echo "processors $(nproc)"
for directory in /opt/*/*-????????????; do [ -d "$directory" ] && echo "installed ${directory#/opt/}"; done
grep -ls '^# Written by matrix-metal' /etc/systemd/system/*.service /etc/systemd/system/*.service.d/*.conf 2>/dev/null |
  sed 's,^/etc/systemd/system/\([^/]*\.service\).*,unit \1,'
awk '/^MemTotal:/ { print "memory", int($2 / 1024) }' /proc/meminfo
df -Pk /opt /var 2>/dev/null | awk 'NR > 1 { if (!n || $4 < n) n = $4 } END { print "disk", int(n / 1024) }'
echo "addresses $(hostname -I 2>/dev/null)"
# Addresses that last, as a server's should, with their interface: not the temporary ones that IPv6 makes for outgoing connections.
ip -o address show up scope global 2>/dev/null | grep -vwE 'temporary|deprecated|tentative|dadfailed' |
  awk '{ sub("/.*", "", $4); print "interface", $2, $4 }'
# The interface and the address with which it reaches the world; no packet is sent. (Addresses of a root name server.)
for there in 198.41.0.4 2001:503:ba3e::2:30; do
  ip -o route get "$there" 2>/dev/null | sed -nE 's/^(.*) dev ([^ ]+)(.*) src ([^ ]+).*/outgoing \2 \4/p'
done
for cluster in /etc/postgresql/*/main; do
  [ -e "$cluster/postgresql.conf" ] && echo "postgresql $(basename "$(dirname "$cluster")")"
done
[ -e "$marker" ] && echo "deployment $(tr -d '\n' 2>/dev/null <"$marker")"
# The marker of version 0.1.0 does not name the database.
grep -qs '"database"' "$marker" || $sudo sed -n '/^database:/,/^$/ { s/^    host: "\(.*\)"$/database \1/p; s/^    port: \([0-9]*\)$/database_port \1/p }' \
  /etc/matrix-synapse/homeserver.yaml 2>/dev/null
$sudo ss -Hlntup 2>/dev/null | awk '{ print $1, $5, $7 }' | while read -r protocol address users; do
  pid=${users#*pid=}; pid=${pid%%,*}
  group=; [ -r "/proc/$pid/cgroup" ] && while read -r line; do case $line in 0::*) group=$line ;; esac; done <"/proc/$pid/cgroup"
  # The innermost service: ".../system.slice/caddy.service/..."
  unit=; case $group in *.service*) unit=${group%.service*}.service; unit=${unit##*/} ;; esac
  echo "listener $protocol ${address##*:} $users ${pid:-0} $unit"
done
wait
