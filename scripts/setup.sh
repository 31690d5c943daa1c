#!/usr/bin/env bash
# Makes sure that ovseg and its dependencies are installed, and puts their Python first on PATH.
# Source it:  . scripts/setup.sh
#
# Uses an active virtual or conda environment if it imports this checkout (pip install -e .). Otherwise creates .venv in the
# repository and fills it with pip, again only after a change of setup.cfg or pyproject.toml.

_repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Looks for the packages without importing them, which would take seconds, and rejects the ovseg of another checkout.
_has_ovseg='import sys, pathlib, importlib.util as u
spec = u.find_spec("lightning") and u.find_spec("ovseg")
sys.exit(not spec or pathlib.Path(sys.argv[1]).resolve() not in pathlib.Path(spec.origin).resolve().parents)'

_find_python() {
    local candidate
    for candidate in python3.11 python3 python python3.12 python3.13; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

_install() {
    local environment=$_repository/.venv python checksum
    checksum=$(cat "$_repository/setup.cfg" "$_repository/pyproject.toml" | cksum)
    if [ "$(cat "$environment/.installed" 2>/dev/null)" != "$checksum" ]; then
        if ! [ -x "$environment/bin/pip" ]; then
            if ! python=$(_find_python); then
                echo "ovseg needs Python 3.11 or newer, but none was found; install it and rerun this script." >&2
                return 1
            fi
            echo "Creating the environment .venv with $("$python" --version) …"
            "$python" -m venv "$environment" || return 1
        fi
        echo "Installing ovseg and its dependencies into .venv (several minutes the first time, 2 to 7 GB) …"
        "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
            --editable "$_repository[dev]" || return 1
        echo "$checksum" >"$environment/.installed"
    fi
    export PATH="$environment/bin:$PATH"
}

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && python -c "$_has_ovseg" "$_repository/src" 2>/dev/null; then
    echo "Using the active environment ${VIRTUAL_ENV:-$CONDA_PREFIX}."
else
    _install || exit 1
fi
