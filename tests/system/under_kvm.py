"""`make test-kvm`: these tests in machines in which KVM works, one machine for each file (kvm_bed.py). What is not run in there, and why."""

from __future__ import annotations

import os

ASKED_FOR = bool(os.environ.get("RUNDCTL_TEST_KVM"))
_BUILDS = "it is about what was built, and boots nothing that KVM could run"
_BENCHMARK = "it runs a benchmark, which measures emulated guests"
# The start of a test's name, and the reason.
LEFT_OUT = {
    "test_lean_kernel.py": _BUILDS,
    "test_lean_qemu.py": _BUILDS,
    "test_bench_cgroup.py": _BENCHMARK,
    "test_bench_rootfs.py": _BENCHMARK,
    "test_ci_script.py": "no VM is in it",
}


def left_out(nodeid: str) -> str:
    """Why a test is not run under KVM; "": it is."""
    name = nodeid.removeprefix("tests/system/")
    return next((reason for start, reason in LEFT_OUT.items() if name.startswith(start)), "")
