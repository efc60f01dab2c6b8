"""The reports of tests that ran in a VM: a run that did not happen, or not to its end, is never a pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parents[1]
_CONFTEST = f"""
import os, subprocess, sys
from pathlib import Path
import pytest
sys.path.insert(0, {str(_TESTS)!r})
import host_vm, inside, twice

def here(nodes, results, environment):
    "Runs pytest on this host, where a VM would."
    mode = Path(__file__).with_name("mode").read_text()
    with Path(__file__).with_name("given").open("a") as file:
        file.write(" ".join(nodes) + "\\n")
    if mode == "lacking":
        pytest.skip("no VM of this kind here")
    if mode == "nothing":
        return 0, "no VM came up"
    argv = [sys.executable, "-m", "pytest", *nodes] if mode != "collects nothing" else ["/bin/true"]
    environment = {{**os.environ, **environment, "RESULTS_HERE": str(results)}}
    done = subprocess.run(argv, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True)
    if mode == "dies":
        lines = (results / "reports").read_text().splitlines()
        (results / "reports").write_text("".join(line + "\\n" for line in lines[:-2]))
    return (139 if mode == "crashes" else done.returncode), done.stdout

if inside.INSIDE:
    host_vm.RESULTS = os.environ["RESULTS_HERE"]

def pytest_configure(config):
    options = {{}}
    if Path(__file__).with_name("mode").read_text() == "by file":
        options = {{"by_file": True, "left_out": lambda nodeid: "said why" if "broken" in nodeid else ""}}
    inside.install(config, Path(__file__).resolve().parent, here, **options)
    if not inside.INSIDE:  # whichever is registered first
        config.pluginmanager.register(twice.Repeater(Path(__file__).resolve().parent), "repeater")
"""
_TESTS_INSIDE = """
import os
import pytest

def test_good():
    assert os.environ["RUNDCTL_TEST_INSIDE"]

def test_bad():
    print("what it printed")
    assert 1 == 2

@pytest.mark.skip(reason="not today")
def test_skipped():
    pass

@pytest.fixture
def broken():
    raise RuntimeError("no fixture")

def test_broken(broken):
    pass
"""


def outcome(directory: Path, mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (directory / "conftest.py").write_text(_CONFTEST)
    (directory / "test_it.py").write_text(_TESTS_INSIDE)
    (directory / "pytest.ini").write_text("[pytest]\n")
    (directory / "mode").write_text(mode)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *arguments],
        cwd=directory, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_each_is_reported_as_it_was(tmp_path: Path) -> None:
    done = outcome(tmp_path, "whole")
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed, 1 skipped, 1 error" in done.stdout
    for words in ("assert 1 == 2", "what it printed", "not today", "no fixture"):
        assert words in done.stdout


def test_what_ran_on_the_host_before_is_torn_down(tmp_path: Path) -> None:
    """A directory's test on the host, then one of its VM, then one of another directory."""
    place = "inside.install(config, Path(__file__).resolve().parent"
    once = _CONFTEST.partition("    if not inside.INSIDE:")[0]
    (tmp_path / "conftest.py").write_text(once.replace(place, f'{place} / "inner"'))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = outside\n")
    (tmp_path / "mode").write_text("whole")
    for name, test in (
        ("inner/test_a.py", "import pytest\n@pytest.mark.outside\ndef test_on_the_host():\n    pass\n"),
        ("inner/test_b.py", "def test_in_the_vm():\n    pass\n"),
        ("other/test_c.py", "def test_after_them():\n    pass\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, "3 passed" in done.stdout) == (0, True), done.stdout
    assert (tmp_path / "given").read_text() == "inner/test_b.py::test_in_the_vm\n"


def test_only_what_was_chosen_runs(tmp_path: Path) -> None:
    done = outcome(tmp_path, "whole", "-k", "good")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 3 deselected" in done.stdout


@pytest.mark.parametrize("mode", ["nothing", "crashes", "collects nothing"])
def test_no_result_is_a_failure(tmp_path: Path, mode: str) -> None:
    done = outcome(tmp_path, mode, "-k", "good or skipped")
    assert done.returncode == 1, done.stdout
    assert "passed" not in done.stdout.splitlines()[-1]
    assert "no result" in done.stdout


def test_where_there_can_be_no_vm_each_is_skipped_by_name(tmp_path: Path) -> None:
    done = outcome(tmp_path, "lacking", "-v")
    assert done.returncode == 0, done.stdout
    assert "4 skipped in" in done.stdout
    for name in ("good", "bad", "skipped", "broken"):
        assert f"test_it.py::test_{name} SKIPPED (no VM of this kind here)" in done.stdout


def test_a_vm_for_each_file_without_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "test_more.py").write_text("def test_more(): pass\n")
    (tmp_path / "test_out.py").write_text("def test_broken(): assert False\n")
    done = outcome(tmp_path, "by file", "-v")
    assert "1 failed, 2 passed, 3 skipped in" in done.stdout, done.stdout
    assert done.stdout.count("SKIPPED (said why)") == 2
    assert (tmp_path / "given").read_text().splitlines() == [
        "test_it.py::test_good test_it.py::test_bad test_it.py::test_skipped", "test_more.py::test_more",
    ]  # fmt: skip


def test_half_a_result_is_a_failure(tmp_path: Path) -> None:
    done = outcome(tmp_path, "dies", "-k", "good")
    assert done.returncode == 1, done.stdout
    assert "no result" in done.stdout
