"""docs/examples/ci-job.sh does what docs/ci.md says: exit codes, time limit, clean-up."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE_S = 120.0


class Job:
    """The script, with a rundctl that keeps its state in the test's directory."""

    def __init__(self, checkout: Path, directory: Path, command: list[str]) -> None:
        self._script = str(checkout / "docs/examples/ci-job.sh")
        wrapper = directory / "rundctl"
        wrapper.write_text(f'#!/bin/sh\nexec {" ".join(command)} "$@"\n')
        wrapper.chmod(0o755)
        self.errors = ""
        self._environment = {**os.environ, "RUNDCTL": str(wrapper)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self._script, *arguments], env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, self.errors = process.communicate(timeout=DEADLINE_S)
        return process.returncode, output


@pytest.fixture
def job(checkout: Path, tmp_path: Path, cli: Callable[..., object]) -> Iterator[Job]:
    return Job(checkout, tmp_path, cli.argv())  # type: ignore[attr-defined]


def ids(cli: Callable[..., subprocess.CompletedProcess[bytes]]) -> list[bytes]:
    return cli("list", "--quiet").stdout.split()


def test_exit_code_and_output(
    job: Job, cli: Callable[..., subprocess.CompletedProcess[bytes]], bundle: Callable[..., Path]
) -> None:
    assert job.run(str(bundle("/bin/sh", "-c", "echo built; exit 3"))) == (3, "built\n")
    assert ids(cli) == []


def test_success(job: Job, bundle: Callable[..., Path]) -> None:
    assert job.run(str(bundle("/bin/true"))) == (0, "")


def test_job_reads_nothing(job: Job, bundle: Callable[..., Path]) -> None:
    assert job.run(str(bundle("/bin/cat"))) == (0, "")


@pytest.mark.parametrize(
    "ending", ["trap 'exit 9' TERM; echo began", "echo began"], ids=["it takes TERM", "it ignores TERM"]
)
def test_time_limit(
    job: Job, cli: Callable[..., subprocess.CompletedProcess[bytes]], bundle: Callable[..., Path], ending: str
) -> None:
    """124, and not the code of how it was ended. A shell that is PID 1 ignores a TERM that it has no trap for."""
    forever = bundle("/bin/sh", "-c", f"{ending}; while :; do sleep 0.1; done")
    assert job.run(str(forever), "4")[0] == 124  # also on a host where it does not begin in that time
    assert "ci-job: the job took longer than 4 s" in job.errors
    assert ids(cli) == []


@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        ("exec tail /dev/zero", 137, True),
        ("tail /dev/zero; exit 2", 137, True),
        ("tail /dev/zero; exit 0", 0, False),
        ("exit 137", 137, False),
    ],
    ids=["the job itself", "a process of it", "a process that it can do without", "another 137"],
)
def test_out_of_memory_is_told_from_failure(
    job: Job, bundle: Callable[..., Path], script: str, code: int, told: bool
) -> None:
    def limited(config: dict[str, dict[str, object]]) -> None:
        config["linux"]["resources"] = {"memory": {"limit": 64 << 20}}

    assert job.run(str(bundle("/bin/sh", "-c", script, change=limited))) == (code, "")
    assert ("ci-job: the job ran out of memory" in job.errors) == told
    assert ("ran out of memory" in job.errors) == (script != "exit 137")


def test_signal_ends_the_job(
    job: Job, cli: Callable[..., subprocess.CompletedProcess[bytes]], bundle: Callable[..., Path]
) -> None:
    process = job.start(str(bundle("/bin/sh", "-c", "echo began; while :; do sleep 0.1; done")))
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert ids(cli) == []


def test_bundle_that_is_missing(job: Job, tmp_path: Path) -> None:
    code, output = job.run(str(tmp_path / "nothing"))
    assert (code, output) == (1, "")
