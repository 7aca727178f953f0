#!/bin/sh
# The least that a full deploy has to do: download, unpack and compile everything, in a plain script, one after the other. It
# configures nothing. Its arguments are the Debian packages. Locks and options are those of tasks/*.py and operations/;
# bench/full_deploy.py compares what both install, so that an outdated list is noticed.
#
# Runs on the machine, in a directory that has the repository's requirements/.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root
export PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

apt-get update -q
apt-get install -q -y --no-install-recommends -o Dpkg::Options::=--force-confold "$@"

cd requirements
python3 -m venv /opt/uv
/opt/uv/bin/pip install -q --no-cache-dir --require-hashes --only-binary :all: -r uv.txt

# install PROGRAM LOCK MODULE OPTION...
install() {
    program=$1 lock=$2 module=$3
    shift 3
    /opt/uv/bin/uv venv -q --no-cache --python /usr/bin/python3 "/opt/$program/current"
    /opt/uv/bin/uv pip install -q --python "/opt/$program/current" --require-hashes --no-cache \
        --only-binary :all: "$@" -r "$lock"
    # What is imported, as in operations/sh/virtualenv.sh.
    "/opt/$program/current/bin/python" -c "import $module"
    "/opt/$program/current/bin/python" -m compileall -qq -j 0 -x '/tests?/|/phonenumbers/[a-z]+data/' \
        "/opt/$program/current/lib" >/dev/null || true
}
install matrix-synapse synapse.txt synapse.app.homeserver
install sydent sydent.txt sydent.sydent --no-binary signedjson --build-constraints build.txt
