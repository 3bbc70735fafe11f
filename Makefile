# The two commands of the README, and what contributors use. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
PLAN ?= examples/nightly-cpu.toml
SLURM_PLAN ?= examples/nightly-slurm.toml
# Decides which torch a machine without a GPU takes. `make setup CONSTRAINTS=` leaves the choice to pip.
CONSTRAINTS ?= constraints/cpu.txt

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS))
CXX_SOURCES := $(foreach kind,cpp hpp cu cuh,$(wildcard ep_core/csrc/*.$(kind) ep_core/csrc/*/*.$(kind)))
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt $(CONSTRAINTS) \
	$(CXX_SOURCES) $(wildcard ep_core/csrc/*/CMakeLists.txt)
BENCHMARKS := host_engine command_start history web gate detection attribution calibration nodes orchestration
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup nightly nightly-slurm test test-slow test-long lint format bench gpu-check clean

help:  ## What can be made here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## ?/\1\t/' | expand -t 14

setup: $(READY)  ## The virtual environment, the dependencies, the extension

$(READY): $(BUILD_INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "epwatch needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@command -v c++ >/dev/null || { echo "epwatch needs a C++20 compiler (c++): install g++ 11 or clang 14 or newer" >&2; exit 2; }
	@echo "Setting up $(VENV): dependencies and the extension; the first time takes a minute or two."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --editable '.[test,dev]'
	@touch $@

nightly: setup  ## A real nightly on this machine, twice: the second night is judged against the first
	$(BIN)/epwatch nightly $(PLAN)
	$(BIN)/epwatch nightly $(PLAN)

nightly-slurm: setup  ## A real nightly on a Slurm of its own, two nodes on this machine (needs Debian's Slurm packages)
	@folder=$$(mktemp -d /tmp/epwatch-XXXXXX) && trap '$(BIN)/epwatch slurm down --folder "$$folder/slurm"; rm -rf "$$folder"' EXIT \
	&& $(BIN)/epwatch slurm up --nodes 2 --cpus 2 --folder "$$folder/slurm" \
	&& SLURM_CONF="$$folder/slurm/slurm.conf" $(BIN)/epwatch nightly $(SLURM_PLAN) --new

test: setup  ## The fast tests
	$(PYTEST) -m "not slow and not long and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup  ## The tests that take minutes or many processes
	$(PYTEST) -m "slow and not long and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

test-long: setup  ## Variants and hard days repeated: every night, not for each change
	$(PYTEST) -m "long and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

lint: setup  ## ruff, mypy, the layering of the rooms, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES) benchmarks/*.cu

format: setup  ## Put Python and C++ into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES) benchmarks/*.cu

bench: setup  ## Every figure that the documents quote, measured here and now, beside its peers
	@$(PIP_INSTALL) --editable '.[test,dev,bench]'
	@set -e; for name in $(BENCHMARKS); do echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py; done
	@echo "== benchmarks/cuda_engine.py"; $(BIN)/python benchmarks/cuda_engine.py --if-gpu

gpu-check:  ## On a machine with one or two GPUs: build, test and measure with PYTHON=python3; logs in OUT=folder
	@$(PYTHON) tests/cuda/gpu_check.py

clean:  ## Remove what make made here; the history stays
	rm -rf $(VENV) build dist *.egg-info ep_core/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
