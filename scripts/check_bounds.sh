#!/usr/bin/env bash
# Runs the test suite with the lowest versions that setup.cfg allows, to check its lower bounds.
#   ./scripts/check_bounds.sh                   everything; creates an environment of about 7 GB in build/bounds
#   ./scripts/check_bounds.sh tests/models      only these tests; all arguments go to pytest
# Known to fail with torch 2.6: tests/gpu (the simulated GPU needs a later torch), tests/models/test_compile.py, and tests
# in test_segmenter.py and test_views.py whose random weights predict a single class with this version.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=$PWD/build/bounds
[ -x "$environment/bin/python" ] || python3.11 -m venv "$environment"  # 3.11 is the lowest Python
export VIRTUAL_ENV=$environment PATH="$environment/bin:$PATH"
python -m pip install --quiet --disable-pip-version-check uv  # pip cannot resolve to the lowest versions
uv pip install --quiet --resolution lowest-direct --editable '.[dev]'
uv pip freeze | grep -iE '^(torch|lightning|transformers|open.clip.torch|timm|numpy|spacy)'
exec python -m pytest -q "$@"
