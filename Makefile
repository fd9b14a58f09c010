# make demo: environment, install, the whole chain on real data, a report.
# make test: environment with the test tools, every check, the test suite but for what takes long.
# make test-all: that, and whole chains, real processes, matrices of networks, ModelOpt (1.4 GB, once).
# make coverage: the suite again, with the lines that it ran. make docs: the user guide, in site/.
# make house: counts that keep the source readable, each against its bound; the checks have those that need no run.
# make audit: the pinned versions against the known vulnerabilities (asks PyPI). make sbom: what `vsfix[cpu]` brings along.

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

# Many tests start commands: their byte code is kept, whatever the user's setting.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: demo test test-all check counts house lint types imports tests coverage docs audit sbom quantizer clean

demo: $(VENV)/.runtime
	$(BIN)/vsfix demo -o vsfix-demo --force

test: check

test-all: test $(QUANTIZER)
	$(PYTEST) -m long

check: lint types imports counts tests

counts: $(VENV)/.test
	$(BIN)/python benchmarks/house.py --no-runtime

house: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/house.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

imports: $(VENV)/.test
	PYTHONPATH=.typing $(BIN)/lint-imports --no-cache

tests: $(VENV)/.test
	$(PYTEST)
	@echo "Not run: the tests that take long (make test-all), the published networks (pytest -m published)"

coverage: $(VENV)/.test $(QUANTIZER)
	$(PYTEST) -m "not published" --cov --cov-report=term:skip-covered

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

audit: $(VENV)-supply/.complete
	$(VENV)-supply/bin/pip-audit --no-deps --disable-pip -r constraints.txt

sbom: $(VENV)-supply/.complete
	$(VENV)-supply/bin/python -m venv --clear --without-pip $(VENV)-sbom
	$(VENV)-supply/bin/pip --python $(VENV)-sbom/bin/python install --quiet -c constraints.txt '.[cpu]'
	$(VENV)-supply/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o docs/sbom.cdx.json $(VENV)-sbom/bin/python
	rm -rf $(VENV)-sbom build

# In an environment of their own: they want other versions than those that they look at.
$(VENV)-supply/.complete:
	$(PYTHON) -m venv $(VENV)-supply
	$(VENV)-supply/bin/pip install --quiet --upgrade pip pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python $(REQUIREMENTS)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,train]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python $(REQUIREMENTS)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,train,hf,ray,tensorboard,docs,test$(RTX)$(TRITON)]'
	touch $@ $(VENV)/.runtime

# ModelOpt, for the tests of int8 and fp8: an environment of its own in the user's cache, made once (1.4 GB).
quantizer: $(VENV)/.test
	$(BIN)/python -c "from vsfix.pipeline.host.quantizer import install_quantizer; install_quantizer()"

clean:
	rm -rf $(VENV) $(VENV)-supply $(VENV)-sbom vsfix-demo site
