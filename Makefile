# `make setup` makes .venv from the hash-pinned lock; every other target calls it.
# Debian's own Python where it will do: it is built for speed, which a Python that somebody compiled often is not.
PYTHON ?= $(shell /usr/bin/python3 -c 'import ensurepip, sys; print(sys.executable if sys.version_info >= (3, 11) else "python3")' 2>/dev/null || echo python3)
VENV := .venv
BIN := $(VENV)/bin
LOCKED := --universal --generate-hashes --python-version 3.11 --no-header --quiet
# uv takes a fifth of the time; pip knows more ways out, from its own configuration.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes
COMPILE := $(BIN)/uv pip compile $(LOCKED) $(if $(UPGRADE),--upgrade)

# Tests run the project a thousand times, as it is in this directory: what Python has compiled of it is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo demo-stop check test prepare lint unit faults security render bench lock

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.complete ## Make .venv from requirements.lock

$(VENV)/.complete: requirements.lock
	@echo "Making $(VENV) from requirements.lock ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d" % sys.version_info[:2])'
	@# One that another Python made before is emptied: it would be neither.
	@grep -qsx "executable = $$($(PYTHON) -c 'import os, sys; print(os.path.realpath(sys.executable))')" $(VENV)/pyvenv.cfg || other=--clear; \
	$(PYTHON) -m venv $$other $(VENV) || { echo "Python's venv module is missing: apt install python3-venv" >&2; exit 1; }
	@$(PIP) -r requirements/uv.txt
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock 2>/dev/null || $(PIP) -r requirements.lock
	@touch $@

demo: setup ## Deploy everything to a throw-away Debian host
	@$(BIN)/python -m demo

demo-stop: setup ## Remove the throw-away host of `make demo`
	@$(BIN)/python -m tests.testbed down demo

# Side by side; what lint finds is shown among the dots of the tests.
check: setup ## Lint, types, unit tests, rendered files, shell, spelling: no machine needed
	@$(MAKE) --no-print-directory -j 2 lint unit

# Meanwhile, and without a word: the first host says what is wrong.
prepare: setup
	@$(BIN)/python -m tests.testbed prepare >/dev/null 2>&1 &

# More at once than there are processors, because most of them wait for machines.
test: setup prepare lint ## All tests; ROLE=coturn: those of one role; BOTH=1: on both releases also what is the same on them
	@$(BIN)/pytest -n 3 --durations=25 --durations-min=5 $(if $(ROLE),--role $(ROLE)) $(if $(BOTH),--both)

# Python whose name does not say so.
SCRIPTS := templates/coturn/run-alone templates/synapse/run-synapse templates/synapse/synapse-housekeeping templates/synapse/synapse-reports \
	$(addprefix templates/backup/,backup restore) templates/takeover/takeover templates/ports/reserve-ports templates/monitoring/matrix-metal-figures \
	$(addprefix tests/standin/,syncv3 mas-cli livekit-server lk-jwt-service)
lint: setup
	@$(BIN)/ruff check --quiet . $(SCRIPTS)
	@$(BIN)/ruff format --quiet --check . $(SCRIPTS)
	@$(BIN)/mypy --no-error-summary .
	@$(BIN)/shellcheck $$(git ls-files '*.sh' .ci/run templates/certificates/present-certificate templates/backup/keep-for-pgbackrest)
	@$(BIN)/codespell $$(git ls-files ':!*.lock' ':!requirements' ':!LICENSE' ':!settings/join_page.py')

unit: setup ## The tests that need no machine
	@$(BIN)/pytest -n 2 -q tests/unit

faults: setup ## Break throw-away homeservers while clients write, and write docs/reliability.md
	@$(BIN)/python -m tests.faults

security: setup ## Attack throw-away homeservers from a second host, and write the figures of docs/security.md
	@$(BIN)/python -m tests.security

OUT ?= .cache/render
render: setup ## Write every file of a few sample deployments into .cache/render, or OUT=DIRECTORY
	@$(BIN)/python -m tests.render '$(OUT)'

bench: setup ## Measure: deploy, re-run, memory, requests, relay, federation, upgrade, backup
	@$(BIN)/python -m bench

lock: setup ## Write the locks anew, with as few changes as possible; UPGRADE=1: with the newest of all
	@$(COMPILE) pyproject.toml --extra dev --output-file requirements.lock
	@cd requirements && for lock in build uv synapse; do ../$(COMPILE) --only-binary :all: $$lock.in --output-file $$lock.txt; done
	@cd requirements && ../$(COMPILE) --only-binary :all: --no-deps antispam.in --output-file antispam.txt
	@cd requirements && ../$(COMPILE) --only-binary :all: --no-binary signedjson --build-constraints build.txt sydent.in --output-file sydent.txt
