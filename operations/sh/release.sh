#!/bin/sh
# The files of a release arrive on the machine, in a directory of their own below /opt.
#
# $home: the release's directory below /opt, $title: the release and its version, $directory: that of these files in $home.
# make_room BYTES: makes $home, and fails, with a sentence, if they have no space there.
# listing: a line for each file and directory here. The files are not read on every run, which would take a second for Element Web:
# a file that was changed has another time, and a truncated one another size.
# receive PACKED SHA256 PROGRAM: makes the directory from standard input, a compressed archive as base64. PACKED: its SHA-256.
# SHA256: that of the file of the release page, which goes into $directory.sum with the checksum of the listing if this is an
# archive; of a single program, called PROGRAM, SHA256 is "".
make_room() {
  install -d -m 755 "$home"
  # Left by a power failure; a younger one may be an upload that is still running.
  find "$home" -mindepth 1 -maxdepth 1 -name '.arriving-*' -mmin +1440 -exec rm -rf -- {} +
  if [ "$(df -B1 --output=avail "$home" | tail -n 1)" -lt "$1" ]; then
    echo "$title: $home has no space for $1 bytes: not installed" >&2
    return 1
  fi
}

listing() {
  find . -mindepth 1 \( -type d -printf 'd %m %U %P\n' \) -o -printf '%y %m %U %s %T@ %P\n' | LC_ALL=C sort
}

receive() {
  umask 022
  cd "$home" || return 1
  new=$(mktemp -d .arriving-XXXXXXXXXX)
  # pyinfra sends everything before it reads: unread input would be an error of its own, and hide the message.
  trap 'rm -rf -- "$new"; cat >/dev/null' EXIT
  # These signals would end it without the trap above; PIPE comes when it prints to a closed connection.
  trap 'exit 1' HUP INT PIPE TERM
  base64 -d >"$new/packed"
  got=$(sha256sum <"$new/packed")
  if [ "${got%% *}" != "$1" ]; then
    echo "$title: it did not arrive as it was sent: not installed, run again" >&2
    return 1
  fi
  mkdir "$new/files"
  # --touch: web servers tell two versions of a file apart by their times.
  tar -xzf "$new/packed" -C "$new/files" --no-same-owner --preserve-permissions --touch
  # Otherwise a power failure could leave the name without the content. Not one by one: thousands of files take a minute.
  if [ "$2" ]; then
    echo "$2 $(cd "$new/files" && listing | sha256sum)" >"$new/sum"
    sync -f "$new/files"
  else
    sync "$new/files/$3"
  fi
  if [ -e "$directory" ]; then mv -T "$directory" "$new/damaged"; fi
  mv -T "$new/files" "$directory"
  [ ! "$2" ] || mv -fT "$new/sum" "$directory.sum"
}
