"""Many processes at once on one pool: no slot has two owners, and none is lost."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.engine.cgroups.lease import places

from .cgroup_rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rundctl.host.cgroupfs import Hierarchy

AT_ONCE = 200


def all_at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What each of so many processes returns, None of one that was killed; they are let go together, when the last one is there."""
    gate, open_gate = os.pipe()
    children = []
    for number in range(count):
        result, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(open_gate)
            try:
                os.read(gate, 1)
                os.write(tell, json.dumps(work(number)).encode())
            except BaseException:  # noqa: BLE001 (the child must end here, whatever happens)
                os.write(tell, json.dumps(traceback.format_exc()).encode())
            os._exit(0)
        os.close(tell)
        children.append((pid, result))
    os.close(gate)
    os.close(open_gate)
    told = []
    for pid, result in children:
        with open(result, "rb") as file:
            told.append(json.loads(file.read() or b"null"))
        os.waitpid(pid, 0)
    return told


@pytest.fixture
def rig(hierarchies: list[Hierarchy], tmp_path: Path):
    rig = Rig(hierarchies, tmp_path)
    yield rig
    rig.drain()
    assert rig.cgroups() == set()


def test_two_hundred_creates(rig: Rig) -> None:
    slots = 150  # the others find it empty
    rig.fill(slots)
    told = all_at_once(AT_ONCE, lambda number: rig.create(f"c{number}").facts())
    assert [facts for facts in told if isinstance(facts, str)] == []
    kinds = Counter(facts["kind"] for facts in told)
    assert kinds["pool"] == slots, "a hint that was passed over is a slot that nobody used"
    owned = [place for facts in told for place in map(tuple, facts["places"])]
    assert len(owned) == len(set(owned)), "a cgroup has two owners"
    assert len({facts["slot"] for facts in told if facts["kind"] == "pool"}) == slots
    assert all(place.hierarchy.exists(place.path) for number in range(AT_ONCE) for place in rig.places(f"c{number}"))
    outcomes = all_at_once(AT_ONCE, lambda number: rig.delete(f"c{number}"))
    assert Counter(outcome.partition(" is ")[2] for outcome in outcomes) == {"returned": slots, "": AT_ONCE - slots}
    assert (rig.status()["free"], rig.status()["leased"]) == (slots, 0)


def test_creates_deletes_fills_and_reclaims_at_once(rig: Rig) -> None:
    """Half of the creators end, or are killed, with their lease in hand: all is found again."""
    rig.fill(10)

    def work(number: int) -> str:
        if number % 10 == 0:
            rig.fill(10)
        elif number % 2:
            rig.lease(f"c{number}")  # no record comes
            if number % 4 == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        else:
            for _ in range(3):
                facts = rig.create(f"c{number}").facts()
                assert all(place.hierarchy.exists(place.path) for place in places(facts, rig.kind))
                rig.delete(f"c{number}")
        return "ok"

    told = all_at_once(60, work)
    assert sorted(told, key=str) == [None] * 15 + ["ok"] * 45
    rig.fill(10)
    status = rig.status()
    assert (status["free"], status["leased"], status["orphaned"]) == (10, 0, 0)
    assert len(rig.cgroups()) == 10 * len(rig.hierarchies)
