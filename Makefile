# rundctl: `make demo` and `make test` are all that is needed; both need root and set up what is missing (tools/setup).
# The first `make test` of a machine builds the guest kernel and QEMU that it tests; `make demo` takes Debian's where there are none.

VENV ?= .venv
PYTHON = $(VENV)/bin/python
PYTEST = $(PYTHON) -m pytest
# Two tests at a time; tests/lanes.py says which. A test that hangs for 15 minutes is shown where it does.
TWO = $(PYTEST) -n 2 -o faulthandler_timeout=900

# Kernels, QEMUs and templates: kept between runs, and outside the checkout so that CI can cache them.
export RUNDCTL_HOME ?= /var/lib/rundctl
export VENV

.DEFAULT_GOAL = help
.PHONY: help setup setup-test setup-system demo test check lint test-unit test-native test-contract test-system test-stress test-cgroup2 test-systemd test-kvm bench bench-cgroup bench-kvm bench-rootfs bench-template test-rebuild clean

help: ## Show the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 16

setup: ## Install what rundctl needs from Debian, and rundctl into .venv
	@tools/setup run

setup-test: ## The same with what tests without a VM need
	@tools/setup test

setup-system: ## The same with the lean kernel and QEMU, built once a machine (some 15 minutes)
	@tools/setup system

demo: setup ## Run a busybox container in a microVM and show what happens
	@$(PYTHON) tools/demo

test: setup-system ## All checks and tests
	$(TWO) --durations=25

check: setup-test ## What needs no VM and under three minutes: lint, unit, contract
	$(TWO) tests/house tests/unit tests/contract

lint: setup-test ## Style, types, layers, man pages, start-up imports
	$(PYTEST) tests/house

test-unit: setup-test ## Pure tests
	$(PYTEST) tests/unit

test-native: setup-test ## The C programs, with sanitizers, without a VM
	$(PYTEST) tests/native

test-contract: setup-test ## Both sides of each interface against one suite
	$(PYTEST) tests/contract

test-system: setup-system ## The installed rundctl with real VMs
	$(PYTEST) tests/system

test-cgroup2: setup-system ## Control groups of version 2, in a VM over the host's root
	$(PYTEST) tests/cgroup2

test-systemd: setup-system ## Scopes made by a real systemd, the init of such a VM
	$(PYTEST) tests/systemd

test-kvm: setup-system ## KVM itself, and all system tests under it, in emulated machines in which it works: some hours (a part of it in test; TESTS=tests/system/test_verbs.py: those alone)
	RUNDCTL_TEST_KVM=1 $(PYTEST) $(or $(TESTS),tests/kvm tests/system)

test-stress: setup-system ## 1000 containers, 20 at once, everything killed at random, and each verb at each step; 100,000 odd config.json and command lines (a part of it in test-system and test-unit)
	RUNDCTL_STRESS_CYCLES=1000 RUNDCTL_STEPS=all $(PYTEST) -s tests/system/test_stress.py tests/system/test_steps.py
	RUNDCTL_TEST_LONG=1 $(PYTEST) tests/system/test_rootfs_contract.py
	RUNDCTL_FUZZ=100000 $(PYTEST) tests/unit/test_fuzz.py

test-rebuild: setup-system ## Build lean kernel and QEMU once more: the same bytes? (some 15 minutes)
	$(PYTEST) tests/rebuild

bench: setup-system ## Measure start-up
	$(PYTHON) bench/start.py

bench-template: setup-system ## Measure what a clone costs: memory by part, idle CPU, time to its first answer
	$(PYTHON) bench/template.py

bench-rootfs: setup-system ## Compare transports of the root file system: time, I/O, CPU, memory (ARGS=--quick: two minutes)
	$(PYTHON) bench/rootfs.py $(ARGS)

bench-cgroup: setup-system ## Measure cgroups at a start: on the spot against the pool, v1 and v2, up to 200 at once
	$(PYTHON) bench/cgroup.py

bench-kvm: setup-system ## Count a container's instructions where KVM works, in an emulated machine; RECORD=1: as the figures that `make test` holds
	$(PYTHON) bench/kvm.py $(if $(RECORD),--record)

clean: ## Remove what was built; kernels, QEMUs and templates in RUNDCTL_HOME stay
	rm -rf $(VENV) build dist rundctl/_native rundctl/oci/_generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
