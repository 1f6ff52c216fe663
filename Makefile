# Every target makes its own environment first: `make demo` needs only Python (3.10 to 3.13) and make.
PYTHON ?= python3
VENV ?= .venv
# What ours is compared with, whose versions need Python 3.11 or newer
PEERS ?= .venv-peers
PEERS_PYTHON ?= $(PYTHON)
# Tests run in one process per worker, each on one thread: small networks are several times slower on two.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python $(INSTALL) -c constraints.txt
PEER := $(PEERS)/bin/python

.PHONY: help demo test learning-tests ray-tests mutants lint type format docs notebooks benchmarks benchmarks-quick clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

# A stamp is renewed when a dependency changes. The project itself is an editable install, which needs no renewal.
$(VENV)/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[zoo,viz,ray,dev]'
	touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp
	$(PIP) -e '.[docs]'
	touch $@

$(VENV)/.stamp-notebooks: $(VENV)/.stamp
	$(PIP) -e '.[notebooks]'
	touch $@

$(VENV)/.stamp-benchmarks: $(VENV)/.stamp
	$(PIP) -e '.[benchmarks]'
	touch $@

$(PEERS)/.stamp: benchmarks/peers/constraints.txt
	$(PEERS_PYTHON) -c 'import sys; sys.exit("PEERS_PYTHON has to be 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PEERS_PYTHON) -m venv $(PEERS)
	$(PEER) $(INSTALL) -c $< tianshou torchrl cpprb
	touch $@

demo: $(VENV)/.stamp ## Train a recurrent DQN, load it in a fresh process, score it, plot its learning curve
	$(BIN)/python examples/demo.py

test: lint type ## Lint, types and the default tests; shows the 15 slowest
	$(BIN)/python -m pytest -n $(WORKERS) --durations=15

learning-tests: $(VENV)/.stamp ## The slow tests: train several seeds of each task to its threshold
	$(BIN)/python -m pytest -n $(WORKERS) -m learning

ray-tests: WORKERS = 1
ray-tests: $(VENV)/.stamp ## The tests that start Ray clusters, which would compete for the processors
	$(BIN)/python -m pytest -n $(WORKERS) -m ray

mutants: $(VENV)/.stamp ## Break the package one line at a time; a test has to notice each
	$(BIN)/python tests/mutants.py --jobs $(WORKERS)

lint: $(VENV)/.stamp ## Style, formatting and spelling, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: $(VENV)/.stamp ## Static types
	$(BIN)/mypy

format: $(VENV)/.stamp ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.stamp-docs ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/.stamp-notebooks ## Run the notebooks of examples/ in full, by a Jupyter kernel
	$(BIN)/jupyter execute --kernel_name=python3 examples/notebooks/*.ipynb

benchmarks: $(VENV)/.stamp-benchmarks $(PEERS)/.stamp ## Measure ours, peers and limits again (20 minutes), into benchmarks/results
	$(BIN)/python -m benchmarks comparisons --again --jobs $(WORKERS) --peers $(PEER)

benchmarks-quick: $(VENV)/.stamp-benchmarks $(PEERS)/.stamp ## Run all benchmarks with short settings, which show only that they run
	$(BIN)/python -m benchmarks --quick --peers $(PEER)

clean: ## Remove the environments and everything that was built
	rm -rf $(VENV) $(PEERS) build dist site .mypy_cache .pytest_cache .ruff_cache
