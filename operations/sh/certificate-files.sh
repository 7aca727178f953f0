#!/bin/sh
# What is wrong with certificate files that the administrator put on the machine.
#
# look FILE: can it be read by who has to? On a new machine Caddy's user comes later, but the administrator can make its group.
# fits CERTIFICATE KEY DOMAIN...: is it valid now, for all of them, with this key?
#
# $caddy: set if Caddy is to read them. hidden FILE: whether Caddy, as its unit confines it, cannot see there at all.
look() {
  if [ ! -f "$1" ]; then
    echo "$1 is not on the machine; put it there"
  elif [ "$caddy" ] && hidden "$1"; then
    echo "$1 is where services may not look; move it, to /etc/ssl for example"
  elif [ "$caddy" ] && ! as_caddy test -r "$1"; then
    echo "$1 is not readable by Caddy; on the machine: groupadd -rf caddy; chgrp caddy $1; chmod 640 $1"
  elif ! command -v openssl >/dev/null; then
    echo "$1 cannot be looked at; on the machine: apt install openssl"
  else
    return 0
  fi
  return 1
}
as_caddy() {
  if id caddy >/dev/null 2>&1; then
    runuser -u caddy -- "$@"
  else
    setpriv --reuid=65534 --regid="$(getent group caddy | cut -d: -f3 | grep . || echo 65534)" --clear-groups "$@"
  fi
}
fits() {
  certificate=$1 key=$2
  shift 2
  if ! public=$(openssl x509 -in "$certificate" -noout -pubkey 2>/dev/null); then
    echo "$certificate is no certificate in PEM form"
    return
  fi
  names=$(openssl x509 -in "$certificate" -noout -ext subjectAltName 2>/dev/null | sed -n '2s/ *DNS://gp')
  if ! openssl x509 -in "$certificate" -noout -checkend 0 >/dev/null; then
    echo "$certificate expired on $(openssl x509 -in "$certificate" -noout -enddate -dateopt iso_8601 | cut -d= -f2)"
  fi
  for domain; do
    openssl x509 -in "$certificate" -noout -checkhost "$domain" | grep -q 'does match' ||
      echo "$certificate is not for $domain, but for ${names:-no name at all}"
  done
  if ! private=$(openssl pkey -in "$key" -passin pass: -pubout 2>/dev/null); then
    echo "$key is no private key in PEM form without a passphrase"
  elif [ "$public" != "$private" ]; then
    echo "$key is not the key of $certificate"
  fi
}
