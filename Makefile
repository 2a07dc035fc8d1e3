# `make demo` and `make test` do all set-up themselves, in .venv, from a bare Python 3.11 with pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/.ready
	$(BIN)/actcache demo -o demo-out

test: check
	$(BIN)/python -m pytest
	rm -rf build dist && $(BIN)/python -m build --outdir dist . > /dev/null
	$(BIN)/check-wheel-contents dist

check: .venv/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# torch comes first and by its pin: any newer one pulls gigabytes of CUDA libraries.
.venv/.ready: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt --editable . --group dev
	touch $@

clean:
	rm -rf .venv build dist demo-out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
