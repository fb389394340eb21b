#!/bin/sh
# Builds the engine on this machine into REPOSITORY/embedder: deploy/compose.yaml's service `engine`,
# the chart's job, and Dockerfile.cpu. An engine that is up to date stays.
# TARGET and PRECISION as in `make engine`; MODEL=models/NAME chooses another embedder than the one
# installed there, or at first than the released one.
set -eu
cd "$(dirname "$0")/.."
# Staged beside it, in a folder that may be written.
repository=${REPOSITORY:-/srv/unified-embedding/model_repository}

mkdir -p "$repository"
exec .venv/bin/python build/engine.py --repository "$repository" \
    ${TARGET:+--target "$TARGET"} ${PRECISION:+--precision "$PRECISION"} ${MODEL:+--model "$MODEL"}
