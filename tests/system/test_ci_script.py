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
        self._environment = {**os.environ, "RUNDCTL": str(wrapper)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self._script, *arguments], env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _errors = process.communicate(timeout=DEADLINE_S)
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


def test_time_limit(
    job: Job, cli: Callable[..., subprocess.CompletedProcess[bytes]], bundle: Callable[..., Path]
) -> None:
    forever = bundle("/bin/sh", "-c", "trap 'exit 9' TERM; echo began; while :; do sleep 0.1; done")
    assert job.run(str(forever), "5") == (124, "began\n")
    assert ids(cli) == []


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
