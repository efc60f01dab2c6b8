"""A container's guest as it is asked, again and again, by one caller: each wait has a deadline, and what it answers is believed by nobody."""

from __future__ import annotations

import _struct as struct
import errno

from rundctl.engine.container import vm
from rundctl.errors import GuestError, StateError
from rundctl.guest import wire
from rundctl.host import patience
from rundctl.lean import os
from rundctl.lean.contextlib import ExitStack
from rundctl.types import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from rundctl.engine.records.store import Container

ANSWER_TIMEOUT_S = 10.0
_FILE = struct.Struct("<iI")


class Guest:
    """The conversation with one container's guest. Use as a context."""

    __slots__ = ("_channel", "_container", "_late", "_undo")

    def __init__(self, container: Container) -> None:
        self._container = container
        self._undo = ExitStack()
        self._channel: wire.Channel | None = None
        self._late = 0  # tag of a request that was given up: until it is answered another would only wait behind it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def ask(self, kind: int, payload: bytes) -> wire.Result:
        """One request about the container. StateError if it is paused, GuestError if there is no answer in time, or an error."""
        self._check_status()
        if self._channel is None:
            self._channel = vm.connect(self._undo, self._container, ANSWER_TIMEOUT_S)
        self._channel.allow(patience.seconds(ANSWER_TIMEOUT_S))
        try:
            result = self._answer(self._channel, kind, payload)
        except GuestError:
            if not self._late:  # no delay: the conversation is over
                self._undo.close()
                self._channel = None
            if self._container.status() is Status.PAUSED:  # while it was asked
                self._check_status()
            raise
        if result.error:  # ECHILD is the shim's answer, when there is no guest any more
            words = "it has ended" if result.error == errno.ECHILD else os.strerror(result.error).lower()
            raise GuestError(f"container {self._container.id}: its guest: {words}")
        return result

    def _check_status(self) -> None:
        status = self._container.status()
        if not status.can_answer:
            raise StateError(f"container {self._container.id} is {status.value}: its guest cannot be asked")

    def _answer(self, channel: wire.Channel, kind: int, payload: bytes) -> wire.Result:
        if self._late:
            channel.wait(self._late)
        self._late = channel.post(kind, payload, container=1)
        result = channel.wait(self._late)
        self._late = 0
        return result

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Files of the container's cgroup in the guest, without those that it has not. Errors as ``ask``."""
        result = self.ask(wire.READ, b"".join(name.encode("ascii") + b"\0" for name in names))
        return unpack_files(names, result)


def unpack_files(names: Sequence[str], result: wire.Result) -> dict[str, bytes]:
    """The files in an answer to READ. GuestError if it is none."""
    found: dict[str, bytes] = {}
    offset = 0
    for name in names if result.index == len(names) else ():
        if len(result.data) - offset < _FILE.size:
            break
        error, size = _FILE.unpack_from(result.data, offset)
        offset += _FILE.size
        if size > len(result.data) - offset:
            break
        if error == 0:
            found[name] = result.data[offset : offset + size]
        offset += size
    else:
        if offset == len(result.data) and result.index == len(names):
            return found
    raise GuestError("protocol violation: the guest's answer makes no sense")
