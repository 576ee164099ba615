# `make demo` attacks the shipped examples, and `make test` runs the tests. Each target installs into .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

SCALE ?= tiny

.PHONY: demo test test-slow weights lint help reproduce constraints
help:
	@echo "make demo     attack the shipped examples in five ways, and audit them (one to two minutes)"
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
	@echo "== attack 1 of 5: learned, on structured loss maps"
	@$(RUN) attack.py --out runs/demo-loss
	@echo "== attack 2 of 5: learned, on posterior and label concatenated (C+GT)"
	@$(RUN) attack.py -resume weights/concate.pth.tar -input concate --out runs/demo-concate
	@echo "== attack 3 of 5: a threshold on the loss, which learns nothing"
	@$(RUN) attack.py --attack loss --out runs/demo-threshold
	@echo "== attack 4 of 5: membership error, which corrects the loss by how hard the image is to predict"
	@$(RUN) attack.py --attack membership-error --out runs/demo-error
	@echo "== attack 5 of 5: the loss, compared with that of two reference models"
	@$(RUN) attack.py --attack calibrated --references weights/reference-0 weights/reference-1 --out runs/demo-calibrated
	@echo "== curves: roc.png and precision-recall.png in runs/demo-{loss,concate,threshold,error,calibrated}"
	@echo "== audit: the answer on one page, with controls and under a defense"
	@$(RUN) audit.py --attacks loss confidence --try argmax --out runs/demo-audit

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
