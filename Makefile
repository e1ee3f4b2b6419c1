# `make demo` runs the main job, `make test` passes the tests; both set up what they need.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint types doctest check results clean
demo: .venv/.installed
	$(BIN)/itgan run digits

test: .venv/.developer
	$(BIN)/python -m pytest -q

test-slow: .venv/.developer
	$(BIN)/python -m pytest -q -m slow

lint: .venv/.developer
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.developer
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

doctest: .venv/.developer
	$(BIN)/python -m pytest -q --doctest-modules src

check: lint types doctest test

results: .venv/.installed
	$(BIN)/python -m itgan.results docs/claims.toml results docs

clean:
	rm -rf .venv build dist

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "itgan needs Python 3.11 or newer"'
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e .
	touch $@

.venv/.developer: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[dev]'
	touch $@ .venv/.installed
