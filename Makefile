# Everything a user needs: make demo, make test. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt

.PHONY: demo test test-all lint bench clean help

help:
	@echo "make demo      install into .venv, run the quickstart, print where the report is"
	@echo "make test      the fast test suite"
	@echo "make test-all  all tests, the slow ones too"
	@echo "make lint      ruff and pyright"
	@echo "make bench     the benchmark programs, and docs/benchmarks.md from them"

$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python experiments/quickstart.py $(DEMO_ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m ""

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed
	$(BIN)/python experiments/benchmarks/bench.py

clean:
	rm -rf $(VENV) build *.egg-info
