"""What a program that we start inherits."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from rundctl.host import process

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("signo", [signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ])
def test_no_signal_is_ignored_that_a_parent_needs(signo: int) -> None:
    """SIGCHLD: a supervisor that inherited it ignored would never know of its children's ends."""
    before = signal.signal(signo, signal.SIG_IGN)
    near, far = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        process.spawn(["/bin/cat", "/proc/self/status"], (), (null, far, null))
        os.close(far)
        with open(near, "rb") as status:
            lines = dict(line.split(b":", 1) for line in status.read().splitlines())
    finally:
        signal.signal(signo, before)
        os.close(null)
    assert int(lines[b"SigIgn"], 16) & (1 << (signo - 1)) == 0


NUMBERS = (8, 9, 10, 60, 251)  # a CI script's flock, a caller's pipes; dash keeps its script as 10


@pytest.fixture
def inherited() -> Iterator[None]:
    """What a caller has let us inherit; numbers that are in use stay as they are."""
    opened = [number for number in NUMBERS if not os.path.exists(f"/proc/self/fd/{number}")]
    assert opened
    null = os.open(os.devnull, os.O_RDONLY)
    for number in opened:
        if number != null:
            os.dup2(null, number)
    os.set_inheritable(null, True)
    yield
    for number in {null, *opened}:
        os.close(number)


def _listed(*keep: int) -> set[int]:
    """Descriptors of a child, itself looking."""
    near, far = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        pid = process.spawn(["/bin/ls", "/proc/self/fd"], keep, (null, far, null))
        os.close(far)
        with open(near, encoding="ascii") as listed:
            found = set(map(int, listed.read().split()))
        os.waitpid(pid, 0)
    finally:
        os.close(null)
    return found


@pytest.mark.usefixtures("inherited")
def test_nothing_is_inherited_that_was_not_promised() -> None:
    kept = os.open(os.devnull, os.O_RDONLY)
    try:
        looking = 3  # ls' own
        assert _listed() - {looking} == {0, 1, 2}
        assert {0, 1, 2, kept} <= _listed(kept)
        assert not set(NUMBERS) & _listed(kept)
    finally:
        os.close(kept)


@pytest.mark.usefixtures("inherited")
def test_nor_by_what_is_run_to_its_end() -> None:
    found = set(map(int, process.run(["ls", "/proc/self/fd"], what="look").split()))
    assert not found & set(NUMBERS)
