#!/bin/sh
# listing: a checksum of the list of the files in the directory of a virtualenv, which .complete has: they are not read, which
# would take seconds. Python may write into __pycache__ again, if somebody runs it as root.
listing() {
  find . -name __pycache__ -prune -o -path ./.complete -o -type d -printf 'd %m %U %P\n' -o -printf '%y %m %U %s %T@ %l %P\n' \
    | LC_ALL=C sort | sha256sum
}
# build: what the transient unit runs. It starts with an empty directory each time, and writes .complete at its end.
# $venv: the directory; $venv.build has what was uploaded. $uv: that of uv. $imports: a module that must be importable.
# $options: of uv.
build() {
  set -eu
  umask 022
  # Units inherit the machine's language.
  export LC_ALL=C.UTF-8
  # pip and uv do not use the machine's certificate authorities by default.
  export PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
  export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore HOME=/root
  cd "$venv.build"
  # Units do not see the proxy of the machine. In a file, because everybody can read the properties of a unit.
  # shellcheck disable=SC1091
  . ./proxy
  # One after the other, in the order in which they were begun: the first is waited for first, and each of them can use all
  # processors. The lock is where only root writes and reads.
  umask 077
  exec 9>>/opt/uv/lock
  chmod 600 /opt/uv/lock
  umask 022
  flock 9
  # uv and pip have locks of their own, which everybody could take: in the virtualenv, and perhaps in /tmp.
  mkdir -m 700 tmp
  export TMPDIR="$PWD/tmp"
  if [ ! -e "$uv/.complete" ] || ! "$uv/bin/uv" --version >/dev/null 2>&1; then
    rm -rf "$uv"
    python3 -m venv --without-pip "$uv"
    # The pip that Debian has for virtualenvs, as it is: to install it into one takes longer than all that it does here.
    wheel=$(ls /usr/share/python-wheels/pip-*.whl)
    "$uv/bin/python" "$wheel/pip" install -q --no-cache-dir --require-hashes --only-binary :all: -r uv.txt
    touch "$uv/.complete"
  fi
  rm -rf "$venv"
  mkdir -m 700 "$venv"
  "$uv/bin/uv" venv -q --no-cache --python /usr/bin/python3 "$venv"
  # shellcheck disable=SC2086 # several words
  "$uv/bin/uv" pip install -q --python "$venv" --require-hashes --no-cache $options -r requirements.txt
  "$venv/bin/python" -c "import $imports"
  # So that programs start faster. Not two fifths of all, which no service imports: tests, and the places of telephone numbers.
  # Some files are no code: templates, and tests of other versions of Python.
  "$venv/bin/python" -m compileall -qq -j 0 -x '/tests?/|/phonenumbers/[a-z]+data/' "$venv/lib" >/dev/null || true
  cd "$venv"
  rm -f .lock
  chmod 755 .
  complete=$(listing)
  echo "$complete" >.complete
  rm -rf "$venv.build"
}
# await_build UNIT PATIENCE PROGRAM: waits up to PATIENCE seconds for the unit that builds $venv.
await_build() {
  end=$(($(date +%s) + $2))
  while systemctl is-active "$1" | grep -qE '^(active|activating)$' && [ "$(date +%s)" -lt "$end" ]; do sleep 0.2; done
  [ ! -e "$venv/.complete" ] || return 0
  echo "$3: the virtualenv could not be built; the end of its log:" >&2
  journalctl -u "$1" -n 20 --no-pager -o cat >&2 || true
  return 1
}
# switch KEPT: makes `current` lead to $venv. Virtualenvs are large: of the others only KEPT stays, the previous one, and the one to
# which there is a way back (program.sh).
switch() {
  cd "${venv%/*}"
  # shellcheck disable=SC2154 # of program.sh
  back=$(cat "$kept/from" 2>/dev/null) || back=$1
  ln -sfn "${venv##*/}" current.new
  mv -fT current.new current
  for old in *-py3.*; do
    case $old in "${venv##*/}" | "$1" | "$back" | *.build) ;; *) rm -rf -- "$old" ;; esac
  done
}
