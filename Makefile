# Everything a target needs, it sets up itself, in .venv. `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

BIN := .venv/bin
STAMP := .venv/.installed

# pip's own settings (index, find-links, proxies) stay in force, so torch comes as the build that
# they offer. Its remarks go to a log, whose end is shown when it fails.
pip_install = @$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(1) \
    >>.venv/pip.log 2>&1 || { tail -n 20 .venv/pip.log >&2; exit 1; }

PROTOC = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto \
    $$(find proto -name '*.proto') \
    --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1)

NO_NIXL = 'NIXL is not there (.venv/pip.log says why): its tests will be skipped'

# The checks print one verdict each; this puts the name of the check before it.
say = @printf '%-10s ' '$(1)'

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' Makefile

# --- setting up ----------------------------------------------------------------------------------

.PHONY: env
env: $(STAMP) ## create .venv with everything for development (PYTHON=... chooses the interpreter)
	@echo '.venv is ready'

# A python3 of the tested versions comes first, then the others by name, then anything newer. Each
# is run, not only looked up: a name on PATH may be a version manager's shim with nothing behind it.
$(STAMP): pyproject.toml constraints.txt
	@find_python() { \
	    for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	        "$$python" -c "import ensurepip, sys, venv; \
	            sys.exit(not (3, 11) <= sys.version_info < $$1)" 2>/dev/null || continue; \
	        echo "$$python"; return; \
	    done; \
	    return 1; \
	}; \
	if ! $(BIN)/python -c '' 2>/dev/null; then \
	    python=$$(find_python '(3, 14)' || find_python '(4,)') || { \
	        echo 'make env: found no Python >= 3.11 with venv; name one with PYTHON=...' >&2; \
	        exit 1; \
	    }; \
	    echo "creating .venv with $$("$$python" --version)"; \
	    "$$python" -m venv --clear .venv; \
	fi
	@echo 'installing torch (the largest part; .venv/pip.log tells how far it is)'
	$(call pip_install,torch setuptools wheel)
	@echo 'installing Baton and its tools'
	$(call pip_install,--no-build-isolation -e '.[dev]')
	@echo 'installing NIXL (450 MB; goes on without it where there is no wheel)'
	@{ $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt nixl && \
	    $(BIN)/python -c 'import nixl'; } >>.venv/pip.log 2>&1 || echo $(NO_NIXL)
	@$(BIN)/python -c 'import torch; cuda = torch.version.cuda; \
	    print("torch", torch.__version__, f"for CUDA {cuda}" if cuda else "for the CPU", end=": ")'
	@du -sh .venv/lib/python*/site-packages/torch | cut -f 1 | tr '\n' ' '
	@echo "of the $$(du -sh .venv | cut -f 1) in .venv"
	@touch $@

.PHONY: proto
proto: $(STAMP) ## regenerate baton/v1 from proto/
	@rm -f baton/v1/*_pb2*
	@$(call PROTOC,.)

# --- checking ------------------------------------------------------------------------------------

.PHONY: check static format lint types contracts proto-check unit
check: static unit ## format, lint, types, import contracts, stubs, unit tests
static: format lint types contracts proto-check

format: $(STAMP)
	$(call say,$@)
	@$(BIN)/ruff format --check .

lint: $(STAMP)
	$(call say,$@)
	@$(BIN)/ruff check .

types: $(STAMP)
	$(call say,$@)
	@$(BIN)/mypy

contracts: $(STAMP)
	$(call say,$@)
	@report=$$($(BIN)/lint-imports --no-logo) || { echo "$$report"; exit 1; }; tail -n 1 <<<"$$report"

proto-check: $(STAMP)
	$(call say,stubs)
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(call PROTOC,"$$fresh"); \
	diff -r -x __init__.py -x __pycache__ "$$fresh/baton/v1" baton/v1 || { \
	    echo 'baton/v1 is not what proto/ generates: run make proto' >&2; exit 1; \
	}; \
	echo 'baton/v1 is what proto/ generates'

unit: $(STAMP)
	$(call say,unit)
	@$(BIN)/python -m pytest -q -n auto tests/unit

.PHONY: test
test: $(STAMP) ## all tests (those that need a GPU are skipped without one)
	@$(BIN)/python -c 'import nixl' 2>/dev/null || echo $(NO_NIXL)
	@$(BIN)/python -m pytest -q -n auto tests/unit tests/engine tests/transfer tests/gpu
	@$(BIN)/python -m pytest -q tests/faults tests/cluster

# Ends with one line of JSON; fails where a request hangs, a block leaks or a wrong byte is decoded.
.PHONY: faults
faults: N = 10000
faults: SEED = 1
faults: $(STAMP) ## N transfers (10000) with random faults of every kind, dealt by SEED (1)
	@$(BIN)/python -m tests.faults $(N) $(SEED)

# Prints how soon the next token came after each kill, and when what was killed was back.
.PHONY: deaths
deaths: N = 10
deaths: $(STAMP) ## kill -9 of workers and routers under load, N times each (10)
	@$(BIN)/python -m pytest -q -s --timeout 1800 --deaths $(N) tests/cluster/test_disaggregated_deaths.py

# Runs on a GPU machine as it is: no .venv, no network, no plugins of pytest.
.PHONY: gpu
gpu: GPU_PYTHON = $(or $(PYTHON),python3)
gpu: ## the tests for CUDA, with the machine's own python3 and torch (or PYTHON=...)
	@$(GPU_PYTHON) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("no CUDA device"); \
	    print("torch", torch.__version__, "on", torch.cuda.get_device_name())'
	@PYTHONPATH=. $(GPU_PYTHON) -m pytest -q -c tests/gpu/pytest.ini --rootdir=. tests/gpu tests/engine

# --- using ---------------------------------------------------------------------------------------

.PHONY: demo bench
demo: $(STAMP) ## a whole cluster on this machine, one prompt, its timeline
	@GRPC_VERBOSITY=ERROR $(BIN)/python -m baton.cli.demo

bench: $(STAMP) ## measure everything, beside this machine's own limits
	@$(BIN)/baton bench engine
	@$(BIN)/baton bench ttft
	@$(BIN)/baton bench faces
	@$(BIN)/baton bench interference
	@$(BIN)/baton bench kv
	@$(BIN)/baton bench router
	@$(BIN)/baton bench perplexity
	@$(BIN)/python -m baton.bench.attention

.PHONY: clean
clean: ## remove caches and build results (not .venv)
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -path ./.venv -prune -o \( -name __pycache__ -prune -o -name '*.so' \) -exec rm -rf {} +
