#!/bin/sh
# A client on the machine itself, by the public name in $domain. The body of its log-in is the first line of standard input.
log_in() {
  read -r body
  answer=$(printf %s "$body" | client -d @- "https://$domain/_matrix/client/v3/login")
  token=$(printf %s "$answer" | sed -n 's/.*"access_token" *: *"\([^"]*\)".*/\1/p')
  [ "$token" ] || { echo "the log-in was refused: $answer" >&2 && return 1; }
  asked account/whoami && asked logout -d '{}'
}

client() { curl -qsSk --noproxy '*' --max-time 20 -H 'Content-Type: application/json' --resolve "$domain:443:127.0.0.1" "$@"; }

# asked PATH OPTION...: with the token, which is on no command line.
asked() {
  path=$1
  shift
  answer=$(printf 'header = "Authorization: Bearer %s"' "$token" |
    client -K - "$@" "https://$domain/_matrix/client/v3/$path")
  case $answer in *errcode* | '') echo "$path: $answer" >&2 && return 1 ;; esac
}
