# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both make .venv and install with plain pip; a stamp in it makes the second run quick.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -c constraints.txt
RUNTIME := .venv/.runtime-installed
DEV := .venv/.dev-installed

PROMPTS := "a red apple" "a cat face" "a yellow star" "a blue car" \
           "a house" "a slice of pizza" "a rocket" "a snowman"
SEED ?= 1
# Processes that share the tests; each computes with one thread.
WORKERS ?= 2

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test browser setup setup-dev fmt check parity bench clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1	/p' Makefile

demo: $(RUNTIME) ## install, draw the README's prompts with the embedded model
	@mkdir -p demo
	@for prompt in $(PROMPTS); do \
	  $(BIN)/sanakit generate "$$prompt" --seed $(SEED) \
	    -o "demo/$$(printf '%s' "$$prompt" | tr ' ' '-').png" || exit $$?; \
	done
	@echo "The pictures are in $(CURDIR)/demo:"
	@ls "$(CURDIR)"/demo/*.png

# A browser is no Python package: where there is none, the last words say what was not run.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

test: check ## install with the test extras, run all checks and all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --ignore tests/browser
	@if [ -n "$(CHROMIUM)" ]; then $(MAKE) browser; else \
	  echo "NOT RUN: tests/browser, the page of \`sanakit serve\`: no Chromium was found." >&2; \
	  echo "  hint: apt install chromium, or make browser CHROMIUM=/path/to/chromium" >&2; fi

browser: $(DEV) ## the tests of the page, in Chromium
	CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest tests/browser

setup: $(RUNTIME) ## install the package and what it runs on
setup-dev: $(DEV) ## install the package with the test extras

fmt: $(DEV) ## format, and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(DEV) ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

parity: $(DEV) ## only the tests against reference implementations
	$(BIN)/python -m pytest tests/parity

bench: $(RUNTIME) ## time the embedded model, cold and warm
	$(BIN)/sanakit bench --out benchmarks/results/generate.jsonl

clean: ## remove the environment, the drawn pictures and all caches
	rm -rf .venv demo build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks recipes -name __pycache__ -type d -prune -exec rm -rf {} +

# A file, not the folder: an interrupted installation leaves no stamp and is taken up again.
.venv/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) was not found" >&2; \
	  echo "  hint: install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $$($(PYTHON) --version 2>&1) is too old: sanakit needs Python 3.10 or newer" >&2; \
	  echo "  hint: name a newer one: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: this $(PYTHON) cannot make virtual environments: venv or ensurepip is missing" >&2; \
	  echo "  hint: on Debian and Ubuntu: sudo apt install python3-venv" >&2; \
	  exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

$(RUNTIME): .venv/.made pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(DEV): .venv/.made pyproject.toml constraints.txt
	$(PIP) -e ".[dev]"
	@touch $@ $(RUNTIME)
