#!/bin/sh
# The one-shot service `engine`: lays out the repository and builds the plan on this GPU.
# MODEL=models/NAME chooses another embedder than the installed one, or at first than the released
# one, PREPROCESS_INSTANCES how many processes decode pictures.
set -eu
cd "$(dirname "$0")/.."
repository=${REPOSITORY:-/srv/unified-embedding/model_repository}
python=.venv/bin/python

"$python" build/production_repository.py --into "$repository"
exec "$python" build/engine.py --target tensorrt --repository "$repository" \
    ${MODEL:+--model "$MODEL"}
