"""The machine itself: what comes out of one that ends as it should, and what is said of one that does not. It is small, and has nothing to do."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import kvm_bed

outside = pytest.mark.outside
SMALL = kvm_bed.Machine(memory_mib=768, disk_mib=512)
DEADLINE_S = 600.0
HELD_S = 2.0
_CONFTEST = f"""
import sys
import threading
import time
from pathlib import Path
sys.path.insert(0, {str(Path(kvm_bed.__file__).parent)!r})
import inside, kvm_bed

def killed_in_the_middle(nodes, results, environment):
    machine = kvm_bed.Machine(memory_mib=1024, disk_mib=512)
    here = ["env", f"--chdir={{Path(__file__).parent}}", sys.executable, "-m", "pytest"]
    with kvm_bed.Bed([*here, *nodes], results, machine, environment) as bed:
        def kill():
            while not (results / "in the middle").exists():
                time.sleep(0.1)
            bed._process.kill()
        threading.Thread(target=kill, daemon=True).start()
        try:
            return bed.wait({DEADLINE_S})
        except kvm_bed.BedError as error:
            return -1, str(error)

def pytest_configure(config):
    inside.install(config, Path(__file__).resolve().parent, killed_in_the_middle)
"""
_TESTS = """
import time
from pathlib import Path

def test_before():
    pass

def test_in_the_middle():
    Path("/results/in the middle").touch()
    time.sleep(1000)

def test_after():
    pass
"""


def test_hold() -> None:
    """All of it stands still, and time goes on outside."""
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    kvm_bed.hold(HELD_S)
    assert time.clock_gettime(time.CLOCK_MONOTONIC) - before >= HELD_S


@outside
def test_a_full_disk_is_what_the_command_says(tmp_path: Path) -> None:
    command = ["sh", "-c", f"dd if=/dev/zero of={kvm_bed.DISK}/all bs=1M; test -c /dev/kvm && exit 7"]
    code, printed = kvm_bed.run(command, tmp_path, machine=SMALL, timeout_s=DEADLINE_S)
    assert code == 7
    assert "No space left on device" in printed


@outside
def test_a_panic(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo here; echo c >/proc/sysrq-trigger"]
    with pytest.raises(kvm_bed.BedError, match=r"(?s)here.*sysrq triggered crash.*did not come to its command's end"):
        kvm_bed.run(command, tmp_path, machine=SMALL, timeout_s=DEADLINE_S)


@outside
def test_a_qemu_that_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "code").write_text("0\n")  # of an earlier machine: no result of this one
    machine = kvm_bed.Machine(memory_mib=768, disk_mib=512, arguments=("-device", "no-such-device"))
    with pytest.raises(kvm_bed.BedError, match=r"(?s)no-such-device.*QEMU ended with 1"):
        kvm_bed.run(["true"], tmp_path, machine=machine, timeout_s=DEADLINE_S)


@outside
def test_one_that_is_not_done_in_time(tmp_path: Path) -> None:
    with pytest.raises(kvm_bed.BedError, match=r"not done after 0\.1 s"):
        kvm_bed.run(["sleep", "1000"], tmp_path, machine=SMALL, timeout_s=0.1)


@outside
def test_each_test_says_that_the_machine_was_killed(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "test_it.py").write_text(_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert "3 failed in " in done.stdout, done.stdout
    failures, _, _ = done.stdout.partition("short test summary")  # which repeats all words where CI is set
    assert failures.count("killed by signal 9 (SIGKILL)") == 3, done.stdout
    assert "reported of this test: ['setup', 'call', 'teardown']" in done.stdout
    assert "reported of this test: ['setup']" in done.stdout
    assert "reported of this test: nothing" in done.stdout
