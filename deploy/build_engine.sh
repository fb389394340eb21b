#!/bin/sh
# The one-shot service `engine`: lays out the repository and builds the plan on this GPU.
# MODEL=models/NAME chooses the embedder, PREPROCESS_INSTANCES how many processes decode pictures.
set -eu
cd "$(dirname "$0")/.."
repository=${REPOSITORY:-/srv/unified-embedding/model_repository}
python=.venv/bin/python

"$python" build/production_repository.py --into "$repository"
exec "$python" build/engine.py --target tensorrt --repository "$repository" \
    --model "${MODEL:-models/unified-embedder-lite0}"
