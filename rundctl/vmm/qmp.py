"""A minimal QMP client (docs/interop/qmp-spec in QEMU): synchronous, over one end of a socketpair, every wait with a deadline."""

from __future__ import annotations

import _socket as socket
import select
import sys
import time

from rundctl.errors import GuestError, printable
from rundctl.host import interruption, patience
from rundctl.lean import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BUFFER = 65536
_TIMEOUT_S = 60.0  # a host with dozens of emulated guests starting is slow, not broken
_SAVE_TIMEOUT_S = 120.0


class Qmp:
    """The controlling end of a QEMU's monitor. Errors of QEMU are raised as GuestError in QEMU's own words."""

    __slots__ = ("_data", "_events", "_greeted", "_socket")

    def __init__(self, monitor: socket.socket) -> None:
        self._socket = monitor
        self._data = b""
        self._events: list[dict[str, Any]] = []
        self._greeted = False

    def execute(self, command: str, timeout_s: float = _TIMEOUT_S, **arguments: Any) -> Any:
        """Run one command and return what it returns."""
        return self._execute([(command, arguments)], _deadline(timeout_s))[-1]

    def restore(self, uri: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Load the device state and return when the guest runs."""
        deadline = _deadline(timeout_s)
        self._begin_restore(uri, deadline)
        self._wait_event("RESUME", deadline, "restore the template's state")

    def restore_and_plug(self, uri: str, devices: list[dict[str, str]], timeout_s: float = _TIMEOUT_S) -> None:
        """Load the device state into a machine that was started stopped, add devices, and return when the guest runs."""
        deadline = _deadline(timeout_s)
        self._begin_restore(uri, deadline)
        self._wait_migrated(deadline, "restore the template's state")
        commands: list[tuple[str, dict[str, Any]]] = [("device_add", {**device}) for device in devices]
        self._execute([*commands, ("cont", {})], deadline)

    def snapshot(self, state_fd: int) -> None:
        """Stop the guest and write the device state to a file, without the memory, which is in its own."""
        self._execute([("stop", {}), _IGNORE_SHARED], _deadline(_TIMEOUT_S))
        # Unlike `migrate-incoming`, `migrate` takes no number of an inherited descriptor: it must be sent.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, state_fd.to_bytes(4, sys.byteorder))]
        self._socket.sendmsg([b'{"execute": "getfd", "arguments": {"fdname": "state"}}\n'], rights)
        self._answer("getfd", _deadline(_TIMEOUT_S))
        self.execute("migrate", uri="fd:state")
        self._wait_migrated(_deadline(_SAVE_TIMEOUT_S), "save the device state")

    def quit(self) -> None:
        """Ask QEMU to end; it may be gone before it answers."""
        try:
            self.execute("quit")
        except GuestError:
            return

    def _begin_restore(self, uri: str, deadline: float) -> None:
        """Start to load. QEMU ends itself, with words on its stderr, when the state does not fit the machine."""
        self._execute([_IGNORE_SHARED, ("migrate-incoming", {"uri": uri})], deadline)

    def _wait_migrated(self, deadline: float, what: str) -> None:
        while True:
            status = self._wait_event("MIGRATION", deadline, what)["data"]["status"]
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                words = self.execute("query-migrate").get("error-desc", status)
                raise GuestError(f"{what}: qemu: {printable(str(words))}")

    def _execute(self, commands: list[tuple[str, dict[str, Any]]], deadline: float) -> list[Any]:
        """Send all commands at once (a round trip to an emulator that starts is dear) and collect their answers."""
        if not self._greeted:
            self._greeted = True
            return self._execute([("qmp_capabilities", {}), *commands], deadline)[1:]
        requests = [json.dumps({"execute": name, "arguments": arguments}) for name, arguments in commands]
        try:
            self._socket.sendall("\n".join(requests).encode() + b"\n")
        except OSError as error:
            raise GuestError(f"qemu: {commands[0][0]}: QEMU is gone") from error
        return [self._answer(name, deadline) for name, _ in commands]

    def _answer(self, command: str, deadline: float) -> Any:
        while True:
            message = self._message(deadline, command)
            if "error" in message:
                raise GuestError(f"qemu: {command}: {printable(str(message['error'].get('desc', message['error'])))}")
            if "return" in message:
                return message["return"]
            if "event" in message:
                self._events.append(message)

    def _wait_event(self, name: str, deadline: float, what: str) -> dict[str, Any]:
        while True:
            for index, event in enumerate(self._events):
                if event["event"] == name:
                    return self._events.pop(index)
            message = self._message(deadline, what)
            if "event" in message:
                self._events.append(message)

    def _message(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\n" not in self._data:
            self._data += self._receive(deadline, what)
        line, _, self._data = self._data.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise GuestError(f"qemu: {what}: the monitor sent {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise GuestError(f"qemu: {what}: the monitor sent {line[:80]!r}")
        return message

    def _receive(self, deadline: float, what: str) -> bytes:
        left_s = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        with interruption.allowed():
            ready = left_s >= 0 and poll.poll(
                left_s * 1000
            )  # late is late, or who never stops to send is heard without end
        if not ready:
            raise GuestError(f"qemu: {what}: no answer in time")
        try:
            data = self._socket.recv(_BUFFER)
        except OSError as error:
            raise GuestError(f"qemu: {what}: {error.strerror}") from error
        if not data:
            raise GuestError(f"qemu: {what}: QEMU ended")
        return data


def _deadline(timeout_s: float) -> float:
    """When what begins now must have ended, on time.monotonic()."""
    return time.monotonic() + patience.seconds(timeout_s)


_IGNORE_SHARED = (
    "migrate-set-capabilities",
    {"capabilities": [{"capability": "x-ignore-shared", "state": True}, {"capability": "events", "state": True}]},
)
