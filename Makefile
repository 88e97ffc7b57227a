# Two commands matter: `make run` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
VENV ?= .venv
ROUTE ?= local_cpu
# More options for pip, for instance the address of an index that carries torch's CPU build (see the README).
PIP_OPTIONS ?=

# Two test files or packs of notebooks at a time, each process with one thread for its arithmetic. The notebooks are
# among the tests, not after them: they take turns with them, and one summary at the end tells of all.
TWO_AT_ONCE := -n 2 --dist loadfile --no-loadscope-reorder
NBVAL := --nbval-lax --nbval-current-env

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup run test lab lint mini-instruct reference

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

setup: $(STAMP)  ## create .venv and install the pinned versions, once

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13"; \
	  echo "next: name one that is, for example: make run PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -e ".[test]" $(PIP_OPTIONS)
	@touch $@

run: setup  ## run the workbook on ROUTE (default local_cpu), verify the pack, write the report
	@$(BIN)/labkit run --route $(ROUTE)

test: setup  ## run the whole test suite, and the notebooks under nbval with it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests notebooks $(NBVAL) $(TWO_AT_ONCE)

lab: setup  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

lint: setup  ## check style, format and the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

mini-instruct: setup  ## train the embedded model again, with the command that made it (an hour and a half; goes on after a stop)
	$(BIN)/python data/corpus/generate.py
	$(BIN)/labkit train --recipe data/models/mini-instruct/recipe.yaml --out data/models/mini-instruct --resume

# The lessons of the reference pack. 13.6 is not among them: its adapter would take the pack beyond 5 MB, and the route
# does not require it. 13.0 comes last, because its boxes fill from what the others left.
REFERENCE_LESSONS ?= 13.1 13.2 13.3 13.4 13.5 13.0

reference: setup  ## run local_cpu on a clean copy of the last commit and keep its pack in evidence/reference
	rm -rf build/reference
	git clone --quiet . build/reference
	cd build/reference && export PYTHONPATH=$$PWD && for lesson in $(REFERENCE_LESSONS); do \
	  $(abspath $(BIN))/python -m labkit.cli run --route local_cpu --evidence evidence/local_cpu --lesson $$lesson || exit 1; done
	$(BIN)/labkit verify build/reference/evidence/local_cpu
	rm -rf evidence/reference/local_cpu && mkdir -p evidence/reference
	cp -R build/reference/evidence/local_cpu evidence/reference/local_cpu
