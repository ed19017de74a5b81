# Everything a newcomer needs, from a clone with only Python, pip, git and make:
#   make demo    prune a network on embedded data, about two minutes
#   make test    the whole test suite
#   make lint    ruff, pyright and clang-format
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CPP    := $(wildcard native/*.cpp native/*.h tests/native/*.cpp tests/native/*.h)

.PHONY: demo test lint format clean

# the native engine is part of the package: its sources, too, make it due again
$(VENV)/ready: pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@# torch first and pinned: a range would take the newest build with its CUDA packages
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/ready
	rm -rf runs/demo
	$(BIN)/secateur prune --data digits --sparsity 0.9 --recover both --out runs/demo

# a file of tests for each core at a time, in their order: the slow ones do not come last; a process that ends, as
# one in which a test hung does, is replaced once
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --max-worker-restart 1

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
