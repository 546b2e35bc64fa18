# Five commands carry the daily work: check, test, docs, bench, demo.
# Each sets up .venv by itself when that is missing or out of date.

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
UPGRADE ?=

# The stamps carry a checksum of this folder's path: a copied or moved checkout sets up its own .venv.
PLACE := $(shell pwd -P | cksum | cut -d ' ' -f 1)
PACKAGES := .venv/.packages-$(PLACE)
READY := .venv/.ready-$(PLACE)
PY := .venv/bin/python
PYTEST := $(PY) -m pytest -n $(JOBS) --dist worksteal
CODE := $(wildcard src tests bench examples docs)

MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test check format bench docs failovers fuzz model races lock clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  PYTHON=python3.12 chooses the interpreter of a new .venv; ARGS="-k lease" reaches pytest, bench and demo.'

demo: $(READY) ## run the document review example
	@$(PY) examples/document_review/demo.py $(ARGS)

test: $(READY) ## run the whole suite, in parallel and in random order
	@$(PYTEST) $(ARGS)

check: $(READY) ## format, lint, types and the direction of imports, changing nothing
	@$(PY) -m ruff format --check $(CODE)
	@$(PY) -m ruff check $(CODE)
	@$(PY) -m mypy $(CODE)
	@.venv/bin/lint-imports --no-cache

format: $(READY) ## format the code and repair what the linter can
	@$(PY) -m ruff check --fix-only --exit-zero $(CODE)
	@$(PY) -m ruff format $(CODE)

bench: $(READY) ## run the benchmarks
	@$(PY) -m bench $(ARGS)

model: $(READY) ## compare the stores with the model for 50,000 random steps each
	@$(PY) -m tests.model $(ARGS)

races: $(READY) ## let processes contend in 10,000 rounds on each store
	@$(PY) -m tests.races $(ARGS)

failovers: $(READY) ## kill, replace and overtake the primaries of a cluster under load, 20 times each
	@$(PY) -m tests.failover $(ARGS)

fuzz: $(READY) ## send a server 20,000 requests that it should mostly refuse
	@$(PY) -m tests.fuzz $(ARGS)

docs: $(READY) ## regenerate the reference pages
	@$(PY) -m docs.build $(ARGS)

lock: ## pin requirements/*.txt anew; UPGRADE=1 takes the newest versions allowed
	@PYTHON='$(PYTHON)' requirements/lock $(if $(UPGRADE),--upgrade)

clean: ## remove .venv, caches and build products
	@rm -rf .venv .lock-venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PACKAGES): requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'make: $(PYTHON) is older than Python 3.11 or missing; name another one: make PYTHON=python3.12' >&2; exit 1; }
	@echo 'Setting up .venv from requirements/dev.txt'
	@$(PYTHON) -m venv --clear .venv
	@{ command -v uv >/dev/null && uv pip install --quiet --python $(PY) --require-hashes -r requirements/dev.txt; } \
		|| $(PY) -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements/dev.txt
	@touch $@

$(READY): $(PACKAGES) pyproject.toml
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
