#!/bin/sh
# A spare machine for the rehearsal of a restore. $note: a directory that says what it had before. $paths: what a rehearsal may put
# there, and what an empty machine does not have. $masked: units that its packages would start.

packages() { dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort; }
accounts() { cut -d : -f 1 "/etc/$1" | sort; }

# begin: notes what is there. Fails, with a line, on a machine that is not empty. One of which a rehearsal has not ended is taken.
begin() {
  [ ! -e "$note" ] || return 0
  for path in $paths; do
    [ ! -e "$path" ] || { echo "has $path, so it is no spare machine" >&2 && return 1; }
  done
  install -d -m 700 "$note.new"
  packages >"$note.new/packages"
  accounts passwd >"$note.new/passwd"
  accounts group >"$note.new/group"
  # A package that is purged takes more than its own: that of the locales removes /etc/default/locale.
  cp -a /etc "$note.new/etc"
  mv "$note.new" "$note"
}

# end: takes down what the rehearsal has put there, however far it has come.
end() {
  [ -e "$note" ] || return 0
  systemctl stop matrix-metal-restore.service 2>/dev/null || true
  for cluster in /etc/postgresql/*/main; do
    [ -e "$cluster" ] || continue
    pg_ctlcluster --skip-systemctl-redirect "$(basename "$(dirname "$cluster")")" main stop -m immediate 2>/dev/null || true
  done
  # The data and what could reach the backup first.
  # shellcheck disable=SC2086 # they are several
  rm -rf $paths /var/tmp/matrix-metal-restore-*
  # What lies elsewhere, where links lead (the program `restore`).
  [ ! -e "$note/added" ] || xargs -d '\n' rm -rf -- <"$note/added"
  added=$(packages | comm -13 "$note/packages" -)
  # shellcheck disable=SC2086
  [ -z "$added" ] || DEBIAN_FRONTEND=noninteractive apt-get purge -q -y -o DPkg::Lock::Timeout=300 $added >&2 || return 1
  # shellcheck disable=SC2086
  [ -z "$masked" ] || systemctl unmask --quiet $masked 2>/dev/null || true
  for name in $(accounts passwd | comm -13 "$note/passwd" -); do userdel "$name" 2>/dev/null || true; done
  for name in $(accounts group | comm -13 "$note/group" -); do groupdel "$name" 2>/dev/null || true; done
  # shellcheck disable=SC2086
  rm -rf $paths
  if [ -e "$note/etc" ]; then
    tar -C "$note/etc" -cf - . | tar -C /etc --skip-old-files -xpf -
    # Directories that are new, and empty by now.
    find /etc -depth -mindepth 1 -type d -printf '%P\n' | while read -r path; do
      [ -e "$note/etc/$path" ] || rmdir --ignore-fail-on-non-empty "/etc/$path"
    done
  fi
  systemctl daemon-reload
  rm -rf "$note"
}
