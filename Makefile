# Everything a user needs: make demo, make test. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt

.PHONY: demo test test-all test-pythons lint docs bench experiments results faults fuzz soak mutants security clean help

help:
	@echo "make demo      install into .venv, run the quickstart, print where the report is"
	@echo "make test      the fast test suite"
	@echo "make test-all  all tests, the slow ones too"
	@echo "make test-pythons  the fast suite on each Python, on the lowest versions, and the wheel alone"
	@echo "make lint      ruff and pyright"
	@echo "make faults    kill runs and break their disks on purpose; make fuzz, make soak: broken files, long runs"
	@echo "make mutants   small faults put into the code: the tests must fail for each"
	@echo "make security  known holes and licences of what constraints.txt installs"
	@echo "make docs      the documentation site, docs/_build/html/index.html; a warning is an error"
	@echo "make experiments  the fourteen experiments, the small size of each (hours); make results: their page alone"
	@echo "make bench     the benchmark programs, and docs/benchmarks.md from them"

$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python experiments/quickstart.py $(DEMO_ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m ""

test-pythons: $(VENV)/.installed
	$(BIN)/python -m tests.faults.pythons

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

faults: $(VENV)/.installed-test
	$(BIN)/python -m tests.faults.kills
	$(BIN)/python -m tests.faults.storage

fuzz: $(VENV)/.installed-test
	$(BIN)/python -m tests.faults.fuzz

soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.faults.soak

mutants: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mutants]"
	$(BIN)/python -m tests.faults.mutants

security: $(VENV)/.installed-test
	$(BIN)/python -m tests.faults.licences
	$(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

bench: $(VENV)/.installed
	$(BIN)/python experiments/benchmarks/bench.py

experiments: $(VENV)/.installed
	$(BIN)/python -m experiments.run_all

results: $(VENV)/.installed
	$(BIN)/python -m experiments.results_page

clean:
	rm -rf $(VENV) build docs/_build *.egg-info
