#!/bin/sh
# How security updates are: lines of a word, and what it says (`UpdatesSeen`). As root.
#
# $role: a file that the role `updates` has written. $job: Debian's service that installs them. $periodic: Debian's jobs write the
# time of their last success there, and end without an error in any case.
# changed WORD FILE: the time when a file was written, if there is one.
changed() { [ ! -e "$2" ] || stat -c "$1 %Y" "$2"; }

about_updates() {
  periodic=/var/lib/apt/periodic
  changed since "$role"
  changed lists $periodic/update-stamp
  changed installed $periodic/upgrade-stamp
  systemctl show --timestamp=unix -p ExecMainStartTimestamp --value "$job" | sed -n 's/^@/begun /p'
  ! systemctl is-active "$job" | grep -qx activating || echo updating
  [ ! -s /var/lib/unattended-upgrades/kept-back ] || echo "kept_back $(cat /var/lib/unattended-upgrades/kept-back)"
  ! apt-cache policy | grep -q 'l=Debian-Security' || echo source
  if [ -e /run/reboot-required ]; then
    echo "reboot $(sort -u /run/reboot-required.pkgs 2>/dev/null | xargs)"
  else
    # It knows whether there is a newer kernel than the one that runs: 2 or 3.
    needrestart -b -k 2>/dev/null | sed -n 's/^NEEDRESTART-KSTA: [23]$/reboot/p'
  fi
}
