PYTHON ?= python3
BIN := .venv/bin
# Threads that wait by spinning slow one another down where there are more of them than cores; how they wait is the
# user's to say, by either variable.
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 1000
endif

# What is installed is compiled once, also for those who keep compiled files out of their own folders: importing torch
# and transformers takes three times as long otherwise, in each process.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
# What recipes train on; they are measured on the other parts of the same.
RECIPE_DATA := squad novels wikitext2 fairytaleqa nq personachat

.PHONY: help demo test check lint format bench attack docs size update reproduce-trained results test-oldest test-newest test-slow

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 28

demo: .venv/.demo  ## write a text into memory, then ask about it
	$(BIN)/python examples/demo.py

test: .venv/.dev  ## run the tests
	$(BIN)/python -m pytest -q -n auto

check: lint test  ## what must pass before a change: format, lint, types, imports, sizes, tests

lint: .venv/.dev  ## format, lint, types, imports, sizes
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/size.py --check

test-slow: .venv/.dev  ## run the tests that take long, such as that of the wheel
	$(BIN)/python -m pytest -q -n auto -m slow

test-oldest: .venv-oldest/.ready  ## run the tests with the oldest versions that pyproject.toml allows
	.venv-oldest/bin/python -m pytest -q -n auto --disable-warnings

test-newest: .venv/.dev  ## run the tests with the newest version of everything; a deprecation is an error
	PYTHON="$(PYTHON)" bash scripts/setup.sh newest
	.venv-newest/bin/python -W error -m pytest -q -n auto -W error

format: .venv/.dev  ## format the code and mend what the linter can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: .venv/.dev  ## measure what a memory costs
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/tables.py

attack: .venv/.dev  ## attack byheart for half an hour, and write what got through
	$(BIN)/python -m tests.faults.report --out benchmarks/results/attack.json; failed=$$?; \
	$(BIN)/python benchmarks/tables.py; exit $$failed

results: .venv/.dev  ## get the public data sets, measure what the page of results shows, and write it; many hours
	$(BIN)/byheart data get all
	$(BIN)/python benchmarks/kinds.py eval
	$(BIN)/python benchmarks/results.py --data eval
	$(BIN)/python benchmarks/tables.py

reproduce-trained: .venv/.dev  ## train what is shipped again from recipe and public data; hours
	$(BIN)/byheart data get $(RECIPE_DATA)
	$(BIN)/python scripts/reproduce.py

docs: .venv/.dev  ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

size: .venv/.dev  ## show how long files and functions are
	$(BIN)/python scripts/size.py

update: .venv/.dev  ## lock the newest versions that pyproject.toml allows, of all but torch
	bash scripts/lock.sh

# Every target does its own set-up, once: an environment is made again only when one of these files changes.
SETUP := pyproject.toml scripts/setup.sh $(wildcard requirements/*.txt)

.venv/.demo: $(SETUP)
	@PYTHON="$(PYTHON)" bash scripts/setup.sh demo
	@touch $@

.venv/.dev: $(SETUP)
	@PYTHON="$(PYTHON)" bash scripts/setup.sh dev
	@touch $@ .venv/.demo

.venv-oldest/.ready: .venv/.dev
	@PYTHON="$(PYTHON)" bash scripts/setup.sh oldest
	@touch $@
