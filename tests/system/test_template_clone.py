"""Clones of a template, driven through QMP and the agent's channel: they run, they differ, and the template stays as it was."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.engine.rootfs import hybrid_rootfs, transport
from rundctl.engine.template import kernel_template, store
from rundctl.engine.template.inputs import Request
from rundctl.guest import kernel_fetch, ops, wire
from rundctl.host import files, memo, patience, process
from rundctl.vmm import qemu
from rundctl.vmm.qmp import Qmp

if TYPE_CHECKING:
    from rundctl.engine.template.store import Template

pytestmark = pytest.mark.vm
_TIMEOUT_S = patience.seconds(60.0)
_MACHINE = Request(volumes=True)
_NEW_NAMESPACES = 0x00020000 | 0x20000000  # CLONE_NEWNS, CLONE_NEWPID


def _quiet(_: str) -> None:
    """No progress is shown in tests."""


@pytest.fixture(scope="module")
def ready() -> Template:
    """The template of the host's settings."""
    host = settings.load()
    if not Path(host.home, "kernels/current").exists():
        kernel_fetch.fetch(host.home, _quiet)
    return kernel_template.ensure(host, memo.of_home(host.home), _quiet, _MACHINE)


class Clone:
    """A restored QEMU and the agent in it, without a shim."""

    def __init__(self, stack: ExitStack, template: Template, rootfs: Path, volumes: Path) -> None:
        def held(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        agent, agent_far = socket.socketpair()
        monitor, monitor_far = socket.socketpair()
        for end in (agent, agent_far, monitor, monitor_far):
            stack.callback(end.close)
        exports = [held(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) for path in (rootfs, volumes)]
        state = held(os.open(template.state, os.O_RDONLY | os.O_CLOEXEC))
        wiring = qemu.Wiring(
            agent=agent_far.fileno(),
            qmp=monitor_far.fileno(),
            disk=held(hybrid_rootfs.open_private(transport.nine_p("/"), template)),
            empty=template.empty,
            memory_path=template.memory,
            rootfs=exports[0],
            volumes=exports[1],
        )
        argv, keep = qemu.clone_argv(template.shape, wiring, state)
        null = held(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        stack.enter_context(process.Child(argv, [*keep, exports[1]], (null, null, null)))
        self.channel = wire.Channel(agent)
        self.channel.hello(wire.ROLE_SHIM)
        Qmp(monitor).restore(qemu.state_uri(template.shape, state))
        identity = struct.pack("<Q", time.time_ns()) + os.urandom(wire.ENTROPY_SIZE) + b"clone"
        self._ask(wire.IDENTITY, identity, 0)

    def run(self, script: str) -> str:
        """Run a shell script in a container on the hybrid rootfs; its output."""
        made = [
            *hybrid_rootfs.join(transport.nine_p("/"), volumes=True),
            ops.root(hybrid_rootfs.ROOT),
            ops.mount("proc", "/proc", "proc"),
            ops.bind(hybrid_rootfs.VOLUMES, "/mnt"),
            ops.pivot(),
            ops.env(("PATH=/bin",)),
            ops.find("/bin/sh"),
            ops.wait(),
            ops.exec_(("sh", "-c", script)),
        ]
        self._ask(wire.PLAN, ops.Plan(_NEW_NAMESPACES, tuple(made)).encode(), 1)
        self._ask(wire.START, b"", 1)
        output = b""
        while (frame := self.channel.next_frame(_TIMEOUT_S)).type != wire.EXITED:
            if frame.type == wire.DATA:
                output += frame.payload
        return output.decode()

    def _ask(self, kind: int, payload: bytes, container: int) -> None:
        result = self.channel.wait(self.channel.post(kind, payload, container=container), _TIMEOUT_S)
        assert result.error == 0, (result.index, result.describe())


def _digests(template: Template) -> list[str]:
    result = []
    for path in (f"{template.directory}/{name}" for name in store.FILES):
        with open(path, "rb") as file:
            result.append(files.content_digest(file.fileno()))
    return result


def test_two_clones_at_once(ready: Template, rootfs: Path, tmp_path: Path) -> None:
    before = [ready.manifest["files"][name]["digest"] for name in store.FILES]
    (tmp_path / "seen").write_text("from the host\n")
    script = (
        "cat /mnt/seen; echo {0} >/mnt/by{0}; cat /proc/sys/kernel/random/boot_id; echo {0} >/etc/hosts; mv /home /moved; "
        "dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; sync; cat /etc/hosts; ls -d /moved/; date +%s"
    )
    with ExitStack() as stack:
        clones = [Clone(stack, ready, rootfs, tmp_path) for _ in range(2)]
        outputs = [clone.run(script.format(index)).splitlines() for index, clone in enumerate(clones)]
    for index, lines in enumerate(outputs):
        assert lines[0] == "from the host"
        assert lines[2:4] == [str(index), "/moved/"]
        assert abs(int(lines[4]) - time.time()) < _TIMEOUT_S
        assert (tmp_path / f"by{index}").read_text() == f"{index}\n"
    assert outputs[0][1] != outputs[1][1], "boot ids"
    assert (rootfs / "etc/hosts").read_text() == "127.0.0.1 localhost\n"
    assert _digests(ready) == before
    host = settings.load()
    found = kernel_template.find(host, memo.of_home(host.home), _MACHINE)
    assert found is not None
    assert found.manifest == ready.manifest
