#!/bin/sh
# New rules of the firewall. $new, $current: the files with them, and with those that are loaded at boot. $unit, $table: what loads
# the latter, and their table. $undo: the unit that takes the new rules back if nobody confirms them. $came_by: an address, or "".

# try_new: loads the new rules, for a minute.
try_new() {
  systemctl stop --quiet "$undo.timer" 2>/dev/null || true
  back="nft delete table inet $table"
  [ ! -e "$current" ] || back="systemctl restart $unit"
  systemd-run --quiet --collect --on-active=60 --timer-property=AccuracySec=1 --unit="$undo" /bin/sh -c "$back"
  if ! nft -f "$new"; then
    systemctl stop "$undo.timer"
    return 1
  fi
  admit
}

# admit: the address that this run came by is not kept from SSH, for a day.
admit() {
  case $came_by in
    '') ;;
    *:*) nft add element inet "$table" came_by6 "{ $came_by timeout 1d }" ;;
    *) nft add element inet "$table" came_by4 "{ $came_by timeout 1d }" ;;
  esac
}

# confirm: by another connection. From now on they are loaded at boot.
confirm() {
  systemctl stop "$undo.timer"
  cp "$new" "$current.part"
  mv -f "$current.part" "$current"
}

# confirmed: fails, with a sentence, if the new rules were not confirmed, and takes them back at once.
confirmed() {
  if ! systemctl is-active --quiet "$undo.timer"; then return 0; fi
  systemctl start "$undo.service"
  systemctl stop "$undo.timer"
  echo "--> the new rules of the firewall were taken back, because no new connection could be made to this machine with them." \
    "Does a rule in /etc/matrix-metal/firewall.d refuse it, or is it reached by a VPN, whose port such a rule has to open?" >&2
  return 1
}
