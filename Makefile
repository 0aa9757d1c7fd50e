# replicad: `make` lists the targets.
#
# Everything runs in .venv, which the first target that needs it creates; nothing outside this directory is
# touched, except that `make test` installs missing Debian packages when it runs as root.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Test processes: one more than there are cores, because daemons under test wait for one another; 0 runs the tests in one
# process (better for debugging).
WORKERS ?= $(shell echo $$(($$(nproc) + 1)))

.DEFAULT_GOAL := help
.PHONY: help demo test check unit format bench campaign packages constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## two daemons on loopback: replicate, change, restore, compare
	$(BIN)/replicad demo

test: packages check unit ## everything a change must pass

check: $(STAMP) ## lint, format, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

unit: $(STAMP) ## the tests alone; ARGS="tests/test_config.py -x" to choose
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

format: $(STAMP) ## bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## speed and memory against rsync; ARGS="scrub" for scrubs against dd, xxhsum, restic, borg, fio
	$(BIN)/python tests/bench.py $(ARGS)

campaign: packages $(STAMP) ## thousands of real faults under a workload and kills, as root; ARGS="--seed N --faults N"
	$(BIN)/python tests/campaign.py $(ARGS)

packages: ## Debian packages that the tests drive (installs as root, tells otherwise)
	@PYTHON=$(PYTHON) tests/install-packages

constraints: $(STAMP) ## freeze the versions of this environment into constraints.txt
	$(BIN)/pip freeze --exclude-editable > constraints.txt

clean: ## remove the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "replicad needs Python 3.11 or newer; say make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || PYTHON=$(PYTHON) tests/install-packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
