"""What a container's shim and QEMU are told of its virtiofsds."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rundctl.engine.rootfs.shares import Servers
from rundctl.vmm.virtiofsd import Daemon

if TYPE_CHECKING:
    from pathlib import Path

DAEMON = Daemon("/d", "virtiofsd 1.13.2", is_rust=True)


def test_a_rootfs_and_volumes(tmp_path: Path) -> None:
    with ExitStack() as undo:
        servers = Servers(undo, DAEMON, str(tmp_path))
        root = servers.rootfs("rootfs", 70, writable=False)
        volumes = servers.volumes("volumes", submounts=True)
        assert (root.tag, volumes.tag) == ("rootfs", "volumes")
        assert root.inherited == (70, (first := root.inherited[1]))
        assert root.options == ("--helper", f"virtiofsd,{first},ro,70")
        assert volumes.options == ("--helper", f"virtiofsd,{volumes.inherited[0]},volumes")
        for share in (root, volumes):
            assert f"--fd={share.inherited[-1]}" in share.command
            assert share.command.index(";") == len(share.command) - 1
        assert "--cache=always" in root.command
        assert "--cache=never" in volumes.command
        assert "--announce-submounts" in volumes.command
        assert os.listdir(tmp_path) == []  # nobody else can connect


def test_a_rootfs_that_is_written_to_is_never_believed(tmp_path: Path) -> None:
    with ExitStack() as undo:
        served = Servers(undo, DAEMON, str(tmp_path)).rootfs("rootfs", 70, writable=True)
        assert served.options[1].endswith(",rw,70")
        assert "--cache=never" in served.command


def test_the_sockets_are_connected(tmp_path: Path) -> None:
    with ExitStack() as undo:
        served = Servers(undo, DAEMON, str(tmp_path)).volumes("volumes", submounts=False)
        with (
            socket.socket(fileno=os.dup(served.inherited[0])) as listening,
            socket.socket(fileno=os.dup(served.socket)) as far,
        ):
            near, _ = listening.accept()
            with near:
                far.sendall(b"hello")
                assert near.recv(5) == b"hello"
