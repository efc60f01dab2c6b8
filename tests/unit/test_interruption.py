"""Signals that wait until nothing can be lost by them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rundctl.host import files, interruption

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@pytest.fixture(autouse=True)
def default_signals():
    """As a call is started with, and as pytest wants them back."""
    before = {signo: signal.getsignal(signo) for signo in ENDING}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for signo, handler in before.items():
        signal.signal(signo, handler)


def _send(signo: int) -> None:
    """To this thread, as all of rundctl is one: the kernel gives a process's signal to any thread that takes it, and a worker of xdist has others."""
    signal.pthread_kill(threading.get_ident(), signo)


def _blocked() -> set[int]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(ENDING)


@pytest.mark.parametrize("signo", ENDING)
def test_it_waits_until_it_is_allowed(signo: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("rundctl.lean.signal.raise_signal", ended.append)
    steps = []
    with pytest.raises(KeyboardInterrupt), interruption.Held():
        _send(signo)
        steps.append("made")
        with interruption.allowed():
            steps.append("waited")
    assert steps == ["made"]
    assert ended == [signo]
    assert _blocked() == set()


def test_it_comes_in_what_is_allowed_and_then_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rundctl.lean.signal.raise_signal", lambda _: None)
    undone = False
    with pytest.raises(KeyboardInterrupt) as caught, interruption.Held():
        try:
            with interruption.allowed():
                _send(signal.SIGTERM)
                pytest.fail("it went on")
        finally:
            _send(signal.SIGINT)
            with interruption.allowed():
                undone = True
    assert caught.value.args == (signal.SIGTERM,)
    assert undone


@pytest.mark.parametrize("signo", ENDING)
def test_at_the_end_it_does_what_it_always_does(signo: int) -> None:
    program = f"""
import os
from rundctl.host import interruption
try:
    with interruption.Held():
        os.kill(os.getpid(), {int(signo)})
        print("made", flush=True)
    print("never", flush=True)
except KeyboardInterrupt:
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    # SIGINT's own way is KeyboardInterrupt, which the program answers with SIGKILL.
    assert (done.stdout, done.returncode) == (b"made\n", -9 if signo == signal.SIGINT else -signo)


def test_a_block_within_a_block_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("rundctl.lean.signal.raise_signal", ended.append)
    with pytest.raises(KeyboardInterrupt), interruption.Held():
        with interruption.Held():
            _send(signal.SIGTERM)
        assert _blocked() == set(ENDING)
        with pytest.raises(KeyboardInterrupt), interruption.Held(), interruption.allowed():
            pytest.fail("it went on")
        assert ended == []
        raise KeyboardInterrupt(signal.SIGTERM)
    assert ended == [signal.SIGTERM]


def test_what_the_caller_ignores_or_blocks_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with interruption.Held(), interruption.allowed():
            _send(signal.SIGHUP)
            assert _blocked() == {signal.SIGTERM}
        assert _blocked() == {signal.SIGTERM}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def test_handed_over_they_stay_blocked() -> None:
    try:
        with interruption.Held() as held:
            held.hand_over()
            _send(signal.SIGTERM)
        assert signal.sigwait(ENDING) == signal.SIGTERM
        assert _blocked() == set(ENDING)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def test_what_is_allowed_stays_so_after_an_inner_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template is built, with many waits, in what is allowed as a whole; its programs inherit no blocked signals."""
    monkeypatch.setattr("rundctl.lean.signal.raise_signal", lambda _: None)
    with pytest.raises(KeyboardInterrupt), interruption.Held():
        with interruption.allowed():
            with interruption.allowed():
                assert _blocked() == set()
            assert _blocked() == set()
        assert _blocked() == set(ENDING)
        with interruption.allowed():
            with interruption.allowed():
                pass
            _send(signal.SIGTERM)
            pytest.fail("it went on")


def test_outside_it_changes_nothing() -> None:
    with pytest.raises(KeyboardInterrupt), interruption.allowed():
        signal.raise_signal(signal.SIGINT)
    assert _blocked() == set()


@contextmanager
def _running(program: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as call:
        try:
            yield call
        finally:
            call.kill()


def test_it_comes_while_a_program_is_waited_for_and_ends_that() -> None:
    """A copy of a root file system takes minutes, or for ever where its disk does not answer."""
    program = """
from rundctl.host import interruption, process
with interruption.Held(), process.Child(["/bin/sh", "-c", "echo $$; kill -TERM $PPID; exec sleep 1000"], (), (0, 1, 2)) as child:
    child.wait()
"""
    with _running(program) as call:
        assert call.wait(60) == -signal.SIGTERM
        assert call.stdout is not None
        assert not os.path.exists(f"/proc/{int(call.stdout.read())}")


def test_it_comes_while_a_lock_is_waited_for(tmp_path: Path) -> None:
    """Who has the lock may have been stopped."""
    program = f"""
from rundctl.host import files, interruption
with interruption.Held():
    print("made", flush=True)
    with files.Lock({str(tmp_path / "lock")!r}):
        print("never")
"""
    with files.Lock(str(tmp_path / "lock")), _running(program) as call:
        assert call.stdout is not None
        assert call.stdout.readline() == b"made\n"
        call.send_signal(signal.SIGTERM)
        assert call.wait(60) == -signal.SIGTERM
        assert call.stdout.read() == b""
