# Everything a developer does, on a machine that has Python 3.11 or newer, make and the network.
# uv comes into .tools/, the packages of uv.lock into .venv/; stamps there let a warm start skip both.

.DEFAULT_GOAL := help
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

UV_VERSION := 0.13.9
UV := .tools/uv-$(UV_VERSION)/bin/uv
# The first Python on the PATH that is new enough, `python3` before others.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

LOCKED := uv.lock pyproject.toml $(wildcard libs/*/pyproject.toml services/*/pyproject.toml)
# --inexact: installing what running needs must not remove what testing needs, nor make the next test run wait.
SYNC = $(UV) sync --frozen --inexact --all-packages --python $(PYTHON)
export UV_PROJECT_ENVIRONMENT := .venv
export UV_PYTHON_DOWNLOADS := never
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A dot a second while something silent goes on; its output only if it fails.
WITH_DOTS := sh -c 'while sleep 1; do printf . >&2; done & dots=$$!; "$$@" >.tools/log 2>&1; code=$$?; \
	kill $$dots; echo >&2; [ $$code = 0 ] || cat .tools/log >&2; exit $$code' with-dots

RUN_READY := .venv/.ready-to-run
DEV_READY := .venv/.ready-to-develop

.PHONY: help run test chaos fuzz lint types docs format clean

help: ## Show this list.
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '  make %-8s %s\n' "$$target" "$$text"; done

run: export CAREBUS_STARTED_AT := $(shell date +%s)
run: $(RUN_READY) ## Start everything and stream a sample day; stays up until Ctrl-C, or with ONCE=1 ends with a verdict.
	@exec .venv/bin/carebus demo $(if $(ONCE),--once) $(ARGS)

test: $(DEV_READY) ## Run all tests on real parts, two files at a time; ARGS="-k name" for some.
	@.venv/bin/pytest -n 2 --dist loadfile $(ARGS)

chaos: $(DEV_READY) ## Prove the promise while things break: SCALE=0.1 ONLY=1,6 SEED=42 PLANTED=1, see tests/chaos.
	@.venv/bin/python -m tests.chaos $(if $(SCALE),--scale $(SCALE)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(SEED),--seed $(SEED)) $(if $(PLANTED),--planted) $(ARGS)

fuzz: $(DEV_READY) ## Try every API at length against its document: EXAMPLES=1000 SEED=42, see tests/openapi.
	@FUZZ_EXAMPLES=$(or $(EXAMPLES),1000) FUZZ_SEED=$(SEED) .venv/bin/pytest tests/openapi -rP $(ARGS)

lint: $(DEV_READY) ## Check style and imports.
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports

types: $(DEV_READY) ## Check types, strictly.
	@.venv/bin/mypy libs services tests docs conftest.py

format: $(DEV_READY) ## Format the code and sort its imports.
	@.venv/bin/ruff check --fix --quiet --select I .
	@.venv/bin/ruff format .

docs: $(DEV_READY) ## Write the generated documents anew.
	@.venv/bin/python docs/generate.py

clean: ## Remove what the other targets made, the data of .carebus/ included; what runs there is stopped first.
	@if [ -x .venv/bin/carebus ]; then .venv/bin/carebus down; fi
	@rm -rf .carebus .venv .tools .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV):
	@if ! $(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "Carebus needs Python 3.11 or newer; $(or $(PYTHON),python3) is: $$($(or $(PYTHON),python3) --version 2>&1)." >&2; \
		echo "Install one, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@echo "Fetching uv $(UV_VERSION) into .tools/"
	@rm -rf .tools && mkdir .tools
	@$(WITH_DOTS) sh -ec '$(PYTHON) -m pip install --target .tools/new uv==$(UV_VERSION) || { rm -rf .tools/new; \
		$(PYTHON) -m venv .tools/new; .tools/new/bin/python -m pip install uv==$(UV_VERSION); }'
	@mv .tools/new .tools/uv-$(UV_VERSION)

$(RUN_READY): $(LOCKED) | $(UV)
	@echo "Installing what Carebus needs to run into .venv/"
	@$(WITH_DOTS) $(SYNC) --no-dev
	@touch $@

$(DEV_READY): $(LOCKED) | $(UV)
	@echo "Installing what developing needs into .venv/"
	@$(WITH_DOTS) $(SYNC)
	@touch $@ $(RUN_READY)
