"""The VM from the host's side: what is said of its end, and how long a shim is waited for that does nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.container import vm
from rundctl.engine.records import store
from rundctl.errors import GuestError
from rundctl.guest import wire
from rundctl.host import interruption
from rundctl.host.pidfd import start_time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINE_MAX = 1024


def test_last_words_are_qemus_last_line_and_bounded(tmp_path: Path) -> None:
    container = store.Container(str(tmp_path), {})
    assert vm.with_last_words("create", container) == "create"
    (tmp_path / "exit").write_text("detail=qemu exited with status 1\n")
    (tmp_path / "qemu.log").write_bytes(b"first\n" * 1000 + b"qemu: no such \xff device\n")
    said = vm.with_last_words("create", container)
    assert said == "create: qemu exited with status 1: qemu: no such \N{REPLACEMENT CHARACTER} device"
    (tmp_path / "qemu.log").write_bytes(b"x" * 100_000)
    assert vm.with_last_words("create", container) == f"create: qemu exited with status 1: {'x' * LINE_MAX}"


def test_of_a_panic_it_is_said_why(tmp_path: Path) -> None:
    container = store.Container(str(tmp_path), {})
    (tmp_path / "exit").write_text("reason=qemu\ndetail=qemu exited with status 0\n")
    assert container.sudden_end() == "qemu exited with status 0"
    said = (
        b"[    1.0] Kernel panic - not syncing: old\r\n[    1.5] Kernel panic - not syncing: no \x1b[2J memory\r\n"
        b"[    1.5] Kernel Offset: disabled\r\n[    1.5] ---[ end Kernel panic - not syncing: no \x1b[2J memory ]---\r\n"
    )
    (tmp_path / "qemu.log").write_bytes(b"x" * 50000 + said)
    why = "qemu exited with status 0: the guest's kernel panicked: no ?[2J memory"
    assert container.sudden_end() == why
    assert vm.with_last_words("create", container) == f"create: {why}"
    (tmp_path / "qemu.log").write_bytes(b"[    1.0] int3: 0000 [#1] SMP NOPTI\r\n" + said)
    assert container.sudden_end() == f"{why} (int3: 0000 [#1] SMP NOPTI)"
    (tmp_path / "exit").write_text("reason=container\ndetail=\n")
    assert container.sudden_end() == ""  # it ended, whatever its guest did then


def test_what_a_guest_s_kernel_says_while_all_is_well_is_not_the_reason(tmp_path: Path) -> None:
    container = store.Container(str(tmp_path), {})
    (tmp_path / "qemu.log").write_bytes(b"[    1.3] Failed to set sysctl parameter 'a=0': parameter not found\r\n")
    assert vm.with_last_words("create", container) == "create"
    (tmp_path / "qemu.log").write_bytes(
        b"[    1.3] rundctl agent: open the port: No such device\r\n[    1.4] reboot: Restarting\r\n"
    )
    assert container.last_words() == "[    1.3] rundctl agent: open the port: No such device"


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[tuple[store.Container, socket.socket]]:
    """A container whose shim, which is us, neither accepts nor reads."""
    now = start_time(os.getpid())
    record = {"id": "c", "boot_id": store.boot_id(), "shim": {"pid": os.getpid(), "start_time": now}}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.bind(str(tmp_path / "control.sock"))
        control.listen(2)
        yield store.Container(str(tmp_path), record), control


def _fill(opened: ExitStack, container: store.Container) -> None:
    for _ in range(3):  # one more than the backlog, as the kernel counts
        client = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.connect(container.path("control.sock"))


@pytest.mark.parametrize("full", [False, True])
def test_a_shim_that_does_nothing_is_waited_for_so_long(
    stopped: tuple[store.Container, socket.socket], monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """Connect, too, waits for ever where the backlog is full and nobody accepts."""
    monkeypatch.setattr(vm, "LAST_WORDS_S", 0)
    container, _ = stopped
    with ExitStack() as opened:
        if full:
            _fill(opened, container)
        before = time.monotonic()
        with pytest.raises(GuestError, match=r"did not answer in time.*delete --force still work"):
            vm.ask(container, wire.PLAN, bytes(wire.MESSAGE_MAX if not full else 0), 0.3)
        assert 0.3 <= time.monotonic() - before < 10


def test_who_waits_for_a_stopped_shim_can_be_ended(
    stopped: tuple[store.Container, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while its signals are held: nothing is lost by it."""
    container, _ = stopped
    monkeypatch.setattr(vm, "LAST_WORDS_S", 0)
    monkeypatch.setattr("rundctl.lean.signal.raise_signal", lambda _: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ExitStack() as opened, pytest.raises(KeyboardInterrupt):
            _fill(opened, container)
            opened.enter_context(subprocess.Popen(["/bin/sh", "-c", "sleep 0.2; kill -INT $PPID"]))
            with interruption.Held():
                vm.ask(container, wire.START, b"", 60)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_place_in_the_backlog_is_taken_when_there_is_one(stopped: tuple[store.Container, socket.socket]) -> None:
    container, control = stopped
    with ExitStack() as opened:
        _fill(opened, container)
        control.accept()[0].close()
        vm.connect(opened, container, 10)


def test_who_never_stops_to_send_is_not_heard_without_end() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        frame = wire.HEADER.pack(0, wire.CREDIT, 0, 0, 0, 0)
        hello = wire._HELLO.pack(wire.MAGIC, wire.VERSION, wire.ROLE_SHIM)
        far.send(wire.HEADER.pack(len(hello), wire.HELLO, 0, 0, 0, 0) + hello)

        class Flooded(wire.Channel):
            __slots__ = ()

            def _receive(self, deadline: float) -> None:
                far.send(frame)
                super()._receive(deadline)

        flooded = Flooded(near)
        flooded.allow(0.2)
        before = time.monotonic()
        with pytest.raises(GuestError, match="in time"):
            flooded.wait(1)
        assert time.monotonic() - before < 10


@pytest.mark.parametrize("then", ["lives", "ends"])
def test_of_a_stopped_child_nobody_waits_for_the_end(then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "END_TIMEOUT_S", 0.2)
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "kill -STOP $$" if then == "lives" else "exit 3"], {})
    vm._end_child(pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
