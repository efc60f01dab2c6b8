"""What a container's shim and QEMU are told of its virtiofsds."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rundctl.engine.rootfs.shares import Shares
from rundctl.vmm.virtiofsd import Daemon

if TYPE_CHECKING:
    from pathlib import Path

DAEMON = Daemon("/d", "virtiofsd 1.13.2", is_rust=True)


def test_a_rootfs_and_volumes(tmp_path: Path) -> None:
    with ExitStack() as undo:
        served = Shares(undo, DAEMON, str(tmp_path))
        served.add_rootfs("rootfs", 70, writable=False)
        served.add_volumes("volumes", submounts=True)
        (tag, _), (other, _) = served.sockets
        first, rootfs, second = served.inherited[1], served.inherited[0], served.inherited[2]
        assert (tag, other, rootfs) == ("rootfs", "volumes", 70)
        assert served.options == [
            "--helper", f"virtiofsd,{first},ro,70", "--helper", f"virtiofsd,{second},volumes",
        ]  # fmt: skip
        commands = " ".join(served.commands).split(" ;")
        assert [f"--fd={first}" in commands[0], f"--fd={second}" in commands[1], commands[2]] == [True, True, ""]
        assert "--cache=always" in commands[0]
        assert "--cache=never" in commands[1]
        assert "--announce-submounts" in commands[1]
        assert os.listdir(tmp_path) == []  # nobody else can connect


def test_a_rootfs_that_is_written_to_is_never_believed(tmp_path: Path) -> None:
    with ExitStack() as undo:
        served = Shares(undo, DAEMON, str(tmp_path))
        served.add_rootfs("rootfs", 70, writable=True)
        assert served.options[1].endswith(",rw,70")
        assert "--cache=never" in served.commands


def test_the_sockets_are_connected(tmp_path: Path) -> None:
    with ExitStack() as undo:
        served = Shares(undo, DAEMON, str(tmp_path))
        served.add_volumes("volumes", submounts=False)
        ((_, connected),) = served.sockets
        with (
            socket.socket(fileno=os.dup(served.inherited[0])) as listening,
            socket.socket(fileno=os.dup(connected)) as far,
        ):
            near, _ = listening.accept()
            with near:
                far.sendall(b"hello")
                assert near.recv(5) == b"hello"
