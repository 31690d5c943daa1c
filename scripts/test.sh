#!/usr/bin/env bash
# Runs ruff, mypy and the test suite; sets up .venv first if there is none.
#   ./scripts/test.sh                        everything
#   ./scripts/test.sh tests/data -k coco     only these tests; all arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
for tool in ruff mypy pytest; do
    python -m $tool --version >/dev/null 2>&1 || {
        echo "The active environment has no $tool; run: python -m pip install -e '.[dev]'" >&2
        exit 1
    }
done

if [ $# -eq 0 ]; then
    echo "Lint and types …"
    python -m ruff check .
    python -m ruff format --check .
    python -m mypy
    echo "Tests …"
    # two processes, for the smallest machines have two cores
    python -m pytest -q -n 2 -m "not slow"
    echo "Slow tests …"
    set -- -m slow
fi
exec python -m pytest -q "$@"
