#!/bin/sh
# What is wrong with certificate files that the administrator put on the machine.
#
# check_file FILE: can Caddy and openssl read it? On a new machine Caddy's user does not exist yet, but the administrator can make
# its group.
# check_pair CERTIFICATE KEY DOMAIN...: is the certificate valid now, for all the domains, and does the key belong to it?
#
# $caddy: set if Caddy has to read them. hidden FILE: whether Caddy's unit hides the file from Caddy.
check_file() {
  if [ ! -f "$1" ]; then
    echo "$1 is not on the machine; put it there"
  elif [ "$caddy" ] && hidden "$1"; then
    echo "$1 is in a directory that is hidden from services; move it, to /etc/ssl for example"
  elif [ "$caddy" ] && ! as_caddy test -r "$1"; then
    echo "$1 is not readable by Caddy; on the machine: groupadd -rf caddy; chgrp caddy $1; chmod 640 $1"
  elif ! command -v openssl >/dev/null; then
    echo "$1 cannot be checked; on the machine: apt install openssl"
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
check_pair() {
  certificate=$1 key=$2
  shift 2
  if ! public=$(openssl x509 -in "$certificate" -noout -pubkey 2>/dev/null); then
    echo "$certificate is not a certificate in PEM form"
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
    echo "$key is not a private key in PEM form without a passphrase"
  elif [ "$public" != "$private" ]; then
    echo "$key is not the key of $certificate"
  fi
}
