#!/bin/sh
# put PATH OWNER MODE CHECK: the file has the content that is read, in base64. It is written beside the old one, where only root can
# read it, and moved into its place when it is complete. CHECK: a shell command about "$new" that must succeed before, or "".
put() {
  new=$(mktemp "${1%/*}/.${1##*/}.XXXXXX")
  trap 'rm -f "$new"' EXIT
  base64 -d >"$new"
  chown "$2" "$new"
  chmod "$3" "$new"
  [ -z "$4" ] || (eval "$4") </dev/null
  mv -fT "$new" "$1"
}
