# `make demo` attacks the shipped examples, and `make test` runs the tests. Each target installs into .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

SCALE ?= tiny

.PHONY: demo test test-slow weights lint help reproduce constraints
help:
	@echo "make demo     attack the shipped examples in six ways, and audit them (one to two minutes)"
	@echo "make test     run the tests"
	@echo "make test-slow   run the tests that take over ten seconds each"
	@echo "make reproduce SCALE=NAME   make tables and figures at a scale of reproduce/scales: tiny, camvid, table1, ..."
	@echo "make weights  draw the streets, train all models of the demo, write weights/ and examples/"
	@echo "make lint     check the code with ruff"
	@echo "make constraints   write constraints.txt: the newest versions that requirements*.txt allow; run the tests then"
	@echo "Each target first installs the packages into $(VENV), about 6 GB, if they are missing or out of date."

$(STAMP): constraints.txt requirements.txt requirements-dev.txt requirements-audit.txt reproduce/requirements.txt
	@echo "== installing into $(VENV) (about 6 GB; once)"
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet -c constraints.txt -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: $(STAMP)
	@$(RUN) -m examples.demo

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist worksteal

test-slow: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist worksteal -m slow

lint: $(STAMP)
	@$(VENV)/bin/ruff check .

reproduce: $(STAMP)
	@$(VENV)/bin/snakemake -s reproduce/Snakefile --config scale=$(SCALE)

weights: $(STAMP)
	@sh examples/make.sh $(RUN)

constraints:
	@$(PYTHON) -m venv --clear $(VENV)-new
	@$(VENV)-new/bin/pip install --quiet -r requirements.txt -r requirements-dev.txt
	@echo "# The versions that the tests ran with, by \`make constraints\`. The ranges are in requirements*.txt." > constraints.txt
	@$(VENV)-new/bin/pip freeze >> constraints.txt
	@rm -r $(VENV)-new
	@echo "constraints.txt is written; run make test"
