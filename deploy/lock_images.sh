#!/bin/sh
# `make lock-images`: what the images are made of, to the byte. Python packages with their hashes,
# within constraints.txt, into deploy/requirements/; where skopeo is installed and the registry answers,
# the base images' digests into the Dockerfiles.
set -eu
cd "$(dirname "$0")/.."

lock() {
    name=$1 python=$2
    shift 2
    uv pip compile --quiet --constraint constraints.txt --generate-hashes --no-annotate \
        --python-platform x86_64-manylinux_2_36 --python-version "$python" \
        --custom-compile-command 'make lock-images' \
        --output-file "deploy/requirements/$name.txt" "$@"
}

mkdir -p deploy/requirements
lock cpu 3.11 pyproject.toml --extra serve --extra client --extra trace
lock cpu-build 3.11 pyproject.toml --extra serve --extra client --extra build
lock tools 3.11 deploy/requirements/tools.in
# Triton's image brings its own numpy.
lock gpu 3.12 pyproject.toml --extra client --extra trace --no-emit-package numpy
lock gpu-build 3.12 deploy/requirements/gpu-build.in --no-emit-package numpy

digest() {
    file=$1 argument=$2 image=$3
    tag=$(sed -n "s/^ARG $argument=\([^@]*\).*/\1/p" "$file")
    reference=$(printf "$image" "$tag")
    if found=$(skopeo inspect --format '{{.Digest}}' "docker://$reference" 2>/dev/null); then
        sed -i "s|^ARG $argument=.*|ARG $argument=$tag@$found|" "$file"
        echo "$reference is $found"
    else
        echo "$reference: no digest (skopeo is missing, or its registry does not answer); the tag stays"
    fi
}

digest deploy/Dockerfile.cpu BASE '%s'
digest deploy/Dockerfile TRITON_TAG 'nvcr.io/nvidia/tritonserver:%s'
