# `make help` lists what there is. Everything runs in .venv, which is made on first use.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
VENV := .venv
SIZE ?= base
WORKERS ?= 2
# One option per variable that was given, e.g. `make reproduce MODEL=data/minivlm/base N=32`.
options = $(foreach pair,MODEL:--model SOURCE:--source N:--n SEED:--seed DEVICE:--device \
	DTYPE:--dtype PROFILE:--profile OUT:--out JOBS:--jobs ENGINE:--engine RAY:--ray,$(call option,$(subst :, ,$(pair))))
option = $(if $(value $(word 1,$(1))),$(word 2,$(1)) '$(call quoted,$(word 1,$(1)))')
# A value as given, within single quotes: it may itself hold quotes, and no $ in it is expanded.
quoted = $(subst ','\'',$(value $(1)))

# Else make would expand them for the environment of each command, $(shell ...) included.
unexport MODEL SOURCE N SEED DEVICE DTYPE PROFILE OUT JOBS ENGINE RAY RUN DRY

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Kernels show plain lines and no widgets: tqdm need not advise to install them.
export PYTHONWARNINGS ?= ignore:IProgress not found
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -qq --no-input
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
CLEAN_RESULTS := $(CURDIR)/build/results

.PHONY: help reproduce report test test-e2e test-faults cache lab bench bench-gpu eval-minivlm train-minivlm worlds notebooks lint format clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

reproduce: $(STAMP) ## run all notebooks, print the verdicts, write report.html; MODEL= N= PROFILE= OUT= SOURCE= SEED= DEVICE= JOBS= ENGINE= choose; DRY=1 tells what it will take
	@$(PY) -m visdepth_utils reproduce $(options) $(if $(value DRY),--dry)

report: $(STAMP) ## write report.html of a run again, from what the run has; RUN=results/base-quick
	@$(PY) -m visdepth_utils report '$(if $(value RUN),$(call quoted,RUN),base-quick)'

# Results of tests go to a folder of their own: tests must measure, not read what an earlier run measured.
test: export HF_HUB_OFFLINE := 1
test: export TOKENIZERS_PARALLELISM := false
test: export MPLBACKEND := agg
test: export VISDEPTH_RESULTS := $(CLEAN_RESULTS)
test: $(STAMP) lint ## lint, then all tests, then every notebook against its stored outputs
	@rm -rf $(CLEAN_RESULTS)
	@$(PY) -m pytest --ignore=tests/benchmarks --ignore=tests/faults --nbval-lax --nbval-current-env tests $(NOTEBOOKS)

test-e2e: export HF_HUB_OFFLINE := 1
test-e2e: export TOKENIZERS_PARALLELISM := false
test-e2e: export MPLBACKEND := agg
test-e2e: export VISDEPTH_RESULTS := $(CLEAN_RESULTS)
test-e2e: $(STAMP) ## only the tests of whole runs: Colab, JupyterLab, own data, the report in a browser
	@$(PY) -m pytest tests/e2e

# One thread, as a worker with one CPU has: so tables are equal to the last bit.
test-faults: export HF_HUB_OFFLINE := 1
test-faults: export TOKENIZERS_PARALLELISM := false
test-faults: export MPLBACKEND := agg
test-faults: export OMP_NUM_THREADS := 1
test-faults: $(STAMP) ## kills, interrupts, full disks, lost workers, and that nothing changes by them; a quarter of an hour
	@$(PY) -m pytest -s tests/faults

cache: $(STAMP) ## what the step cache holds and what of it is outdated; RUN=base-quick one run, PRUNE=1 deletes
	@$(PY) -m visdepth_utils cache $(if $(value RUN),'$(call quoted,RUN)') $(if $(PRUNE),--prune)

lab: $(STAMP) ## open JupyterLab on notebooks/
	@$(PY) -m jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(LAB_OPTIONS)

bench: $(STAMP) ## time and memory of the measurements, as ratios to the plain forward pass
	@$(PY) tests/benchmarks/bench_geometry.py
	@$(PY) tests/benchmarks/bench_sweeps.py
	@$(PY) tests/benchmarks/bench_recovery.py

bench-gpu: $(STAMP) ## time and memory at the true sizes of real models, random weights; needs a CUDA device
	@$(PY) tests/benchmarks/bench_physical.py

eval-minivlm: $(STAMP) ## accuracy of the embedded models, with the picture, without it, with another one
	@$(PY) -m visdepth_utils eval-minivlm

# One worker per core beats one process with as many threads; with a GPU: WORKERS=1.
train-minivlm: $(STAMP) ## train an embedded model; SIZE=base SEED=0 WORKERS=2 TOWER=data/minivlm/base; over an hour on two cores, resumes after a kill
	@OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc-per-node $(WORKERS) \
		-m visdepth_utils.minivlm.train --threads 1 --size $(SIZE) --seed $(or $(SEED),0) \
		$(if $(TOWER),--tower $(TOWER))

worlds: $(STAMP) ## write the frozen held-out sets of data/worlds again, byte for byte
	@$(PY) -m visdepth_utils.minivlm.freeze

notebooks: export VISDEPTH_RESULTS := $(CLEAN_RESULTS)
notebooks: $(STAMP) ## run the notebooks as they are and store their outputs in place, to be committed
	@rm -rf $(CLEAN_RESULTS)
	@$(PY) -m visdepth_utils notebooks

lint: $(STAMP) ## ruff check and ruff format --check, notebooks included
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check . || { echo "run: make format"; exit 1; }

format: $(STAMP) ## let ruff format and mend what it can
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

clean: ## remove .venv and caches; results/ and trained models stay
	rm -rf $(VENV) $(CLEAN_RESULTS) dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './results/*' -prune -exec rm -rf {} +

# The stamp is newer than what was installed from: a second call installs nothing.
$(STAMP): pyproject.toml constraints.txt
	@py="$(PYTHON)"; \
	fits() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	fits "$$py" || { [ "$(origin PYTHON)" = file ] && py=python3 && fits "$$py"; } || { \
		echo "error: $(PYTHON) is not there or too old: install Python 3.11 or newer, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }; \
	"$$py" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: $$py has no venv module: install it (Debian: apt install $$(basename "$$py")-venv)" >&2; exit 1; }; \
	$(PY) -m pip --version >/dev/null 2>&1 || { echo "making $(VENV) with $$py"; "$$py" -m venv --clear $(VENV); }
	@echo "installing $(TORCH) (hundreds of megabytes, some minutes) ..."; t=$$SECONDS; \
	$(PIP) -c constraints.txt '$(TORCH)'; echo "  $$((SECONDS - t)) s"
	@echo "installing the rest (some minutes) ..."; t=$$SECONDS; \
	$(PIP) -c constraints.txt -e '.[notebooks,dev]'; echo "  $$((SECONDS - t)) s"
	@touch $@
