"""``events``: a container's figures, and whether it ran out of memory, once or until it ends."""

from __future__ import annotations

import time

from rundctl.engine.cgroups import kinds
from rundctl.engine.container import figures, vm
from rundctl.engine.container.guest import Guest
from rundctl.engine.records import store
from rundctl.errors import GuestError, RundctlError, StateError
from rundctl.host import patience, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rundctl.engine.container.context import Context
    from rundctl.engine.records.store import Container
    from rundctl.host.pidfd import Process

    Emit = Callable[[dict[str, Any]], None]
    Complain = Callable[[str], None]


def stats(ctx: Context, container_id: str) -> dict[str, Any]:
    """One event with the figures of now. StateError if the container is stopped or paused, GuestError if its guest does not answer."""
    container = _load(ctx, container_id)
    with Guest(container) as guest:
        return _event(container, guest.read(figures.FILES))


def stream(ctx: Context, container_id: str, interval_s: float, emit: Emit, complain: Complain) -> None:
    """An event an interval until the container ends; figures that cannot be had are a complaint, and asked for again. StateError if it is stopped."""
    container = _load(ctx, container_id)
    shim = container.shim()
    if shim is None:
        return
    with shim, Guest(container) as guest:
        Stream(container, guest, emit, complain).run(shim, interval_s)


class Stream:
    """What one call has told."""

    __slots__ = ("_complain", "_container", "_emit", "_guest", "_oom_kills", "_told_oom")

    def __init__(self, container: Container, guest: Guest, emit: Emit, complain: Complain) -> None:
        self._container = container
        self._guest = guest
        self._emit = emit
        self._complain = complain
        self._oom_kills: int | None = None  # before the first answer: what was, is no news
        self._told_oom = False

    def run(self, shim: Process, interval_s: float) -> None:
        """Until the shim ends."""
        self._look(shim, tell=False)
        due = time.monotonic() + interval_s
        while not shim.wait(max(0.0, due - time.monotonic())):
            self._look(shim, tell=True)
            due = max(due + interval_s, time.monotonic())
        # Whoever was killed last may have been the first process itself, and then nobody could be asked any more.
        if self._container.exit_record().get("oom") == "1" and not self._told_oom and not self._oom_kills:
            self._tell_oom()

    def _look(self, shim: Process, *, tell: bool) -> None:
        try:
            files = self._guest.read(figures.FILES)
        except RundctlError as error:
            # A shim that ends closes the conversation first: that is its end, and nothing to complain of.
            if not shim.wait(patience.seconds(vm.LAST_WORDS_S) if isinstance(error, GuestError) else 0):
                self._complain(str(error))
            return
        kills = figures.oom_kills(files)
        if self._oom_kills is not None and kills > self._oom_kills:
            self._tell_oom()
        self._oom_kills = kills
        if tell:
            self._emit(_event(self._container, files))

    def _tell_oom(self) -> None:
        self._told_oom = True
        self._emit({"type": "oom", "id": self._container.id})


def _load(ctx: Context, container_id: str) -> Container:
    container = store.load(ctx.root, container_id)
    if not container.status().can_kill:
        raise StateError(f"container with id {container_id} is not running")
    return container


def _event(container: Container, files: dict[str, bytes]) -> dict[str, Any]:
    """``host`` is ours: what the container costs its host."""
    before = kinds.recorded(container.record["cgroups"]).baseline()
    data = {**figures.translate(files), "host": usage.of(container.pid(), before=before)}
    return {"type": "stats", "id": container.id, "data": data}
