#!/bin/sh
# New rules of the firewall. $new: the file with them, which includes the administrator's own from the directory $own. $current:
# those that are loaded at boot, as the kernel showed them when they were confirmed. $unit, $table: what loads these, and their
# table. $before: what the kernel had before the new rules, while they are tried. $undo: the unit that puts it back if nobody
# confirms them; whoever starts it waits until they are.

# What the rules consist of.
digest() { cat "$new" "$own"/*.nft 2>/dev/null | sha256sum | cut -c -64; }

# is_confirmed DIGEST: whether what is loaded at boot was made of these rules.
is_confirmed() { grep -qsxF "# $1" "$current"; }

# listed: what puts the table back as the kernel has it now, or takes it away if there is none.
listed() {
  printf 'table inet %s\ndelete table inet %s\n' "$table" "$table"
  if nft list tables inet | grep -qxF "table inet $table"; then nft -s -t list table inet "$table"; fi
}

# put_back: what the kernel had before. Whoever takes the file away decides, this or `confirm`. Without a table nobody is locked out.
put_back="flock $before.lock sh -c 'if mv $before $before.back 2>/dev/null; then nft -f $before.back || nft delete table inet $table; fi'"

# try_new: loads the new rules, for a minute.
try_new() {
  if ! refused=$(nft -c -f "$new" 2>&1); then
    echo "--> the rules of the firewall are refused, and those before stay: $(printf '%s\n' "$refused" | grep -m 1 Error:)" >&2
    return 1
  fi
  install -d -m 700 "${before%/*}"
  # Those of a run that was cut off are not what to go back to.
  sh -c "$put_back"
  systemctl stop --quiet "$undo.timer" 2>/dev/null || true
  rm -f "$before.back" "$before.reached"
  was=$(listed)
  printf '%s\n' "$was" >"$before.part"
  # Read before they are loaded: what changes in between is tried the next time.
  digest >"$before.digest"
  mv "$before.part" "$before"
  systemd-run --quiet --collect --on-active=60 --timer-property=AccuracySec=1 --property=Type=oneshot --unit="$undo" \
    /bin/sh -c "$put_back"
  nft -f "$new"
}

# confirm: by another connection. From now on they are loaded at boot; unless the minute is over.
confirm() {
  systemctl is-active --quiet "$undo.timer" || return 1
  : >"$before.reached"
  rules=$(nft -s -t list table inet "$table")
  printf '# Written by matrix-metal, from %s and %s.\n# %s\n' "$new" "$own" "$(cat "$before.digest")" >"$current.part"
  printf 'table inet %s\ndelete table inet %s\n%s\n' "$table" "$table" "$rules" >>"$current.part"
  nft -c -f "$current.part"
  # Until here they may have been taken back, and what was listed are those before.
  rm "$before" 2>/dev/null || { rm "$before.reached" && return 1; }
  mv -f "$current.part" "$current"
  systemctl stop "$undo.timer"
}

# confirmed: fails, with a sentence, if the new rules were not confirmed, and takes them back at once.
confirmed() {
  if [ ! -e "$before" ] && [ ! -e "$before.back" ] && is_confirmed "$(cat "$before.digest")"; then return 0; fi
  sh -c "$put_back"
  systemctl stop --quiet "$undo.timer" 2>/dev/null || true
  if [ -e "$before.reached" ]; then
    echo "--> the new rules of the firewall were taken back, because they could not be written to $current: is the disk full?" >&2
    return 1
  fi
  echo "--> the new rules of the firewall were taken back, because no new connection could be made to this machine with them." \
    "Does a rule in $own refuse it, or is it reached by a VPN, whose port such a rule has to open?" >&2
  return 1
}
