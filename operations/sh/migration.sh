#!/bin/sh
# The program that moves accounts, and what happens to it and to Synapse when the run that has started it is gone.
migration=matrix-metal-migration

# What an interrupted run has left.
end_earlier() { systemctl stop "$migration.scope" "$migration-end.service" 2>/dev/null || true; }

# run_guarded PROGRAM: runs a shell program. When the run's lock (lock.sh) is free, because the run is over or the connection is cut,
# the program is ended and Synapse started. If there is no lock, nobody notices that.
run_guarded() {
  lock=/run/matrix-metal/run
  if [ -e $lock ] && ! flock -n $lock true; then
    systemd-run --quiet --collect --unit="$migration-end" sh -c \
      "flock $lock true; systemctl stop $migration.scope; systemctl start matrix-synapse"
  fi
  exec systemd-run --quiet --scope --collect --unit="$migration" sh -c "$1"
}
