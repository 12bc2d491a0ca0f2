# Needs Python 3.11 or later with pip and venv, git and make; everything else is installed into .venv.
# On Linux, torch without CUDA: make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
BIN := .venv/bin
DEMO_OUT ?= demo-out
# One thread: on a busy machine, threads that wait for each other take ten times as long.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --jaxtyping-packages=flyweight,beartype.beartype
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo .venv test test-slow lint types benchmark clean

help:  ## list the targets
	@grep -E '^[.a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([.a-z-]+):.*## /\1\t/' | expand -t 14

demo: .venv/installed  ## compress and run a small model, with nothing but this machine
# Exit code 3 is a refusal, which the table shows with its reason: int8 is slower on some machines.
	@$(BIN)/flyweight demo --out $(DEMO_OUT) || [ $$? -eq 3 ]

.venv: .venv/installed  ## the environment alone, with flyweight in it

test: lint types  ## everything a change has to pass
	@echo "== tests"
# A worker takes whole files: what the tests of one share is made once.
	@$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed-test
	@echo "== style"
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check . || { echo "run: $(BIN)/ruff format ."; exit 1; }

types: .venv/installed-test
	@echo "== types"
	@$(BIN)/mypy

test-slow: .venv/installed-test  ## tests on real data; minutes to hours
	@$(PYTEST) -m slow

benchmark: .venv/installed-test  ## measure every claim beside its rivals; needs ../shared
	@$(BIN)/python -m benchmarks all

clean:  ## remove what make and the tools made
	@rm -rf .venv .rivals .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-out*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	@echo "== installing flyweight into .venv (minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) -e .
	@touch $@

.venv/installed-test: .venv/installed
	@echo "== installing what the tests need"
	@$(INSTALL) -e '.[test]'
	@touch $@
