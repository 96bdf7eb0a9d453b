# `make help` lists the targets. The environment lives in .venv and follows pyproject.toml
# and constraints.txt. Settings: PYTHON, TORCH=cpu|cuda, PORT, MODEL, TORCH_VERSION.

IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(IN_RANGE)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
MODEL ?= pixel-unet
PORT ?= 8888
MEASURED := data/results/measured

NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# notebooks/conftest.py says how outputs are compared.
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=60 -p no:python --dist loadscope

# One thread per test process, and no model hub: the same numbers on every machine.
OFFLINE := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

LAB := JUPYTER_CONFIG_PATH=$(CURDIR)/.jupyter $(VENV)/bin/jupyter lab \
	--ServerApp.root_dir=$(CURDIR)/notebooks --ServerApp.port=$(PORT)
ifeq ($(shell id -u),0)
LAB += --allow-root
endif
ifeq ($(shell uname),Linux)
SCREEN := $(DISPLAY)$(WAYLAND_DISPLAY)
else
SCREEN := yes
endif

.PHONY: help lab lab-headless test test-fast sabotage lint lock train notebooks measure

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## / | /' | \
		while IFS='|' read -r name text; do printf '%-14s%s\n' "$$name" "$$text"; done

lab: $(READY) ## open the notebooks in JupyterLab (prints the address where there is no screen)
	$(LAB) $(if $(SCREEN),,--no-browser)

lab-headless: $(READY) ## the same on a server: no browser, prints the address to open
	$(LAB) --no-browser

test: lint ## everything: style, package, kernels, browser, notebooks; no network, no GPU
	$(OFFLINE) $(PY) -m pytest -n 2 tests
	$(if $(NOTEBOOKS),$(OFFLINE) $(PY) -m pytest -n 2 $(NBVAL) $(NOTEBOOKS))

test-fast: lint ## style and the quick tests
	$(OFFLINE) $(PY) -m pytest -n 2 -m "not slow and not browser and not sabotage" tests

sabotage: $(READY) ## break every method in turn: a unit test and a notebook cell must notice
	$(OFFLINE) $(PY) -m pytest -n 2 -m "" tests/sabotage

lint: $(READY) ## ruff: rules and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

lock: $(READY) ## refresh constraints.txt (torch moves only with TORCH_VERSION=x.y.z)
	$(PY) .ci/lock.py $(TORCH_VERSION)

train: $(READY) ## train a shipped model from scratch, resumable: make train MODEL=pixel-unet
	$(VENV)/bin/dqlab train $(MODEL)

notebooks: $(READY) ## from notebooks/src: run them, make student copies, try every solution and mistake
	$(PY) notebooks/src/build.py build
	$(PY) notebooks/src/build.py student
	$(OFFLINE) $(PY) -m pytest tests/notebooks

measure: $(READY) ## methods against their baselines on pixel-unet and latent-unet, hours; appends to data/results
	$(OFFLINE) DQLAB_QUIET=1 $(PY) tests/benchmarks/reconstruction.py --method q-diffusion \
		--bits 4:8 4:4 3:8 --out $(MEASURED)/q-diffusion.jsonl
	$(OFFLINE) DQLAB_QUIET=1 $(PY) tests/benchmarks/reconstruction.py --method eda-dm \
		--bits 4:8 4:4 --out $(MEASURED)/eda-dm.jsonl
	$(OFFLINE) DQLAB_QUIET=1 $(PY) tests/benchmarks/steps_and_corrections.py --eta 0 1 \
		--bits 4:8 4:4 --out $(MEASURED)/steps-and-corrections.jsonl
	$(OFFLINE) DQLAB_QUIET=1 $(PY) tests/benchmarks/time_information.py \
		--out $(MEASURED)/time-information.jsonl

$(READY): pyproject.toml constraints.txt .ci/environment.py
	@test -n "$(PYTHON)" || { echo "dqlab needs Python 3.11, 3.12 or 3.13 and found none." \
		"Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c '$(IN_RANGE)' || { echo "dqlab needs Python 3.11, 3.12 or 3.13;" \
		"$(PYTHON) is $$($(PYTHON) --version 2>&1)." \
		"Name another: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PY) .ci/environment.py
	@touch $@
