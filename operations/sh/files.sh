#!/bin/sh
# Files are put in place. This is the beginning of a script on standard input, which has their contents as well. If it ends early,
# it reads what is left: whoever sends that would fail, and hide why this did.
#
# put PATH OWNER MODE CHECK: the file has the content that is read, in base64. It is written beside the old one, where only root can
# read it, and moved into its place when it is complete. CHECK: a shell command about "$new" that must succeed before, or "".
new=
trap 'rm -f "$new"; cat >/dev/null' EXIT
put() {
  new=$(mktemp "${1%/*}/.${1##*/}.XXXXXX")
  base64 -d >"$new"
  chown "$2" "$new"
  chmod "$3" "$new"
  [ -z "$4" ] || (eval "$4") </dev/null
  mv -fT "$new" "$1"
}
