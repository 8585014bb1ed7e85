# make            the commands
# make demo       install once into .venv, then run the whole system in miniature
# make test       install once, then the tests that need neither a GPU nor minutes
# make study NAME run a study and record its figures in docs/studies/NAME.json
#
# On a GPU machine: make EXTRA=gpu install
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf) decide where packages come from.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help install demo doctor test test-slow test-gpu study lint docs lock clean

# What .venv holds already, else the CPU installation.
HELD := $(patsubst .venv/.installed-%,%,$(wildcard .venv/.installed-*))
EXTRA ?= $(or $(HELD),cpu)
LOCK := requirements/cpu.lock
STAMP := .venv/.installed-$(EXTRA)
ifneq ($(or $(HELD),$(EXTRA)),$(EXTRA))
$(error .venv holds the $(HELD) installation: run 'make clean' first, or leave out EXTRA=$(EXTRA))
endif
PIP = .venv/bin/python -m pip --disable-pip-version-check
# The pip that comes with Python 3.11 (23.0.1) runs DeepSpeed's setup.py beside a torch for GPUs, which fails without nvcc.
UPGRADE_PIP = $(PIP) install --quiet --upgrade "pip>=23.1"
# pip would compile every file of every package, one after another, for over a minute: a fifth of them is ever imported. What
# does not import here (a library for another driver, say) is for 'make doctor' to explain.
COMPILE = env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -c "import rlaif.cli.main, rlaif.stages.recipes.demo, learners.worker, \
	vllm.v1.engine.llm_engine, vllm.v1.worker.cpu_worker" > /dev/null 2>&1 || true
PYTEST = .venv/bin/python -m pytest -q
TORCH := $(shell sed -n 's/^torch==//p' $(LOCK))

help:
	@echo "make demo             the whole system in miniature, on this machine"
	@echo "                      SEEDS=n: PPO with n seeds; SCRATCH=1: make the base model too"
	@echo "make test             tests that need neither a GPU nor minutes"
	@echo "make test-slow        tests that take minutes"
	@echo "make test-gpu         tests that need a GPU"
	@echo "make study NAME       a study without a time limit; writes docs/studies/NAME.json"
	@echo "make doctor           what works on this machine, and what to do about the rest"
	@echo "make lint             style, types and the layer rule"
	@echo "make docs             write the pages that are generated from the source"
	@echo "make install          what the others do first: .venv with everything in it (EXTRA=cpu or gpu)"
	@echo "make clean            remove .venv and caches; runs/ stays"

demo: $(STAMP)
	@.venv/bin/rlaif demo configs/demo.yaml$(if $(SEEDS), demo.seeds=$(SEEDS))$(if $(SCRATCH), demo.scratch=true)

doctor: $(STAMP)
	@.venv/bin/python -m rlaif.doctor

# Tests that start actors wait a third of their time, hence more processes than cores; each takes whole files, whose tests share
# actors. Slow tests hold larger models, hence fewer.
SHARED := --dist loadfile --no-loadscope-reorder --durations 10

test: $(STAMP)
	@$(PYTEST) -n 3 $(SHARED)

test-slow: $(STAMP)
	@$(PYTEST) -n 2 $(SHARED) -m "slow and not gpu" --timeout 3600

test-gpu: $(STAMP)
	@$(PYTEST) -m gpu --timeout 3600

# The word after `study` is the study's name, not a goal of its own.
ifeq ($(firstword $(MAKECMDGOALS)),study)
NAME ?= $(word 2,$(MAKECMDGOALS))
$(foreach word,$(filter-out study,$(MAKECMDGOALS)),$(eval $(word):;@:))
endif

study: $(STAMP)
	@.venv/bin/python tests/studies/common.py $(NAME)

lint: $(STAMP)
	@.venv/bin/ruff check .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/lint-imports --no-cache --no-logo
	.venv/bin/mypy

# The pages that are generated from the source; tests fail when one is stale.
docs: $(STAMP)
	@.venv/bin/python -m rlaif.config.options > docs/options.md
	.venv/bin/python -m rlaif.cli.docs

install: $(STAMP)

# Writes down what is installed in .venv now; for after a change of the ranges in pyproject.toml.
lock: $(STAMP)
	@{ echo "# Exact versions of a tested CPU installation (make lock); pip reads this as constraints."
	   $(PIP) freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu$$//'; } > $(LOCK).new
	mv $(LOCK).new $(LOCK)

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A python that is named but does not run (a version manager's placeholder, say) is passed over.
.venv/bin/python:
	@for python in $(PYTHON) $(if $(PYTHON),,python3.11 python3.12 python3.13 python3); do
	    if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
	        "$$python" -m venv .venv && exit 0
	        rm -rf .venv  # half made; venv has said what it needs
	        exit 1
	    fi
	done
	echo "No Python 3.11, 3.12 or 3.13 found$(if $(PYTHON), as $(PYTHON)):" \
	     "install one with its venv module and headers (Debian: apt-get install python3 python3-venv python3-dev)," \
	     "or name it with 'make PYTHON=/path/to/python ...'." >&2
	exit 1

# torchaudio and torchcodec come along with vLLM, cannot load beside a CPU torch, and break transformers' processors.
.venv/.installed-cpu: pyproject.toml $(LOCK) | .venv/bin/python
	@started=$$SECONDS
	echo "Installing into .venv (a few minutes, once) ..."
	$(UPGRADE_PIP)
	case "$$(uname -s)" in Linux) torch="$(TORCH)+cpu" ;; *) torch="$(TORCH)" ;; esac
	$(PIP) install --quiet --no-compile --constraint $(LOCK) "torch==$$torch" || {
	    echo "pip could not install torch $$torch: the CPU build comes from PyTorch's own CPU wheel index," \
	         "so set PIP_EXTRA_INDEX_URL to that index's address (PyTorch's installation page shows it for pip, CPU)" \
	         "and run make again." >&2
	    exit 1
	}
	$(PIP) install --quiet --no-compile --constraint $(LOCK) --editable ".[cpu,dev]"
	$(PIP) uninstall --quiet --yes torchaudio torchcodec
	.venv/bin/python -m rlaif.doctor.torchvision_shim install
	$(COMPILE)
	touch $@
	echo "Installed in $$((SECONDS - started)) s. 'make doctor' checks this machine."

.venv/.installed-gpu: pyproject.toml | .venv/bin/python
	@started=$$SECONDS
	echo "Installing into .venv (a few minutes, once) ..."
	$(UPGRADE_PIP)
	$(PIP) install --quiet --no-compile --editable ".[gpu,dev]"
	$(COMPILE)
	touch $@
	echo "Installed in $$((SECONDS - started)) s. 'make doctor' checks this machine."
