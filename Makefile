# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv in this checkout first.
PYTHON ?= python3
BIN := .venv/bin
DATA ?=

.PHONY: demo test test-long check lint types bench clean

.venv/ready: setup.py constraints.txt pyproject.toml $(wildcard kernels/native/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt "setuptools>=68" wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[dev,dali]"
	touch $@

demo: .venv/ready
	$(BIN)/python examples/demo.py $(if $(DATA),--data "$(DATA)")

# Hundreds of the tests start, kill or time whole processes on a machine that others load too: in CI a failing test runs
# once more, and the summary names it a rerun. By hand it fails at once, so that whoever sees it can mend it.
test: check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(if $(CI),--reruns 1 -r fER)

test-long: .venv/ready
	$(BIN)/python -m pytest --override-ini "addopts=--strict-markers" --hypothesis-profile long

check: lint types

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]" --no-build-isolation
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
