#!/bin/sh
# mypy --strict over everything that is imported, and over the programs that import it.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
"$python" -m mypy unified_embedding bench/*.py build/*.py clients/*.py fuzz/*.py loadtest/*.py deploy/monitoring/*.py
for step in model_repository/*/1/model.py; do
    "$python" -m mypy "$step"
done
