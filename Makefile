# `make help` lists the targets. Everything runs in .venv, which is made once and again when the pins change.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
TEST_STAMP := $(VENV)/.complete-test
CHECK_STAMP := $(VENV)/.complete-check
# The first Python that is new enough; another one: make test PYTHON=/path/to/python3.12
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
endif
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv run gpu test test-faults test-layouts test-nodes check format clean

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## the environment to run: .venv with the versions of constraints.txt

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
	$(PIP) --no-build-isolation --editable .
	@touch $@

# Triton alone is a gigabyte: what only tests and checks need is added when they are run.
$(TEST_STAMP): $(STAMP)
	$(PIP) --no-build-isolation --editable '.[test]'
	@touch $@

$(CHECK_STAMP): $(STAMP)
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

CORPUS := corpora/wikitext2
SHARDS := corpora/wikitext2-shards
RECIPE := quickstart
RUN := runs/quickstart
# Seconds until the first start is stopped with SIGTERM, as a scheduler would: it saves, and the second start goes on.
STOP_AFTER := 120

run: venv ## the main job on WikiText-2: shards, training that is stopped and resumed, export, fill-mask, a probe
	$(BIN)/megadeberta fetch wikitext2 --output $(CORPUS)
	$(BIN)/megadeberta prep $(CORPUS)/train.raw.gz --valid $(CORPUS)/valid.raw.gz --document-per wikitext \
		--vocab-size 4000 --output $(SHARDS)
	timeout --preserve-status --signal=TERM $(STOP_AFTER) $(BIN)/megadeberta launch $(RECIPE) --ranks 2; \
		code=$$?; test $$code -eq 75 -o $$code -eq 0 || exit $$code
	$(BIN)/megadeberta launch $(RECIPE) --ranks 2
	$(BIN)/megadeberta convert export $(RUN) $(RUN)/export --overwrite
	$(BIN)/python docs/examples/fill_mask_with_transformers.py $(RUN)/export
	$(BIN)/python docs/examples/probe_with_transformers.py $(RUN)/export $(CORPUS)/trec.csv
	$(BIN)/megadeberta report $(RUN)

# The environment if there is one, else the first Python that is new enough and has torch: a GPU machine's own.
GPU_PYTHON = $(firstword $(shell for python in $(BIN)/python python3 python python3.13 python3.12 python3.11; do \
	"$$python" -c 'import importlib.util as u, sys; sys.exit(sys.version_info < (3, 11) or u.find_spec("torch") is None)' \
	2>/dev/null && echo "$$python"; done))
# More arguments, such as GPU="--minutes 5 --output day": benchmarks/gpu_day.py --help
GPU :=

gpu: ## everything about a GPU in under nine minutes: times, profile, goals; installs nothing
	@test -n "$(GPU_PYTHON)" || { echo "error: no Python 3.11 or newer here has torch; run make venv" >&2; exit 1; }
	$(GPU_PYTHON) benchmarks/gpu_day.py $(GPU)

# As many at a time as there are cores. A process that runs out of tests takes half of what another has left.
test: $(TEST_STAMP) ## the default tests, minutes on two cores
	$(BIN)/python -m pytest -q -m 'not campaign' -n logical --maxprocesses 8 --dist worksteal

test-faults: $(TEST_STAMP) ## every bar of reliability as a table, resumable; BARS="R1 R2" for some, hours for all
	$(BIN)/python -m tests.faults $(BARS)

test-layouts: $(TEST_STAMP) ## every layout against one process, hours; LAYOUTS="--variant v3 --every 10" for a part
	$(BIN)/python -m tests.distributed.layout_matrix $(LAYOUTS)

test-nodes: $(TEST_STAMP) ## two rehearsed machines through pdsh and the deepspeed launcher; as root, with pdsh and sshd
	$(BIN)/python tests/e2e/two_nodes.py

check: $(CHECK_STAMP) ## lint, format and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/format_recipes.py --check
	$(BIN)/mypy

format: $(CHECK_STAMP) ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/format_recipes.py

clean: ## remove the environment and caches; runs/ and corpora/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
