"""What is said when a guest does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from rundctl.engine.container import guest, vm
from rundctl.errors import GuestError, StateError
from rundctl.guest import wire
from rundctl.types import Status

if TYPE_CHECKING:
    from rundctl.engine.records.store import Container


class _Mute:
    """A channel whose other end takes requests and does not answer."""

    def post(self, kind: int, payload: bytes, *, container: int) -> int:
        return 1

    def allow(self, timeout_s: float) -> None:
        del timeout_s

    def wait(self, tag: int) -> wire.Result:
        raise GuestError("the VM did not answer in time")


class _Container:
    """Runs when it is looked at first, and is something else from then on."""

    id = "c"

    def __init__(self, then: Status) -> None:
        self._seen = iter((Status.RUNNING,))
        self._then = then

    def status(self) -> Status:
        return next(self._seen, self._then)


@pytest.mark.parametrize(
    ("then", "error", "words"),
    [
        (Status.PAUSED, StateError, "container c is paused: its guest cannot be asked"),
        (Status.RUNNING, GuestError, "the VM did not answer in time"),
        (Status.STOPPED, GuestError, "the VM did not answer in time"),
    ],
)
def test_who_is_paused_while_it_is_asked_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, then: Status, error: type[Exception], words: str
) -> None:
    monkeypatch.setattr(vm, "connect", lambda *_: _Mute())
    with guest.Guest(cast("Container", _Container(then))) as asked, pytest.raises(error, match=words):
        asked.ask(wire.READ, b"")
