# rundctl: `make demo` and `make test` are all that is needed; both need root and set up what is missing (tools/setup).

VENV ?= .venv
PYTHON = $(VENV)/bin/python
PYTEST = $(PYTHON) -m pytest

# Kernels and templates: kept between runs, and outside the checkout so that CI can cache them.
export RUNDCTL_HOME ?= /var/lib/rundctl
export VENV

.DEFAULT_GOAL = help
.PHONY: help setup setup-test demo test lint test-unit test-native test-contract test-system bench bench-template clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

setup: ## Install what rundctl needs from Debian, and rundctl into .venv
	@tools/setup run

setup-test: ## The same with what the tests need
	@tools/setup test

demo: setup ## Run a busybox container in a microVM and show what happens
	@$(PYTHON) tools/demo

test: setup-test ## All checks and tests
	$(PYTEST) --durations=10 tests/house tests/unit tests/native tests/contract tests/system

lint: setup-test ## Style, types, layers, man pages, start-up imports
	$(PYTEST) tests/house

test-unit: setup-test ## Pure tests
	$(PYTEST) tests/unit

test-native: setup-test ## The C programs, with sanitizers, without a VM
	$(PYTEST) tests/native

test-contract: setup-test ## Both sides of each interface against one suite
	$(PYTEST) tests/contract

test-system: setup-test ## The installed rundctl with real VMs
	$(PYTEST) tests/system

bench: setup-test ## Measure start-up and memory
	$(PYTHON) bench/start.py

bench-template: setup-test ## Measure what a clone costs: memory by part, idle CPU, time to its first answer
	$(PYTHON) bench/template.py

clean: ## Remove what was built; kernels and templates in RUNDCTL_HOME stay
	rm -rf $(VENV) build dist rundctl/_native rundctl/oci/_generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
