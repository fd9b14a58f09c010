# make demo: environment, install, the whole chain on real data, a report.
# make test: environment with the test tools, every check, the test suite.

PYTHON ?= python3
comma := ,
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := pyproject.toml constraints.txt
# TensorRT-RTX builds engines without a GPU, and has wheels for this kind of machine only; its tests are skipped elsewhere.
RTX := $(if $(findstring Linux x86_64,$(shell uname -sm)),$(comma)rtx)

# Triton has wheels for Linux alone.
TRITON := $(if $(filter Linux,$(shell uname -s)),$(comma)triton)

QUANTIZER := $(if $(RTX),quantizer)

.PHONY: demo test check lint types imports tests quantizer clean

demo: $(VENV)/.runtime
	$(BIN)/vsfix demo -o vsfix-demo --force

test: check

check: lint types imports tests

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

imports: $(VENV)/.test
	$(BIN)/lint-imports

tests: $(VENV)/.test $(QUANTIZER)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --cov --cov-report=term:skip-covered

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python $(REQUIREMENTS)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,train]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python $(REQUIREMENTS)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,train,hf,ray,tensorboard,test$(RTX)$(TRITON)]'
	touch $@ $(VENV)/.runtime

# ModelOpt, for the tests of int8 and fp8: an environment of its own in the user's cache, made once (1.4 GB).
quantizer: $(VENV)/.test
	$(BIN)/python -c "from vsfix.pipeline.quantizer import install_quantizer; install_quantizer()"

clean:
	rm -rf $(VENV) vsfix-demo
