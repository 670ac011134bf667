PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench size

help:  ## show this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile

demo: .venv/.ready  ## write a text into memory, then ask about it
	$(BIN)/python examples/demo.py

test: .venv/.ready  ## run the tests
	$(BIN)/python -m pytest -q -n auto

check: .venv/.ready  ## what must pass before a change: format, lint, types, imports, tests, sizes
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n auto
	$(BIN)/python scripts/size.py --check

format: .venv/.ready  ## format the code and mend what the linter can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: .venv/.ready  ## measure what a memory costs
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/tables.py

size: .venv/.ready  ## show how long files and functions are
	$(BIN)/python scripts/size.py

# Every target does its own set-up, once: the environment is rebuilt only when one of these files changes.
.venv/.ready: pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" bash scripts/setup.sh
	@touch $@
