#!/bin/sh
# New rules of the firewall. $new: the file with them, which includes the administrator's own from the directory $own. $current:
# those that are loaded at boot, as the kernel showed them when they were confirmed. $unit, $table: what loads these, and their
# table. $undo: the unit that takes new rules back if nobody confirms them; whoever starts it waits until they are.

# What the rules consist of.
digest() { cat "$new" "$own"/*.nft 2>/dev/null | sha256sum | cut -c -64; }

# is_confirmed: whether what is loaded at boot was made of the rules that there are.
is_confirmed() { grep -qsxF "# $(digest)" "$current"; }

# try_new: loads the new rules, for a minute.
try_new() {
  if ! refused=$(nft -c -f "$new" 2>&1); then
    echo "--> the rules of the firewall are refused, and those before stay: $(printf '%s\n' "$refused" | grep -m 1 Error:)" >&2
    return 1
  fi
  systemctl stop --quiet "$undo.timer" 2>/dev/null || true
  back="nft delete table inet $table"
  [ ! -e "$current" ] || back="systemctl restart $unit"
  systemd-run --quiet --collect --on-active=60 --timer-property=AccuracySec=1 --property=Type=oneshot --unit="$undo" \
    /bin/sh -c "$back"
  nft -f "$new"
}

# confirm: by another connection. From now on they are loaded at boot; unless the minute is over.
confirm() {
  systemctl is-active --quiet "$undo.timer" || return 1
  systemctl stop "$undo.timer"
  {
    echo "# Written by matrix-metal, from $new and $own."
    echo "# $(digest)"
    printf 'table inet %s\ndelete table inet %s\n' "$table" "$table"
    nft -s -t list table inet "$table"
  } >"$current.part"
  mv -f "$current.part" "$current"
}

# confirmed: fails, with a sentence, if the new rules were not confirmed, and takes them back at once.
confirmed() {
  if is_confirmed; then return 0; fi
  if systemctl is-active --quiet "$undo.timer"; then systemctl start "$undo.service"; fi
  systemctl stop --quiet "$undo.timer" 2>/dev/null || true
  echo "--> the new rules of the firewall were taken back, because no new connection could be made to this machine with them." \
    "Does a rule in $own refuse it, or is it reached by a VPN, whose port such a rule has to open?" >&2
  return 1
}
