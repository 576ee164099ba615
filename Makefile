# make demo: attack the shipped example.  make test: run the tests.  Both install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

SCALE ?= tiny

.PHONY: demo test weights lint help reproduce
help:
	@echo "make demo     attack the shipped examples with both representations (installs into $(VENV) first)"
	@echo "make test     run the tests (installs into $(VENV) first)"
	@echo "make reproduce SCALE=tiny|camvid|paper   every table and figure of the paper at that scale"
	@echo "make weights  draw streets, train victim, shadow and attackers anew, write weights/ and examples/"
	@echo "make lint     ruff"

$(STAMP): requirements.txt requirements-dev.txt reproduce/requirements.txt
	@echo "== installing into $(VENV) (about 6 GB; once)"
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: $(STAMP)
	@echo "== attack with structured loss maps"
	@$(RUN) attack.py --out runs/demo-loss
	@echo "== attack with posterior and label concatenated"
	@$(RUN) attack.py -resume weights/concate.pth.tar -input concate --out runs/demo-concate
	@echo "== curves: runs/demo-loss/roc.png runs/demo-concate/roc.png (and precision-recall.png beside each)"

test: $(STAMP)
	@$(RUN) -m pytest

lint: $(STAMP)
	@$(VENV)/bin/ruff check .

reproduce: $(STAMP)
	@$(VENV)/bin/snakemake -s reproduce/Snakefile --config scale=$(SCALE)

weights: $(STAMP)
	@sh examples/make.sh $(RUN)
