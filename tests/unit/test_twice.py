"""How system tests are repeated: chance is named, a fault stays a failure, and fixtures are made anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parents[1]
_CONFTEST = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(_TESTS)!r})
import twice

def pytest_configure(config):
    config.pluginmanager.register(twice.Repeater(Path(__file__).parent / "system"), "repeater")
    config.pluginmanager.register(twice.Names(), "unstable")
"""
_TESTS_OF_IT = """
from pathlib import Path
import pytest

def times(name):
    "How often it was asked, this time included."
    with open(Path(__file__).parent / name, "a+") as file:
        file.write("x")
    return len((Path(__file__).parent / name).read_text())

@pytest.fixture(scope="module")
def machine():
    number = times("machine")
    if number == 1:
        raise RuntimeError("the first machine does not boot")
    yield number
    if number == 3:
        raise RuntimeError("the third machine does not end")

def test_good():
    assert times("good") == 1

def test_fixture(machine):
    assert machine == 2

def test_chance(machine):
    assert times("chance") == 2, "bad luck"
    assert machine == 3

def test_its_machine_is_another(machine):
    assert machine == 3

def test_fault():
    assert times("fault") == 3, "wrong each time"

def test_after_it(machine):
    assert machine == 4
"""


def outcome(directory: Path, tests: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (directory / "system").mkdir()
    (directory / "conftest.py").write_text(_CONFTEST)
    (directory / "system/test_it.py").write_text(tests)
    (directory / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *arguments],
        cwd=directory, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["in one process", "by xdist"])
def test_chance_is_named_and_a_fault_fails(tmp_path: Path, workers: tuple[str, ...]) -> None:
    done = outcome(tmp_path, _TESTS_OF_IT, *workers)
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 1, done.stdout
    assert "1 failed, 5 passed" in last
    assert "1 unstable: system/test_it.py::test_fixture" in last
    assert "1 unstable: system/test_it.py::test_chance" in last
    assert "FAILED system/test_it.py::test_fault" in done.stdout
    for words in ("the first machine does not boot", "bad luck", "wrong each time", "what it said when it ran first"):
        assert words in done.stdout
    assert "unstable: none" not in done.stdout


def test_a_run_with_no_fault_but_chance_passes(tmp_path: Path) -> None:
    done = outcome(tmp_path, _TESTS_OF_IT, "-k", "good or test_fixture")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout.splitlines()[-1]
    assert done.stdout.count("the first machine does not boot") > 0


def test_no_chance_strikes_six_times(tmp_path: Path) -> None:
    tests = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(7))
def test_once(number):
    with open(Path(__file__).parent / str(number), "x"):
        assert (Path(__file__).parent / f"{number}-again").exists(), "bad luck"

@pytest.fixture(autouse=True)
def again(number):
    path = Path(__file__).parent / str(number)
    if path.exists():
        path.unlink()
        path.with_name(f"{number}-again").touch()
"""
    done = outcome(tmp_path, tests)
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 1, done.stdout
    assert "2 failed, 5 passed" in last
    assert last.count("1 unstable: ") == 5


def test_nothing_unstable_is_said(tmp_path: Path) -> None:
    done = outcome(tmp_path, "def test_good(): pass")
    assert done.returncode == 0, done.stdout
    assert "unstable: none" in done.stdout.splitlines()


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["in one process", "by xdist"])
def test_what_cannot_be_collected_is_an_error(tmp_path: Path, workers: tuple[str, ...]) -> None:
    done = outcome(tmp_path, "import nothing_of_this_name", *workers)
    assert done.returncode != 0
    assert "1 error" in done.stdout.splitlines()[-1], done.stdout
