"""Building from source: what is missing, what is told, what is left. The builds themselves are for tests/system."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from rundctl.errors import HostError
from rundctl.host import apt, workshop

if TYPE_CHECKING:
    from pathlib import Path


def test_compiler_s_words_come_first_in_a_failure(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("  CC  a.o\na.c:1: error: no such thing\n  CC  b.o\n")
    assert workshop.failure(str(log)) == "a.c:1: error: no such thing"
    log.write_text("one\ntwo\n")
    assert workshop.failure(str(log)) == "one | two"


def test_a_build_s_failure_and_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop, "_FILES_A_REPORT", 2)
    monkeypatch.setattr(workshop, "_POLL_MS", 10)
    said: list[str] = []
    script = "printf '\\n  CC a\\n  CC b\\n'; sleep 0.3; echo 'a.c: error: no'; exit 3"
    with pytest.raises(HostError, match=r"making it: sh: status 3: a\.c: error: no"):
        workshop.compile_in(["sh", "-c", script], str(tmp_path / "log"), "making it", b"\n  CC ", said.append)
    assert said == [f"making it ({workshop.jobs()} at once; some minutes)", "making it: 2 files"]


def test_a_failed_step_is_told_in_its_own_words_from_either_stream(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"configure it: sh: status 1: meson\.build:1: ERROR: File is missing"):
        workshop.succeed(
            ["sh", "-c", "echo 'meson.build:1: ERROR: File is missing'; echo so much >&2; exit 1"],
            str(tmp_path / "log"),
            "configure it",
        )


def test_nothing_a_killed_builder_started_goes_on(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    script = f"(while :; do date +%N > {marker}; sleep 0.05; done) & wait"
    code = (
        "from rundctl.host import workshop\n"
        f"workshop.run_logged(['sh', '-c', {script!r}], {str(tmp_path / 'log')!r}, print)"
    )
    builder = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not marker.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    builder.kill()
    builder.wait()
    time.sleep(0.5)  # nothing tells when the last grandchild has gone
    before = marker.read_bytes()
    time.sleep(0.5)
    assert marker.read_bytes() == before


def test_scratch_is_empty_and_gone_afterwards(tmp_path: Path) -> None:
    where = tmp_path / "scratch"
    where.mkdir()
    (where / "left").write_text("by a builder that was killed")
    with workshop.scratch(str(where), 1, "build it"):
        assert list(where.iterdir()) == []
        (where / "file").write_text("")
    assert not where.exists()


def test_scratch_needs_room(tmp_path: Path) -> None:
    with (
        pytest.raises(HostError, match=r"build it in .*: \d+ MiB are free, 1073741824 needed"),
        workshop.scratch(str(tmp_path / "scratch"), 1 << 30, "build it"),
    ):
        pytest.fail("there is no disk of that size")
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_scratch_is_named(tmp_path: Path) -> None:
    where = str(tmp_path / "scratch")
    with (
        pytest.raises(HostError, match=rf"build it in {where}: {where}/gone: is missing"),
        workshop.scratch(where, 1, "build it"),
    ):
        workshop.read(f"{where}/gone")


@pytest.mark.parametrize(
    ("binary", "source"),
    [
        ("deb http://a b main\n", "deb-src http://a b main\n"),
        ("deb [signed-by=/k] http://a b main\n", "deb-src [signed-by=/k] http://a b main\n"),
        ("# deb http://a b main\n", "# deb http://a b main\n"),
        ("deb-src http://a b main\n", "deb-src http://a b main\n"),
        ("Types: deb\nURIs: http://a\n", "Types: deb-src\nURIs: http://a\n"),
        ("Types: deb deb-src\nSigned-By: /k\n", "Types: deb-src\nSigned-By: /k\n"),
    ],
)
def test_lists_of_binary_packages_become_lists_of_sources(binary: str, source: str) -> None:
    assert apt.as_sources(binary) == source
