# make run    execute the notebook, leave it and an HTML page in build/
# make test   lint, unit tests, and the notebook cell by cell (nbval)
# make examples  the examples cell by cell, and a rehearsal of the benchmarks
# make test-all  both
# make bench  speed and memory beside what one would write instead (ARGS: options of python -m benchmarks)
# make soak   kill a small training 100 times and compare it with an undisturbed one
# make readme bring tables and figures of the pages and S10.ipynb up to date with results/
# make records train what results/ should hold; meant for a GPU (ARGS="--minutes 60": begins no run, after
#             the first, that wouldn't end by then)
#
# Packages go to .venv; with VENV= (empty) the Python at hand is used and nothing installed.

VENV ?= .venv
BASE ?= python3

ifeq ($(strip $(VENV)),)
PYTHON := $(BASE)
else
PYTHON := $(VENV)/bin/python
FOR_RUN := $(VENV)/.for-run
FOR_TEST := $(VENV)/.for-test
FOR_EXAMPLES := $(VENV)/.for-examples
# Packages of a shell's own path would come before those of .venv.
unexport PYTHONPATH PYTHONHOME
# Links to a Python that is gone, which venv would leave as they are, are removed, and the packages
# are installed again: now, as make looks at each file only once.
$(shell [ -x $(VENV)/bin/python ] || [ ! -e $(VENV)/pyvenv.cfg ] || rm -f $(VENV)/bin/python* $(VENV)/.for-*)
endif

# Two of its rules at once would install into one folder.
.NOTPARALLEL:

.PHONY: run test test-all examples bench soak readme records

run: $(FOR_RUN)
	$(PYTHON) -m tools.run_notebook

test: $(FOR_TEST)
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m pytest -n 2 --dist loadfile

test-all: test examples

examples: $(FOR_EXAMPLES)
	S10_PROFILE=smoke $(PYTHON) -m pytest examples benchmarks

bench: $(FOR_TEST)
	$(PYTHON) -m benchmarks $(ARGS)

soak: $(FOR_TEST)
	$(PYTHON) -m tests.soak 100

readme: $(FOR_RUN)
	$(PYTHON) -m tools.readme

records: $(FOR_RUN)
	$(PYTHON) -m tools.trainings $(ARGS)

# 3.11.5 is what soupsieve asks for, which nbconvert brings. What a failure leaves there would be
# taken for whole.
$(VENV)/bin/python:
	@$(BASE) -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 15) and "Python 3.11.5 to 3.14 is needed, for which there are all packages, and " + sys.executable + " is another: make BASE=python3.13, say")'
	$(BASE) -m venv $(VENV) || { rm -f $@; exit 1; }

$(VENV)/.for-run: requirements.txt constraints.txt | $(VENV)/bin/python
	@echo "Installing packages into $(VENV): several GB, some minutes, once"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/.for-test: tests/requirements.txt $(VENV)/.for-run
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt -c constraints.txt
	@touch $@

$(VENV)/.for-examples: examples/requirements.txt $(VENV)/.for-test
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r examples/requirements.txt -c constraints.txt
	@touch $@
