# One verb a line: `make help`. Nothing needs an activated environment; everything goes into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Override on the command line: make run PORT=9000 CHECKPOINT=runs/mine
SYSTEM_PYTHON ?= python3.11
# LeRobot 0.6 wants a later one.
PYTHON_OF_LEROBOT ?= python3.12
# A checkout of openpi at 15a9616, for `make golden-openpi`.
OPENPI ?= build/openpi
# Checkouts of bridge_data_v2 at 02720bba and of RLBench at 830fc9e, for `make golden-rlds`.
BRIDGE ?= build/bridge_data_v2
RLBENCH ?= build/RLBench
CHECKPOINT ?= checkpoints/grounded
ARCHIVE ?= model_store/vla.mar
PORT ?= 8080
# Which promises `make loadtest` judges: small, medium, large.
TIER ?= small
# Images are called IMAGE:cpu, IMAGE:cuda, IMAGE:proxy. MODEL_STORE is baked in; without it archives are mounted.
IMAGE ?= vla-serve
TARGETS ?= cpu proxy
MODEL_STORE ?= docker/no-models
# A pip.conf that names an index with torch's CPU wheels, when the configured one has none; WHEELS: a folder of them.
PIP_CONF ?=
WHEELS ?=
ENGINE ?= docker
COMPOSE ?= docker compose
BUILD ?= $(ENGINE) build $(if $(PIP_CONF),--secret id=pipconf,src=$(PIP_CONF)) $(if $(WHEELS),--build-context wheelhouse=$(WHEELS))
# Further options of the program that the verb runs: make evaluate ARGS="--episodes 24"
ARGS ?=

PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check
# What an archive is made from, besides the checkpoint.
SOURCES := $(shell find handlers export archive vla/models vla/checkpoint.py vla/assets -name '*.py' -o -name '*.json')

.PHONY: help run test test-all mutants full-size check export train evaluate evaluate-language loadtest bench faults gpu-check fuzz demos golden golden-data golden-rlds golden-flow golden-openpi test-lerobot-data clean java rendering nginx image image-run test-image sbom deploy-check FORCE

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s%s\n", $$1, $$2 }' Makefile
	@echo "Options: PORT=$(PORT) CHECKPOINT=$(CHECKPOINT) ARCHIVE=$(ARCHIVE) ARGS='options of the program'"

run: java $(ARCHIVE) ## serve the default policy: installs, exports, starts, prints a request to try
	@exec $(PYTHON) -m server --archive $(ARCHIVE) --port $(PORT) $(ARGS)

test: .venv/.dev java rendering nginx ## run the tests
	scripts/test $(PYTHON) $(ARGS)

test-all: .venv/.dev java rendering nginx ## run the slow tests too: every export format, some minutes
	$(PYTHON) -m pytest -m '' $(ARGS)

mutants: .venv/.dev ## put small faults into the code, one at a time: do the unit tests notice? Hours
	PYTHONPATH=tests $(PYTHON) -m mutants $(ARGS)

full-size: .venv/.dev java ## export and serve a pi0 of 3.24 billion random weights: 20 GB of disk, 10 GB of memory
	PYTHONPATH=tests $(PYTHON) tests/export/full_size.py $(ARGS)

check: .venv/.dev ## check format, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/basedpyright

export: .venv/.train model_store/.checkpoint ## export CHECKPOINT to ARCHIVE
	$(PYTHON) -m export $(CHECKPOINT) --output $(ARCHIVE) $(ARGS)

golden: build/golden/.installed ## record anew what the real LeRobot answers, for the tests (5 GB to install)
	HF_HUB_OFFLINE=1 build/golden/bin/python tests/golden/make_lerobot.py $(ARGS)

golden-data: build/golden/.installed ## record anew the data sets that the real LeRobot writes, for the tests
	HF_HUB_OFFLINE=1 build/golden/bin/python tests/golden/make_lerobot_data.py write

test-lerobot-data: .venv/.dev build/golden/.installed ## does the real LeRobot read what we write, with our statistics? (5 GB to install)
	LEROBOT_PYTHON=build/golden/bin/python $(PYTHON) -m pytest -m slow tests/unit/vla/data/test_lerobot_real.py $(ARGS)

golden-rlds: build/golden-rlds/.installed ## record anew RLDS by TensorFlow Datasets, and what the authors' code reads in folders of BridgeData V2 and RLBench (1 GB to install)
	build/golden-rlds/bin/python tests/golden/make_rlds.py
	build/golden-rlds/bin/python tests/golden/make_raw.py $(BRIDGE) $(RLBENCH)

golden-flow: build/golden-flow/.installed ## record anew what pi0, pi0.5 and SmolVLA answer, by LeRobot 0.6 (5 GB to install, Python 3.12)
	HF_HUB_OFFLINE=1 build/golden-flow/bin/python tests/golden/make_pi0.py $(ARGS)
	build/golden-flow/bin/python tests/golden/make_sentencepiece.py

golden-openpi: build/golden-openpi/.installed ## record anew what openpi answers, by the checkout OPENPI, which is cloned where there is none (3 GB to install)
	JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 PYTHONPATH=$(OPENPI)/src:$(OPENPI)/packages/openpi-client/src \
	    build/golden-openpi/bin/python tests/golden/make_openpi.py $(ARGS)
	JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 PYTHONPATH=$(OPENPI)/src:$(OPENPI)/packages/openpi-client/src \
	    build/golden-openpi/bin/python tests/golden/make_openpi_jax.py $(ARGS)

demos: .venv/.train rendering ## collect demonstrations in the simulator
	$(PYTHON) -m vla.tabletop $(ARGS)

train: .venv/.train ## train a policy on the demonstrations
	$(PYTHON) -m vla.training $(ARGS)

evaluate: .venv/.train rendering $(ARCHIVE) ## run the archived policy in the simulator, closed loop
	$(PYTHON) -m vla.evaluation --archive $(ARCHIVE) $(ARGS)

evaluate-language: .venv/.bench rendering $(ARCHIVE) ## measure what the archived policy understands, and when it holds
	$(PYTHON) -m vla.evaluation.language --archive $(ARCHIVE) $(ARGS)

bench: .venv/.bench java rendering $(ARCHIVE) ## measure the served policy against the policy alone
	$(PYTHON) -m bench $(ARGS)

faults: .venv/.bench java nginx $(ARCHIVE) ## provoke faults on running servers, or attacks (ARGS=--attacks); writes docs/faults.md
	$(PYTHON) -m bench faults $(ARGS)

gpu-check: .venv/.bench ## check a GPU host: parity, failures, memory, speed, robots, HTTP; a report in build/gpu
	$(PYTHON) -m bench gpu $(ARGS)

fuzz: .venv/.fuzz java $(ARCHIVE) ## hostile input for some minutes: what decodes it, and a server; 1 on any finding
	$(PYTHON) -m fuzz --archive $(ARCHIVE) $(ARGS)

loadtest: .venv/.loadtest ## load the server on PORT, judge whether it keeps TIER, write a report
	$(PYTHON) -m loadtest --tier $(TIER) --url http://127.0.0.1:$(PORT) $(ARGS)

image: ## build the images IMAGE:TARGET of TARGETS: cpu, proxy, cuda
	for target in $(TARGETS); do \
	    $(BUILD) -f docker/Dockerfile --target $$target --build-arg MODEL_STORE=$(MODEL_STORE) -t $(IMAGE):$$target .; \
	done

image-run: $(ARCHIVE).sha256 ## run the images: one CPU replica of the default policy behind the proxy on PORT
	MODELS=$(abspath $(dir $(ARCHIVE))) LISTEN=127.0.0.1:$(PORT) \
	    $(COMPOSE) -f docker/compose.yaml --profile cpu up --no-build $(ARGS)

test-image: .venv/.dev ## run the images hardened: a request, a stop under load, a killed server
	IMAGE=$(IMAGE):cpu PROXY_IMAGE=$(IMAGE):proxy ENGINE=$(ENGINE) $(PYTHON) -m pytest -rA tests/deploy/test_images.py

sbom: .venv/.train ## what the server images hold, as CycloneDX: build/sbom-cpu.json, build/sbom-cuda.json
	$(PYTHON) scripts/sbom.py

deploy-check: .venv/.deploy ## lint Dockerfile, scripts, compose file and Kubernetes manifests
	docker/check

clean: ## remove generated archives and caches; .venv, data and runs stay
	rm -rf model_store/*.mar model_store/.checkpoint build .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# --- Files that the verbs need

$(PYTHON):
	@command -v $(SYSTEM_PYTHON) >/dev/null || { echo "error: no $(SYSTEM_PYTHON) on PATH: install Python 3.11," \
		"or name yours: make SYSTEM_PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(SYSTEM_PYTHON) -m venv .venv

# The checkout's own packages are found where they lie; pip installs only what they need.
.venv/.paths: Makefile | $(PYTHON)
	printf '%s\n' '$(CURDIR)' '$(CURDIR)/handlers' '$(CURDIR)/client' \
	    > "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vla_serve_checkout.pth"
	@touch $@

# torch first and alone: pip's own configuration decides which build (CPU or CUDA) it takes.
.venv/.torch: pyproject.toml | .venv/.paths
	$(PIP) install "$$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
	@touch $@

.venv/.train: .venv/.torch
	$(PIP) install -e '.[train]'
	@touch $@

.venv/.dev: .venv/.train
	$(PIP) install -e '.[dev]'
	@touch $@

# LeRobot pins packages that contradict ours: an environment of its own.
build/golden-flow/.installed: tests/golden/requirements-pi0.txt
	$(PYTHON_OF_LEROBOT) -m venv build/golden-flow
	build/golden-flow/bin/python -m pip --disable-pip-version-check install -r $<
	@touch $@

# openpi puts layers of its own in the place of transformers'.
build/golden-openpi/.installed: tests/golden/requirements-openpi.txt | $(OPENPI)
	$(SYSTEM_PYTHON) -m venv build/golden-openpi
	build/golden-openpi/bin/python -m pip --disable-pip-version-check install -r $<
	cp -r $(OPENPI)/src/openpi/models_pytorch/transformers_replace/* \
	    "$$(build/golden-openpi/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/transformers/"
	@touch $@

build/golden-rlds/.installed: tests/golden/requirements-rlds.txt | $(BRIDGE) $(RLBENCH)
	$(SYSTEM_PYTHON) -m venv build/golden-rlds
	build/golden-rlds/bin/python -m pip --disable-pip-version-check install -r $<
	@touch $@

build/bridge_data_v2:
	git clone --quiet https://github.com/rail-berkeley/bridge_data_v2 $@
	git -C $@ checkout --quiet 02720bba

build/RLBench:
	git clone --quiet https://github.com/stepjam/RLBench $@
	git -C $@ checkout --quiet 830fc9e

build/openpi:
	rm -rf $@.partial
	git clone --quiet https://github.com/Physical-Intelligence/openpi $@.partial
	git -C $@.partial checkout --quiet 15a9616
	mv $@.partial $@

build/golden/.installed: tests/golden/requirements.txt
	$(SYSTEM_PYTHON) -m venv build/golden
	build/golden/bin/python -m pip --disable-pip-version-check install -r $<
	@touch $@

.venv/.bench: .venv/.train
	$(PIP) install -e '.[bench]'
	@touch $@

.venv/.fuzz: .venv/.train
	$(PIP) install -e '.[fuzz]'
	@touch $@

.venv/.peers: .venv/.bench
	$(PIP) install -e '.[peers]'
	@touch $@

# No torch: a load generator on a host of its own needs none.
.venv/.loadtest: pyproject.toml | .venv/.paths
	$(PIP) install -e '.[loadtest]'
	@touch $@

# A Java runtime inside .venv where the machine has none that TorchServe can run on.
java: .venv/.train
	@$(PYTHON) -c 'from server.java import find_java; find_java()' 2>/dev/null || $(PIP) install -e '.[java]'
	@$(PYTHON) -c 'from server.java import find_java; print("Java:", find_java())'

.venv/.deploy: .venv/.train
	$(PIP) install -e '.[deploy]'
	@touch $@

nginx:
	@scripts/nginx

# Read before an image loads the archive.
$(ARCHIVE).sha256: $(ARCHIVE)
	sha256sum $< > $@

rendering: .venv/.train
	@scripts/rendering $(PYTHON)

$(ARCHIVE): $(SOURCES) $(wildcard $(CHECKPOINT)/*) model_store/.checkpoint | .venv/.train
	$(PYTHON) -m export $(CHECKPOINT) --output $(ARCHIVE)

# Changes only when another checkpoint is named, so that an archive of the former one is never served for it.
model_store/.checkpoint: FORCE
	@mkdir -p model_store
	@test -d $(CHECKPOINT) || { echo "error: no checkpoint at $(CHECKPOINT): name one by CHECKPOINT=..." >&2; exit 1; }
	@echo '$(CHECKPOINT)' | cmp -s - $@ || echo '$(CHECKPOINT)' > $@
