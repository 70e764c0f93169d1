# Everything a clone needs: Python >= 3.11, git and make. `make help` lists the targets.

VENV   := .venv
PYTHON := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
PIP    := requirements/install.sh $(PYTHON)
PINS   := requirements/constraints.txt

# Which build of torch: auto (CUDA where nvidia-smi exists, else CPU; an installed one is kept), cpu or cuda.
TORCH ?= auto
# Arguments for pytest, e.g. make unit TESTS="tests/config -k recipe"
TESTS ?=
# Worker processes of the test run: one more than the two cores of CI, since some tests wait for jobs and dead ranks.
WORKERS ?= 3
# Which table at which size: make reproduce-tableB PAPER=gapo SCALE=laptop SEEDS=3 MORE=--dry-run
PAPER ?= amapo
SCALE ?= laptop
SEEDS ?= 1
MORE ?=

# Dependencies of packages built from source are pinned as well (the first name is read by pip < 25.3, the second since).
export PIP_CONSTRAINT := $(PINS)
export PIP_BUILD_CONSTRAINT := $(PINS)
# DeepSpeed compiles what it needs on first use, not all of it now.
export DS_BUILD_OPS := 0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-evaluation setup-cluster setup-test demo report readme-table dashboard test lint types unit format bench bench-against bench-own calibrate lock clean clean-venv FORCE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# --- set-up -----------------------------------------------------------------------------------------------------------

setup: $(STAMPS)/core ## Create .venv with what training needs (TORCH=auto|cpu|cuda chooses the build of torch)

setup-evaluation: $(STAMPS)/evaluation ## The same and what the public benchmarks need (alpaca-eval, lm-eval)

setup-cluster: $(STAMPS)/cluster ## The first and what sharded training and sweeps on SLURM need (deepspeed, submitit)

setup-test: $(STAMPS)/test ## All of that and what the tests need

$(STAMPS)/venv:
	@requirements/create_venv.sh $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# A build asked for by name replaces an installed one; `auto` keeps what is there.
ifneq ($(TORCH),auto)
ifneq ($(TORCH),$(shell cat $(STAMPS)/torch 2>/dev/null))
$(STAMPS)/torch: FORCE
endif
endif

$(STAMPS)/torch: $(STAMPS)/venv requirements/install_torch.sh
	@requirements/install_torch.sh $(PYTHON) $(TORCH)
	@echo $(TORCH) > $@

$(STAMPS)/core: $(STAMPS)/torch requirements/core.txt requirements/install.sh $(PINS)
	@echo "Installing the core packages"
	@$(PIP) -r requirements/core.txt
	@touch $@

$(STAMPS)/evaluation: $(STAMPS)/core requirements/evaluation.txt
	@echo "Installing the packages of the public benchmarks"
	@$(PIP) -r requirements/core.txt -r requirements/evaluation.txt
	@touch $@

$(STAMPS)/wandb: $(STAMPS)/core requirements/wandb.txt
	@echo "Installing W&B"
	@$(PIP) -r requirements/core.txt -r requirements/wandb.txt
	@touch $@

$(STAMPS)/cluster: $(STAMPS)/core requirements/cluster.txt
	@echo "Installing the packages of clusters"
	@$(PIP) -r requirements/core.txt -r requirements/cluster.txt
	@touch $@

LISTS := core evaluation wandb cluster test

$(STAMPS)/test: $(STAMPS)/torch requirements/install.sh $(PINS) $(LISTS:%=requirements/%.txt)
	@echo "Installing the packages of the program, its extras and the tests"
	@$(PIP) $(LISTS:%=-r requirements/%.txt)
	@touch $(STAMPS)/core $(STAMPS)/evaluation $(STAMPS)/wandb $(STAMPS)/cluster $@

# --- use --------------------------------------------------------------------------------------------------------------

demo: setup ## SFT, then DPO, SimPO and AMaPO on the toy world, ranked, with a report (a few CPU minutes)
	@$(PYTHON) -m src.demo

readme-table: setup ## A rendered table and its claims into README.md (PAPER, SCALE)
	@$(PYTHON) -m src.reporting.readme results/tables/$(PAPER)_table2_$(SCALE).md

report: setup ## Tables, figures and one HTML page from the runs and records at hand
	@$(PYTHON) -m src.report

reproduce-table%: setup-evaluation FORCE ## reproduce-table2: what is missing of a table is trained and measured (PAPER, SCALE, SEEDS)
	@$(PYTHON) -m src.reproduce paper=$(PAPER) table=$* scale=$(SCALE) seeds=$(SEEDS) $(MORE)

reproduce-figure%: setup-evaluation FORCE ## The same for a figure that is a sweep
	@$(PYTHON) -m src.reproduce paper=$(PAPER) table=figure$* scale=$(SCALE) seeds=$(SEEDS) $(MORE)

table%: setup FORCE ## table2: a table from the records at hand, nothing is started
	@$(PYTHON) -m src.reproduce paper=$(PAPER) table=$* scale=$(SCALE) seeds=$(SEEDS) --table $(MORE)

figure%: setup FORCE ## The same for a figure
	@$(PYTHON) -m src.reproduce paper=$(PAPER) table=figure$* scale=$(SCALE) seeds=$(SEEDS) --table $(MORE)

dashboard: $(STAMPS)/wandb ## Publish the dashboards to W&B (needs an account; `make report` shows the same panels without)
	@$(PYTHON) -m src.dashboard

bench: setup-test ## Measure steps against TRL's, technique by technique, and how they grow (half an hour on two quiet cores)
	@$(MAKE) --no-print-directory -j2 bench-against bench-own

# CPU time is what is compared, so both may run at once.
bench-against: setup-test ## Of these, the comparison with TRL and how steps grow
	@$(PYTHON) -m benchmarks.against_trl
	@$(PYTHON) -m benchmarks.growth
	@$(PYTHON) -m benchmarks.gapo_cost

bench-own: setup-test ## Of these, what each part of a step costs and whole runs
	@$(PYTHON) -m benchmarks.step_cost
	@$(PYTHON) -m benchmarks.end_to_end
	@$(PYTHON) -m benchmarks.startup

calibrate: setup ## Measure again what docs/toy_world.md says of the toy world
	@$(PYTHON) -m benchmarks.calibrate_toy

# --- checks -----------------------------------------------------------------------------------------------------------

test: lint ## Everything CI checks: lint, types and tests
	@$(MAKE) --no-print-directory -j 2 types unit

lint: setup-test ## Style and format (ruff)
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .

types: setup-test ## Types (mypy, strict)
	@$(PYTHON) -m mypy src benchmarks

unit: setup-test ## Tests alone (TESTS="path -k name" narrows them)
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=15 $(TESTS)

format: setup-test ## Rewrite the sources in the house format
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

# --- upkeep -----------------------------------------------------------------------------------------------------------

lock: $(STAMPS)/venv ## Resolve requirements/*.txt into constraints.txt (UPGRADE=--upgrade takes newer versions)
	@requirements/lock.sh $(PYTHON) $(UPGRADE)

clean: ## Remove what tools left behind and the report page; runs/, cache/ and results/ stay
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis report
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-venv: ## Remove .venv
	@rm -rf $(VENV)
