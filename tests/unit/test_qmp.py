"""The QMP client against a peer that answers line by line (tests/system/test_template.py drives the real one)."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.errors import GuestError
from rundctl.vmm.qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Answer = dict[str, Any]
GREETING: Answer = {"QMP": {"version": {}, "capabilities": []}}


class Peer(threading.Thread):
    """QEMU's end: greets, then sends what ``answers`` has for each command."""

    def __init__(self, end: socket.socket, answers: dict[str, list[Answer]]) -> None:
        super().__init__()
        self.end = end
        self.answers = {"qmp_capabilities": [{"return": {}}], **answers}
        self.seen: list[str] = []
        self.descriptors: list[int] = []

    def run(self) -> None:
        self.end.sendall(json.dumps(GREETING).encode() + b"\r\n")
        data = b""
        while True:
            got, fds, _, _ = socket.recv_fds(self.end, 4096, 4)
            self.descriptors += fds
            if not got:
                return
            data += got
            while b"\n" in data:
                line, _, data = data.partition(b"\n")
                self._answer(json.loads(line)["execute"])

    def _answer(self, command: str) -> None:
        self.seen.append(command)
        for answer in self.answers.get(command, []):
            self.end.sendall(json.dumps(answer).encode() + b"\r\n")


@pytest.fixture
def connect() -> Iterator[Callable[[dict[str, list[Answer]]], tuple[Qmp, Peer]]]:
    """Make a client and its peer."""
    peers: list[tuple[socket.socket, Peer]] = []

    def make(answers: dict[str, list[Answer]]) -> tuple[Qmp, Peer]:
        near, far = socket.socketpair()
        peer = Peer(far, answers)
        peer.start()
        peers.append((near, peer))
        return Qmp(near), peer

    yield make
    for near, peer in peers:
        near.close()
        peer.join()
        peer.end.close()
        for fd in peer.descriptors:
            os.close(fd)


def test_answer_with_events_between(connect: Callable[..., tuple[Qmp, Peer]]) -> None:
    qmp, peer = connect({"query-status": [{"event": "STOP", "data": {}}, {"return": {"status": "paused"}}]})
    assert qmp.execute("query-status") == {"status": "paused"}
    assert peer.seen == ["qmp_capabilities", "query-status"]


def test_error_in_qemus_words(connect: Callable[..., tuple[Qmp, Peer]]) -> None:
    qmp, _ = connect({"cont": [{"error": {"class": "GenericError", "desc": "no such thing"}}]})
    with pytest.raises(GuestError, match="qemu: cont: no such thing"):
        qmp.execute("cont")


def test_restore_waits_until_the_guest_runs(connect: Callable[..., tuple[Qmp, Peer]]) -> None:
    resumed = [{"return": {}}, {"event": "MIGRATION", "data": {"status": "active"}}, {"event": "RESUME"}]
    qmp, peer = connect({"migrate-set-capabilities": [{"return": {}}], "migrate-incoming": resumed})
    qmp.restore("fd:3")
    assert peer.seen == ["qmp_capabilities", "migrate-set-capabilities", "migrate-incoming"]


def test_devices_are_plugged_before_the_guest_runs(connect: Callable[..., tuple[Qmp, Peer]]) -> None:
    plain: list[Answer] = [{"return": {}}]
    loaded = [*plain, *({"event": "MIGRATION", "data": {"status": status}} for status in ("setup", "completed"))]
    qmp, peer = connect(
        {"migrate-set-capabilities": plain, "migrate-incoming": loaded, "device_add": plain, "cont": plain}
    )
    qmp.restore_and_plug("fd:3", [{"driver": "a", "bus": "spare0"}, {"driver": "b", "bus": "spare1"}])
    assert peer.seen[2:] == ["migrate-incoming", "device_add", "device_add", "cont"]


def test_a_device_that_cannot_be_plugged(connect: Callable[..., tuple[Qmp, Peer]]) -> None:
    plain: list[Answer] = [{"return": {}}]
    loaded = [*plain, {"event": "MIGRATION", "data": {"status": "completed"}}]
    refused: list[Answer] = [{"error": {"class": "GenericError", "desc": "vhost initialization failed"}}]
    qmp, _ = connect(
        {"migrate-set-capabilities": plain, "migrate-incoming": loaded, "device_add": refused, "cont": plain}
    )
    with pytest.raises(GuestError, match="qemu: device_add: vhost initialization failed"):
        qmp.restore_and_plug("fd:3", [{"driver": "a"}])


def test_silence_ends_at_the_deadline(connect: Callable[..., tuple[Qmp, Peer]]) -> None:
    qmp, _ = connect({})
    with pytest.raises(GuestError, match="no answer in time"):
        qmp.execute("query-status", timeout_s=0.05)


def test_snapshot_sends_the_descriptor_and_tells_why_it_failed(connect: Callable[..., tuple[Qmp, Peer]]) -> None:
    plain: list[Answer] = [{"return": {}}]
    failed = [
        *plain,
        {"event": "MIGRATION", "data": {"status": "setup"}},
        {"event": "MIGRATION", "data": {"status": "failed"}},
    ]
    reason = [{"return": {"status": "failed", "error-desc": "no space"}}]
    qmp, peer = connect(
        {"stop": plain, "migrate-set-capabilities": plain, "getfd": plain, "migrate": failed, "query-migrate": reason}
    )
    with open(os.devnull, "wb") as file, pytest.raises(GuestError, match="save the device state: qemu: no space"):
        qmp.snapshot(file.fileno())
    assert len(peer.descriptors) == 1


@pytest.mark.parametrize("garbage", [b"", b"garbage\n", b"[1]\n"])
def test_qemu_that_ends_or_talks_nonsense(garbage: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(garbage)
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(GuestError, match=r"qemu: qmp_capabilities: (QEMU ended|the monitor sent)"):
            Qmp(near).execute("query-status")
