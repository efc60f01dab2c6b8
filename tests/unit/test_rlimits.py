"""Inherited resource limits: read as getrlimit(2) says them, set where config.json names none."""

from __future__ import annotations

import resource

from rundctl.engine.plan import process as plan_process
from rundctl.guest import ops
from rundctl.host import rlimits
from rundctl.oci import linux


def test_as_getrlimit_says() -> None:
    mask = rlimits.INFINITY  # Python says -1 for infinity
    wanted = {
        number: (resource.getrlimit(number)[0] & mask, resource.getrlimit(number)[1] & mask)
        for number in linux.RLIMITS.values()
    }
    assert rlimits.inherited() == wanted


def test_named_ones_win_and_nofile_fits_the_guest() -> None:
    process = {"args": ["x"], "cwd": "/", "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]}
    inherited = {4: (7, 7), 6: (96365, 96365), 7: (1024, rlimits.INFINITY), 99: (1, 1)}
    compiled = plan_process.compile_process(process, None, [], [], inherited)
    found = [op.arguments for op in compiled if op.opcode is ops.Opcode.RLIMIT]
    assert sorted(found) == [(4, 1, 2), (6, 96365, 96365), (7, 1024, 1 << 20)]


def test_room_for_descriptors_is_made_and_given_back() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
        with rlimits.room_for(500):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (500, hard)
        with rlimits.room_for(501):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (500, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
