# `make help` lists the targets. Each creates the environment it needs under .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help

MODEL     ?= models/unified-embedder-lite0
TARGET    ?= auto
PRECISION ?= auto

PY  := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# The trainer's wheels are 8 GB installed; building and serving never need them.
SERVING_EXTRAS := serve,build,client,load
ALL_EXTRAS     := $(SERVING_EXTRAS),train,search,peers,dev

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/.stamp-python:
	@python=$$(build/find_python.sh) && echo "creating .venv with $$python" && "$$python" -m venv .venv
	@touch $@

.venv/.stamp-serving: .venv/.stamp-python pyproject.toml constraints.txt
	@echo "installing the serving environment into .venv (0.9 GB, once)"
	@$(PIP) --editable '.[$(SERVING_EXTRAS)]'
	@touch $@

.venv/.stamp-train: .venv/.stamp-serving
	@echo "installing the training environment into .venv (about 7 GB, torch's CUDA libraries, once)"
	@$(PIP) --editable '.[$(SERVING_EXTRAS),train]'
	@touch $@

.venv/.stamp-all: .venv/.stamp-train
	@echo "installing the test environment into .venv"
	@$(PIP) --editable '.[$(ALL_EXTRAS)]'
	@touch $@

env: .venv/.stamp-serving ## the environment for building and serving (no torch)
train-env: .venv/.stamp-train ## the environment for training and exporting (torch)

engine: .venv/.stamp-serving ## compile MODEL and install it: TARGET=auto|openvino|tensorrt|tensorrt-rtx PRECISION=auto|fp32|bf16
	@$(PY) build/engine.py --model "$(MODEL)" --target "$(TARGET)" --precision "$(PRECISION)"

demo: engine ## serve the demo gallery, search it by float and by code, draw a contact sheet
	@$(PY) clients/demo.py

test: .venv/.stamp-all ## every test that this machine can run
	@$(PY) -m pytest

test-serving: .venv/.stamp-serving ## the tests that need no torch: everything but tests/training
	@$(PIP) --editable '.[$(SERVING_EXTRAS),dev]'
	@$(PY) -m pytest --ignore tests/training

lint: .venv/.stamp-all ## ruff and mypy
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@build/lint_types.sh

clean: ## remove the installed engine and build outputs, keep .venv
	rm -rf build/out out results model_repository/embedder

.PHONY: help env train-env engine demo test test-serving lint clean
