#!/bin/sh
# The certificates that servers on this machine present, and what Caddy logs about them.
#
# presents DOMAIN PORT FILE UNIT: does the server present a certificate that is valid now, for the name, and the one in the file?
# await_certificates PATIENCE DOMAIN PORT FILE UNIT...: waits for that up to PATIENCE seconds in all, for each name.
# await_certificate DOMAIN PORT FILE UNIT: waits for that until $end; then prints why not, in one line.
# last_attempt DOMAIN: the last line of Caddy's log about obtaining it.
# waits_to_retry DOMAIN: has Caddy failed to obtain it, and waits before it tries again?
# not_on_disk DOMAIN FILE: has Caddy obtained it, but it is not on the disk? Either Caddy could not save it: when it starts, it
# removes empty folders, which may be those that it has just made for certificates. Or somebody deleted the file.
#
# $end: when to give up, in seconds since the epoch. $reloaded: set once Caddy was reloaded.
presents() {
  # The trust store, which would be read each time, is not asked: of what is wrong at depth 0, the certificate itself, only the name
  # (62) and the time (9: not yet, 10: not any more) count.
  about=$(openssl s_client -connect "127.0.0.1:$2" -servername "$1" -verify_hostname "$1" -no-CAfile -no-CApath -no-CAstore \
    </dev/null 2>&1) || return 1
  case $about in *"-----BEGIN CERTIFICATE-----"*) ;; *) return 1 ;; esac
  before=${about%%"-----BEGIN CERTIFICATE-----"*}
  while
    at=${before%%"depth="*}
    [ "$at" != "$before" ]
  do
    before=${before#"$at"depth=}
    case ${before%%"depth="*} in "0 "*"verify error:num="9:* | "0 "*"verify error:num="10:* | "0 "*"verify error:num="62:*) return 1 ;; esac
  done
  [ "$3" = - ] || [ "$(printf '%s\n' "$about" | fingerprint)" = "$(fingerprint -in "$3")" ]
}
fingerprint() { openssl x509 "$@" -noout -fingerprint -sha256 2>/dev/null; }
caddy_log() { journalctl -u caddy -o cat --no-pager --since=-6h 2>/dev/null; }
last_attempt() {
  caddy_log | grep -F -e "\"msg\":\"obtaining certificate\",\"identifier\":\"$1\"" -e "\"msg\":\"will retry\",\"error\":\"[$1] " \
    | tail -n 1
}
waits_to_retry() { last_attempt "$1" | grep -qF '"will retry"'; }
not_on_disk() {
  last_attempt "$1" | grep -qF "$(save_error "$1")" || { [ "$2" != - ] && [ ! -e "$2" ] && presents "$1" 443 - -; }
}
save_error() { echo "\"error\":\"[$1] Obtain: saving assets: "; }
await_certificate() {
  until presents "$@"; do
    if [ "$(date +%s)" -ge "$end" ]; then
      why=$(caddy_log | grep -E '"level":"(error|warn)"' | grep -F -e "\"identifier\":\"$1\"" -e "$(save_error "$1")" \
        | sed -nE 's/.*"error":"(([^"\\]|\\.)*)".*/\1/p' | tail -n 1 | sed 's/\\\(["\\]\)/\1/g; s/\\[nt]/ /g')
      if [ "$why" != "${why#*saving assets: }" ]; then
        advice="(Caddy cannot save it: ${why#*saving assets: }). See journalctl -u caddy"
      elif [ "$why" ] || [ ! -s "$3" ]; then
        advice="(${why:-Caddy has no answer from the issuer yet}). Does its DNS record point here, are ports 80 and 443 open?"
      else
        advice="although it is in $3: see journalctl -u $4"
      fi
      echo "$1, port $2: no valid certificate $advice" >&2
      return 1
    fi
    if [ "$4" != - ] && [ -s "$3" ]; then systemctl start "$4" 2>/dev/null || true; fi
    if [ ! "$reloaded" ] && not_on_disk "$1" "$3"; then
      systemctl reload caddy
      reloaded=yes
    fi
    sleep 1
  done
}
await_certificates() {
  patience=$1 failed='' reloaded=''
  shift
  # Caddy waits a minute after the first failure, and longer after each further one. A new deploy makes it try at once.
  age=$(($(cut -d. -f1 /proc/uptime) - $(systemctl show caddy -p StateChangeTimestampMonotonic --value) / 1000000))
  if [ "$age" -ge "$patience" ]; then
    number=0
    for word in "$@"; do
      if [ $((number % 4)) = 0 ] && waits_to_retry "$word"; then
        systemctl reload caddy
        reloaded=yes
        break
      fi
      number=$((number + 1))
    done
  fi
  end=$(($(date +%s) + patience))
  while [ $# -gt 0 ]; do
    await_certificate "$1" "$2" "$3" "$4" || failed="${failed:+$failed, }$1"
    shift 4
  done
  [ "$failed" ] || return 0
  echo "Still without a certificate: $failed. Everything else is in place, and certificates arrive by themselves once they can be" \
    "issued." >&2
  return 1
}
