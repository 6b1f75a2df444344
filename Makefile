# Every target sets up .venv by itself; the set-up runs again only when pyproject.toml or constraints.txt changed.
#
#   PYTHON=python3.12      another interpreter for .venv (3.11 or 3.12)
#   TORCH_INDEX_URL=URL    package index to take torch from (see docs/install.md); empty: pip's own
#   CMAKE_ARGS=...         further build options of llama.cpp, for example -DGGML_CUDA=on
#   ARGS=...               options for `cogumi run` (make run) or for the benchmarks (make bench)
#   PYTEST_ARGS=...        options for pytest, for example PYTEST_ARGS="-k betting"

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq --progress-bar off -c constraints.txt
# Parts of llama.cpp that the Python binding never loads.
LLAMA_CMAKE_ARGS := -DLLAVA_BUILD=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF

export PYTHON

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install run test test-slow test-postgresql bench lint clean system-packages test-system-packages

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

system-packages:
	@bash .ci/system-packages

test-system-packages:
	@bash .ci/system-packages test

install: system-packages $(STAMP) ## install Cogumi and all it needs into .venv

$(STAMP): pyproject.toml constraints.txt
	@python=$$(bash .ci/system-packages python) || exit 1; \
	if ! $(PIP) --version >/dev/null 2>&1; then \
	  echo "==> making .venv with $$python"; \
	  "$$python" -m venv --clear .venv; \
	fi
	@echo "==> installing torch (the largest download)"
	@$(INSTALL) $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") torch
	@if ! $(PIP) show --quiet llama-cpp-python >/dev/null 2>&1; then \
	  echo "==> compiling llama.cpp: about 5 minutes on 2 cores, once (pip keeps the wheel)"; \
	fi
	@CMAKE_ARGS="$(LLAMA_CMAKE_ARGS) $(CMAKE_ARGS)" CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) \
	  $(INSTALL) llama-cpp-python
	@echo "==> installing cogumi and its other dependencies"
	@$(INSTALL) -e '.[all,dev]'
	@touch $(STAMP)
	@echo "==> .venv is ready"

run: install ## rehearse the whole plan offline on this CPU (at most 10 minutes on 2 cores)
	@$(BIN)/cogumi run $(ARGS); code=$$?; \
	echo "Everything it made is in $${COGUMI_WORKSPACE:-.cogumi}/; next: $(BIN)/cogumi status, $(BIN)/cogumi report"; \
	exit $$code

lint: install ## ruff, its formatter and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One process a core, one thread each: most tests wait for processes and sockets, and models here are tiny.
test: test-system-packages lint ## lint, then every test but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: test-system-packages install ## the tests that take minutes, alone
	$(BIN)/python -m pytest -m "slow and not gpu and not postgresql" --timeout 3600 $(PYTEST_ARGS)

test-postgresql: install ## the tests of a ledger in PostgreSQL, on a throw-away server of their own
	@bash .ci/system-packages postgresql
	@$(BIN)/python -c 'import psycopg' 2>/dev/null || $(INSTALL) -e '.[postgresql]'
	@bash .ci/postgresql $(BIN)/python -m pytest -m postgresql $(PYTEST_ARGS)

bench: install ## measure what the README claims
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove .venv, caches and build output; the workspace .cogumi stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
