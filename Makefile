# Every target makes its own environment first: `make demo` is enough on a machine with Python (3.10 to 3.13) and make.
PYTHON ?= python3
VENV ?= .venv
# Tests run in one process per worker; each stays on one thread (small networks are several times slower on two).
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test learning-tests ray-tests lint type format docs benchmarks clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

# The stamps are renewed when a dependency changes; the project itself is an editable install and needs no renewal.
$(VENV)/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[zoo,viz,ray,dev]'
	touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp
	$(PIP) -e '.[docs]'
	touch $@

$(VENV)/.stamp-benchmarks: $(VENV)/.stamp
	$(PIP) -e '.[benchmarks]'
	touch $@

demo: $(VENV)/.stamp ## Train a recurrent DQN, load it in a fresh process, score it, plot its learning curve
	$(BIN)/python examples/demo.py

test: lint type ## Lint, types and the default tests
	$(BIN)/python -m pytest -n $(WORKERS)

learning-tests: $(VENV)/.stamp ## The slow tests: train several seeds of each task to its bar
	$(BIN)/python -m pytest -n $(WORKERS) -m learning

ray-tests: WORKERS = 1
ray-tests: $(VENV)/.stamp ## The tests that start Ray clusters, which would compete for the processors
	$(BIN)/python -m pytest -n $(WORKERS) -m ray

lint: $(VENV)/.stamp ## Style and formatting, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.stamp ## Static types
	$(BIN)/mypy

format: $(VENV)/.stamp ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.stamp-docs ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmarks: $(VENV)/.stamp-benchmarks ## Run the benchmarks
	$(BIN)/python -m benchmarks

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache
