"""What a program that we start inherits."""

from __future__ import annotations

import os
import signal

import pytest

from rundctl.host import process


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
