#!/bin/sh
# Do other homeservers reach this one? By the public names, with a certificate that is trusted, and without a proxy.
#
# ask URL: prints what it answers; or, on one line, why it does not.
# reach SERVER_NAME PORT: prints "keys" and the homeserver's keys, or "problem" and why it is not reached.
ask() {
  # Of what curl says, the first line: there may be others, with advice about curl.
  said=$(curl -qsSf --noproxy '*' --max-time 5 "$1" 2>&1) || {
    echo "$(echo "$said" | head -n 1) ($1)"
    return 1
  }
  printf %s "$said"
}

reach() {
  found=$(ask "https://$1/.well-known/matrix/server") || {
    echo "problem $found"
    return
  }
  at=$(printf %s "$found" | tr -d '\n' | sed -n 's/.*"m\.server" *: *"\([^"]*\)".*/\1/p')
  found=$(ask "https://${at:-$1:$2}/_matrix/key/v2/server") || {
    echo "problem $found"
    return
  }
  printf %s "$found" | tr -d '\n' | sed 's/^/keys /'
}
