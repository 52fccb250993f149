# Longhaul's front door. `make run` and `make test` need nothing but Python 3.11 to 3.13 and make.
SHELL := /bin/sh
.DEFAULT_GOAL := help
# All targets share one .venv; `make -j` would build it twice at once.
.NOTPARALLEL:
# Container images like to set it; then every trainer and every test compiles its imports afresh.
unexport PYTHONDONTWRITEBYTECODE

# The first interpreter that fits and can make a virtual environment (Debian ships ensurepip apart).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# uv is fast; pip stands in on machines whose package index only pip has been told of.
install = $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) \
	|| $(BIN)/python -m pip install --quiet --disable-pip-version-check $(1)
BENCHMARKS := ingest history fleet checkpoint_overhead training
compile = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header $(ARGS)

.PHONY: help setup setup-dev run test soak live simulate fake-cloud bench check format docs lock clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/uv: locks/setup.txt
	@test -n "$(PYTHON)" || { \
		echo "Found no Python 3.11, 3.12 or 3.13 that can make virtual environments (modules venv and"; \
		echo "ensurepip). On Debian and Ubuntu: apt-get install python3-venv. Or name an interpreter:"; \
		echo "make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	@echo "Making $(VENV) with $$($(PYTHON) --version); the first time takes a minute or two"
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/setup.txt
	@touch $@

$(VENV)/.run: $(BIN)/uv locks/run.txt pyproject.toml
	@$(call install,--require-hashes -r locks/run.txt)
	@$(call install,--no-deps --no-build-isolation --editable .)
	@touch $@

$(VENV)/.dev: $(VENV)/.run locks/dev.txt
	@$(call install,--require-hashes -r locks/dev.txt)
	@touch $@

setup: $(VENV)/.run ## Make .venv from the lock: service, command line and trainer
setup-dev: $(VENV)/.dev ## The same with everything that tests and checks need

run: setup ## Run the demo: train, kill the trainer, recover, finish
	$(BIN)/longhaul demo $(ARGS)

test: setup-dev ## All tests but the long ones, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 60 --durations-min 4 $(ARGS)

soak: setup-dev ## The long tests that `make test` leaves out
	$(BIN)/python -m pytest -m soak --timeout 0 $(ARGS)

live: setup-dev ## The providers' contract against a host, project or bucket of yours; PROVIDER=ssh
	@case "$(PROVIDER)" in ssh|tpu|gcs) ;; \
		*) echo "Say which: make live PROVIDER=ssh, tpu or gcs. docs/development.md tells what each needs."; \
		exit 1;; esac >&2
	$(BIN)/python -m pytest -m live -p no:cacheprovider tests/live/test_live_$(PROVIDER).py $(ARGS)

simulate: setup-dev ## Simulated fault schedules with every invariant checked; SEEDS=200
	$(BIN)/python -m tests.scenarios.simulate --seeds $(or $(SEEDS),200) $(ARGS)

fake-cloud: setup-dev ## A Cloud TPU of our own on a local port; type what happens there
	$(BIN)/python -m tests.fakes.cloud_tpu $(ARGS)

bench: setup-dev ## Every benchmark, one line of JSON each; on a machine that does nothing else
	@for name in $(BENCHMARKS); do \
		echo "benchmarks.$$name" && $(BIN)/python -m benchmarks.$$name --json $(ARGS) || exit 1; done

check: setup-dev ## Lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: setup-dev ## Bring the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup-dev ## Write the pages of docs/ that come from the code
	$(BIN)/python docs/generate.py

lock: $(BIN)/uv ## Renew the locks after a change of dependencies; ARGS=--upgrade takes newer versions
	$(compile) --output-file locks/setup.txt locks/setup.in
	$(compile) --output-file locks/dev.txt --extra dev --extra gcp pyproject.toml
	$(compile) --output-file locks/run.txt --extra cpu --extra ssh --constraint locks/dev.txt pyproject.toml

clean: ## Remove .venv, builds and caches; runs and their checkpoints stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
