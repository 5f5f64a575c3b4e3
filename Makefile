# Everything a developer runs. Needs python3 (3.11 or newer, with venv), git and make; the tests need
# a C compiler too. Python packages come in the versions and with the hashes that requirements/ pins.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
#: How many test processes run side by side.
WORKERS ?= 2
#: More arguments for pytest: make test ARGS="-k cancel"
ARGS ?=
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
#: vLLM has an environment of its own, with its own torch
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.installed

.PHONY: help demo test test-vllm compiler pytest-command quick chaos check lint types imports generate generated docs unused scan compliance lock bench bench-check wheel clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# --- environments --------------------------------------------------------------------------------

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"llama-orch needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Say PYTHON=/path/to/python3.11.")'
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): requirements/runtime.txt requirements/build.txt pyproject.toml | $(BIN)/python
	$(PIP) --require-hashes -r requirements/runtime.txt -r requirements/build.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements/dev.txt requirements/triton.txt $(RUNTIME)
	$(PIP) --require-hashes -r requirements/dev.txt
	$(PIP) --no-deps --require-hashes -r requirements/triton.txt # its server alone is run, not its Python
	@touch $@

lock: $(DEV) ## resolve the pinned requirements again
	tools/lock.sh

# --- use -----------------------------------------------------------------------------------------

demo: $(RUNTIME) ## a haiku from the bundled model, on a server that lives as long as the call
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	unset LLORCH_URL LLORCH_CONFIG; XDG_CONFIG_HOME="$$dir" LLORCH_DATA_DIR="$$dir/data" \
	    $(BIN)/llama-orch run "Write a haiku about rain"

# --- checks --------------------------------------------------------------------------------------

test: check compiler ## everything: the checks, then all tests
	$(PYTEST) $(ARGS)

compiler:
	@command -v cc >/dev/null || command -v gcc >/dev/null || { echo 'make test: the tests build small C programs and found neither cc nor gcc. Install a C compiler (Debian, Ubuntu: apt-get install gcc libc6-dev).' >&2; exit 2; }

test-vllm: $(DEV) $(VLLM_READY) ## the vllm plugin against real vLLM on processors (2.5 GB to install, some minutes)
	LLAMA_ORCH_VLLM_PYTHON="$(CURDIR)/$(VLLM)/bin/python" $(BIN)/python -m pytest tests/engines/vllm/contract.py $(ARGS)

# The companions of torch that vLLM asks for do not fit torch's build for processors: they go once all is resolved.
$(VLLM_READY): tests/engines/vllm/requirements.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r $< || { echo "make test-vllm: pip has to find torch's build for processors (torch==2.13.0+cpu), which PyPI does not have: name an index of PyTorch's in PIP_EXTRA_INDEX_URL, or a directory with the wheel in PIP_FIND_LINKS." >&2; exit 2; }
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@

pytest-command: # for .ci/run, whose last line is pytest's
	@echo $(PYTEST)

quick: $(DEV) ## the tests that take seconds
	$(PYTEST) -m "not slow" tests/unit tests/property $(ARGS)

chaos: $(DEV) ## kill servers, engines and pool-managerd, as often as the bars say (an hour)
	CHAOS_KILLS=200 CHAOS_POSTGRESQL_KILLS=20 CHAOS_LLAMA_KILLS=20 CHAOS_POOL_KILLS=50 CHAOS_POOL_LLAMA_KILLS=10 $(BIN)/python -m pytest -s -m chaos tests/chaos $(ARGS)

check: lint types imports generated compliance unused scan docs ## everything but the tests

lint: $(DEV) ## ruff: rules and format
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet

types: $(DEV) ## mypy --strict and pyright
	$(BIN)/mypy
	$(BIN)/pyright --warnings

imports: $(DEV) ## who may import whom
	$(BIN)/lint-imports --no-cache

generate: $(DEV) ## write every generated file
	$(BIN)/python tools/generate.py --write

generated: $(DEV) ## every generated file is up to date
	$(BIN)/python tools/generate.py --check

compliance: $(DEV) ## every proof that docs/requirements.toml names exists
	$(BIN)/python tools/proofs.py

docs: $(DEV) ## run the commands that the documentation shows, and compare
	$(BIN)/python tools/docs_run.py

unused: $(DEV) ## no code that nothing uses
	$(BIN)/python tools/unused.py

scan: $(DEV) ## no secret, machine path or index address in any file
	$(BIN)/python tools/scan.py

# --- measuring and shipping ----------------------------------------------------------------------

bench: $(DEV) ## measure side by side with the peers
	$(BIN)/python -m benchmarks $(ARGS)

bench-check: $(DEV) ## measure, and hold the results against the bars
	$(BIN)/python -m benchmarks.check $(ARGS)

wheel: $(DEV) ## wheel and source archive, with checksums, in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	cd dist && sha256sum *.whl *.tar.gz > SHA256SUMS && cat SHA256SUMS

clean: ## remove the environment and what builds and checks leave behind
	rm -rf $(VENV) $(VLLM) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
