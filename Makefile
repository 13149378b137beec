# What can be done with this project; `make` alone lists it.

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup demo fleet test check bench clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the agent, the harness and the tools (PYTHON=python3.12, PIP_ARGS=...)

$(STAMP): pyproject.toml
	PYTHON='$(PYTHON)' .ci/system-packages setup
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) --editable '.[all]'
	touch $@

demo: setup ## learn with a small fleet on this machine, and draw what it did
	$(BIN)/skiptrain-sim demo

fleet: setup ## emulate 256 nodes: D-PSGD against SkipTrain-constrained, and a report
	.ci/system-packages fleet
	rm -rf build/fleet
	$(BIN)/skiptrain-sim emulate fleet --set policy.name=d-psgd --out build/fleet/d-psgd
	$(BIN)/skiptrain-sim emulate fleet --out build/fleet/skiptrain-constrained
	$(BIN)/skiptrain-sim compare build/fleet/d-psgd build/fleet/skiptrain-constrained --out build/fleet/report

test: setup ## run the tests (PYTEST_ARGS=tests/core)
	.ci/system-packages test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup ## check style, types, imports and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: setup ## print how fast things are on this machine
	$(BIN)/python -m tests.bench

clean: ## remove what the tools left behind; .venv stays (rm -r .venv)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -r {} +
