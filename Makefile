# Two commands set everything up: `make demo` and `make test`. Both are idempotent, and quick when nothing changed.
# `make real` studies a real pretrained model, for hours; it may be stopped and goes on. The model has terms of its own:
# `make real ACCEPT_GEMMA_TERMS=1` accepts them.
# `make docs` builds the documentation into site/ and fails on any warning.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

REAL := runs/real
MATRICES := novel-attacked familiar-attacked novel-clean familiar-clean novel-answers familiar-answers

.PHONY: demo quick real test lint docs clean

demo: $(VENV)/.installed
	$(BIN)/antibody demo --output runs/demo

quick: $(VENV)/.installed
	$(BIN)/antibody demo --quick --output runs/demo-quick

# In one folder, so that the matrices share their alignments.
real: $(REAL)/study/novel-answers.yaml
	for matrix in $(MATRICES); do \
		$(BIN)/antibody bench $(REAL)/study/$$matrix.yaml --output $(REAL)/cells || exit 1; \
		cp $(REAL)/cells/report.html $(REAL)/$$matrix.html; \
	done
	$(BIN)/python benchmarks/real_model.py --read $(REAL) --output $(REAL)/figures.json
	$(BIN)/python benchmarks/real_model.py --report $(REAL)/figures.json --write $(REAL)/results.md
	cat $(REAL)/results.md

$(REAL)/study/novel-answers.yaml: $(REAL)/taught/config.json
	$(BIN)/antibody real study --model $(REAL)/taught $(if $(XSTEST),--xstest $(XSTEST)) --output $(REAL)/study --overwrite

$(REAL)/taught/config.json: $(REAL)/gemma/config.json
	$(BIN)/antibody real teach --model $(REAL)/gemma --output $(REAL)/taught

$(REAL)/gemma/config.json: $(VENV)/.real
	$(BIN)/antibody real prepare $(if $(ACCEPT_GEMMA_TERMS),--accept-gemma-terms) $(if $(XSTEST),--xstest $(XSTEST)) --output $(REAL)/gemma --overwrite

$(VENV)/.real: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[real]'
	touch $@

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python docs/build.py

$(VENV)/.docs: $(VENV)/.installed pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist site .pytest_cache .mypy_cache .ruff_cache
