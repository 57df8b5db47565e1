# `make help` lists the targets. Everything runs in .venv, which is made once and again when the pins change.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
# The first Python that is new enough; another one: make test PYTHON=/path/to/python3.12
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
endif
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv test test-faults check format clean

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## the environment: .venv with the versions of constraints.txt

# torch first: DeepSpeed's build looks at the torch that is installed, so it must not get an isolated build either.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; on Debian: apt install python3.11 python3.11-venv" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; on Debian: apt install python3.11 python3.11-venv" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "error: $(PYTHON) cannot make environments; on Debian: apt install python3.11-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) torch
	$(PIP) setuptools wheel ninja
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

test: venv ## the default tests, minutes on two cores
	$(BIN)/python -m pytest -q -m 'not campaign'

test-faults: venv ## the long fault campaigns: kill -9, snapshots, bit flips
	$(BIN)/python -m pytest -q -m campaign

check: venv ## lint and format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; runs/ and corpora/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
