"""``ps``: the processes of a container, as its guest tells of them; and as the host has them."""

from __future__ import annotations

import time

from rundctl.engine.container.guest import Guest
from rundctl.engine.records import store
from rundctl.errors import GuestError
from rundctl.guest import processes, wire
from rundctl.host import patience
from rundctl.types import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.container.context import Context
    from rundctl.guest.processes import Process

_ALL_TIMEOUT_S = 120.0  # 10,000 processes of an emulated guest are some 150 answers
_COUNT_MAX, _BYTES_MAX = (
    65_536,
    128 << 20,
)  # twice what a guest's pid_max lets there be, 2 KiB each: a guest that knows more has no end


class Listing:
    """The processes of a container by number, and when they were asked for, by the guest's clock in ticks and by the host's in seconds."""

    __slots__ = ("asked_at_s", "processes", "uptime_ticks")

    def __init__(self, found: list[Process], uptime_ticks: int, asked_at_s: float) -> None:
        self.processes = found
        self.uptime_ticks = uptime_ticks
        self.asked_at_s = asked_at_s


def host_pids(ctx: Context, container_id: str) -> list[int]:
    """Of what the container's processes are on the host, the pids: its shim's, or none. StateError if it does not exist."""
    container = store.load(ctx.root, container_id)
    pid = container.pid() if container.status().can_kill else 0
    return [pid] if pid else []


def listing(ctx: Context, container_id: str) -> Listing:
    """All processes; none if it is stopped. StateError if it does not exist or is paused, GuestError if its guest does not answer, or without end."""
    container = store.load(ctx.root, container_id)
    if container.status() is Status.STOPPED:
        return Listing([], 0, time.time())
    with Guest(container) as guest:
        return collect(guest, time.monotonic() + patience.seconds(_ALL_TIMEOUT_S))


def collect(guest: Guest, deadline: float) -> Listing:
    """Page after page."""
    found: list[Process] = []
    place = size = 0
    while True:
        answer = guest.ask(wire.PROCESSES, processes.request(place))
        size += len(answer.data)
        page = processes.unpack(answer)
        found += page.processes
        place = page.following
        if not place:
            return Listing(processes.number(found), page.uptime_ticks, time.time())
        if time.monotonic() > deadline or len(found) > _COUNT_MAX or size > _BYTES_MAX:
            raise GuestError(f"the list of processes has no end: {len(found)} so far")
