# Longhaul's front door. `make run` and `make test` need nothing but Python 3.11 to 3.13 and make.
SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 10000

.PHONY: help setup setup-dev run test check format lock bench soak clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/uv: locks/setup.txt
	@test -n "$(PYTHON)" || { echo "Longhaul needs Python 3.11, 3.12 or 3.13; found none. Name one: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/setup.txt
	@touch $@

$(VENV)/.run: $(BIN)/uv locks/run.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r locks/run.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run locks/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r locks/dev.txt
	@touch $@

setup: $(VENV)/.run ## Make .venv from the lock: service, command line and trainer
setup-dev: $(VENV)/.dev ## The same with everything that tests and checks need

run: setup ## Run the demo: train, kill the trainer, recover, finish
	$(BIN)/longhaul demo $(ARGS)

test: setup-dev ## All tests, under 10 minutes on 2 cores
	$(BIN)/python -m pytest $(ARGS)

check: setup-dev ## Lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
