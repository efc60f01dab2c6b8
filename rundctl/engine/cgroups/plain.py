"""Cgroups that are made on the spot, and removed with their container: where there is no pool, or it is empty."""

from __future__ import annotations

from rundctl.engine.cgroups import paths
from rundctl.engine.cgroups.lease import Lease
from rundctl.host import cgroupfs
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rundctl.engine.cgroups.lease import Facts
    from rundctl.host.cgroupfs import Place

LATE_JOIN_TIMEOUT_S = 10.0  # of what an unfinished create has started


class PlainLease(Lease):
    """Cgroups of the requested name; one that is there already is joined, as with runc."""

    __slots__ = ("_why",)
    kind = "plain"

    def __init__(self, places: list[Place], why: str = "") -> None:
        """``why``: why it is no slot of a pool, for `describe`."""
        super().__init__(places)
        self._why = why

    def make(self, record: Callable[[Facts], None]) -> None:
        """As `Lease.make`."""
        del record
        for place in self.places:
            cgroupfs.make(place.hierarchy, place.path)

    def give_back(self, *, unfinished: bool = False) -> str:
        """As `Lease.give_back`: removed, and waited for longer if somebody may be about to join."""
        timeout_s = LATE_JOIN_TIMEOUT_S if unfinished else cgroupfs.REMOVE_TIMEOUT_S
        for place in self.places:
            cgroupfs.remove(place.hierarchy, place.path, timeout_s)
            paths.leave(place.hierarchy, os.path.dirname(place.path))
        return ""

    def describe(self) -> str:
        """As `Lease.describe`."""
        return f"made on the spot: {self._why}" if self._why else "made on the spot"
