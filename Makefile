# `make demo` and `make test` set everything up by themselves, in .venv, with the versions of constraints.txt.
# The files .venv/ready-* are written last, so that an installation that was interrupted is done again.

VENV := .venv
# the first Python of this machine that runs and is new enough
FIND_PYTHON := for python in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; done
PYTHON ?= $(shell $(FIND_PYTHON))
PIP_INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-extras lint format clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready-demo ## front views of 8 drawn people: demo.png
	$(VENV)/bin/python examples/demo.py

test: lint ## style and all tests
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

test-extras: $(VENV)/ready-extras ## what `make test` leaves out as long as this was not run: 8-bit Adam and DeepSpeed
	$(VENV)/bin/python -m pytest tests/test_savings.py tests/test_estimate.py tests/test_zero.py

lint: $(VENV)/ready-test ## style alone, and whether the tables in the docs are those of the result files
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/python benchmarks/update_docs.py --check

format: $(VENV)/ready-test ## repair the style
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean: ## remove the environment and what the demo wrote
	rm -rf $(VENV) demo demo.png

$(VENV)/ready-demo: setup.py constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed and was not found: install it, or run make PYTHON=/path/to/python." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) setuptools
	$(PIP_INSTALL) --no-build-isolation -e '.[demo]'
	touch $@

$(VENV)/ready-test: $(VENV)/ready-demo
	$(PIP_INSTALL) --no-build-isolation -e '.[test]'
	touch $@

$(VENV)/ready-extras: $(VENV)/ready-test
	$(PIP_INSTALL) --no-build-isolation -e '.[adam8bit,deepspeed]'
	touch $@
