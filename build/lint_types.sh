#!/bin/sh
# mypy --strict, room by room: programs run by path import their neighbours by bare name.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
"$python" -m mypy unified_embedding
for room in bench build clients fuzz loadtest; do
    MYPYPATH="$room" "$python" -m mypy --explicit-package-bases "$room"/*.py
done
for step in model_repository/*/1/model.py; do
    "$python" -m mypy "$step"
done
