# make demo: set up, build the image `base`, run a command in its VM.   make test: everything that decides a merge.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STEP := scripts/step
AIRLOCK := $(CURDIR)/$(BIN)/airlock

.PHONY: demo test lint unit integration bench fuzz setup packages test-packages clean
.DEFAULT_GOAL := demo
# One after another, whatever -j says: apt is there once, and machines under TCG take all the processors there are.
.NOTPARALLEL:

demo: setup
	@$(STEP) "build the image base" $(AIRLOCK) build base
	@$(STEP) "run commands in a sandbox" scripts/demo $(AIRLOCK)

test: test-packages lint unit integration

lint: setup
	@$(STEP) "ruff check" $(BIN)/ruff check
	@$(STEP) "ruff format" $(BIN)/ruff format --check
	@$(STEP) "mypy" $(BIN)/mypy
	@$(STEP) "import rules" $(BIN)/lint-imports --no-logo

# A test of machines waits for much of its time: two at once take two thirds of it. Those of a file share machines.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

unit: test-packages setup
	@$(STEP) "unit tests" $(PYTEST) tests/unit $(PYTEST_ARGS)

integration: test-packages setup
	@$(STEP) "integration tests" $(PYTEST) $(wildcard tests/integration tests/security) $(PYTEST_ARGS)

bench: test-packages setup
	@for bench in bench/bench_*.py; do $(STEP) "$$bench" $(BIN)/python "$$bench" $(BENCH_ARGS) || exit; done

# Hostile bytes for a bounded time each; a finding fails it and is kept below .fuzz/.
FUZZ_SECONDS ?= 60
fuzz: setup
	@$(STEP) "fuzz targets" scripts/fuzz $(FUZZ_SECONDS)

setup: $(READY)

# Looked at every time, because packages come and go without make knowing. Takes a moment when nothing is missing.
packages:
	@scripts/system-packages

test-packages:
	@scripts/system-packages test

$(READY): pyproject.toml bin/airlock scripts/venv | packages
	@$(STEP) "virtual environment in $(VENV)" scripts/venv $(VENV)

# The store of images stays: `airlock store gc` is for that.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
