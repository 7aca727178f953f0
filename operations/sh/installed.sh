#!/bin/sh
# What is installed, for `manage.py NAME sbom`, in plain ASCII: licences are texts of many people's.
plain() { tr -cd '\11\12\40-\176'; }
# debian_licences: PACKAGE, a tab and a licence, for each that its copyright file names for files, where programs can read it
# (https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/). A paragraph of a licence alone has only its text.
debian_licences() {
  awk '
    function end() {
      if (readable && (files || header) && licence != "" && !((package, licence) in seen)) {
        seen[package, licence]
        print package "\t" licence
      }
      if (begun) header = 0
      files = begun = 0
      licence = ""
    }
    FNR == 1 { end(); readable = 0; header = 1; n = split(FILENAME, parts, "/"); package = parts[n - 1] }
    /^[ \t\r]*$/ { end(); next }
    { begun = 1 }
    tolower($0) ~ /^format(-specification)?:/ { if (header && tolower($0) ~ /copyright-format|dep-?5/) readable = 1 }
    tolower($0) ~ /^files:/ { files = 1 }
    tolower($0) ~ /^license:/ { licence = $0; sub(/^[^:]*:[ \t]*/, "", licence); sub(/[ \t\r]+$/, "", licence) }
    END { end() }' /usr/share/doc/*/copyright | plain
}
# python_packages: the metadata of what is in virtualenvs that are in use, and in those of uv, which has no `current`: "file PATH",
# then the lines with name, version and licence.
python_packages() {
  set --
  for file in /opt/*/current/lib/python3*/site-packages/*.dist-info/METADATA \
    /opt/uv/*/lib/python3*/site-packages/*.dist-info/METADATA; do
    [ ! -f "$file" ] || set -- "$@" "$file"
  done
  [ "$#" = 0 ] || awk '
    FNR == 1 { header = 1; wanted = 0; print "file " FILENAME }
    /^\r?$/ { header = 0 }
    header && /^[^ \t]/ { wanted = tolower($0) ~ /^((name|version|license|license-expression):|classifier: *license)/ }
    header && wanted' "$@" | plain
}
# release_files: NAME, DIRECTORY in use, and the sha256 of the file that was installed: an archive is unpacked, so it is what was
# noted then (operations/releases.py).
release_files() {
  for current in /opt/*/current; do
    if [ ! -L "$current" ] || [ -e "$current/pyvenv.cfg" ]; then continue; fi
    home=${current%/current} directory=$(readlink "$current")
    if [ -e "$home/$directory.sum" ]; then
      sum=$(cat "$home/$directory.sum")
    else
      sum=$(sha256sum <"$current/${home##*/}")
    fi
    echo "${home##*/} $directory ${sum%% *}"
  done | plain
}
