PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

# The stamps say what .venv holds; they are older than the files below when it must be made anew.
MADE := $(VENV)/made.stamp
RUNTIME := $(VENV)/runtime.stamp
TOOLS := $(VENV)/tools.stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

# Processes start by the hundred here: modules are compiled once, not by each of them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup dev demo test long lint format types fuzz cluster chaos clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(RUNTIME)  ## make .venv and install raymtl into it

dev: $(TOOLS)  ## the same, with the development tools

demo: $(RUNTIME)  ## generate a log, train STEM-Net on 2 workers, kill one, evaluate
	$(BIN)/python -m raymtl_jobs.demo

test: $(TOOLS)  ## ruff, pyright, pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long" --durations 20

long: $(TOOLS)  ## the tests that `make test` leaves out for their length
	$(BIN)/python -m pytest -n 2 --dist loadfile -m long

lint: $(TOOLS)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(TOOLS)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(TOOLS)  ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

fuzz: $(TOOLS)  ## 10,000 bad files and requests for every loader; an hour or more
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n 2 --timeout 0 tests/fuzz

cluster: $(TOOLS)  ## every verb as a job on three local Ray nodes, with a token
	$(BIN)/python benchmarks/cluster.py

chaos: $(TOOLS)  ## kill, stop and drain what trains on three local Ray nodes
	$(BIN)/python benchmarks/chaos.py

clean:  ## remove .venv, builds and caches; runs stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name '__pycache__' -prune -exec rm -rf {} +
	find . -name '*.egg-info' -prune -exec rm -rf {} +

$(MADE):
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not installed" >&2; \
	  echo "  do: apt-get install python3.11 python3.11-venv, or make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=... " >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments" >&2; \
	  echo "  do: apt-get install $(notdir $(PYTHON))-venv" >&2; \
	  exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(RUNTIME): $(MADE) pyproject.toml constraints.txt
	@echo "installing raymtl into $(VENV); the first time takes minutes"
	$(PIP) -e .
	@touch $@

$(TOOLS): $(RUNTIME) pyproject.toml constraints.txt
	@echo "installing the development tools into $(VENV)"
	$(PIP) -e '.[dev]'
	@touch $@
