"""A VM's size from ``linux.resources``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.engine.cgroups import limits
from rundctl.engine.container import shapes
from rundctl.engine.settings import Settings
from rundctl.errors import ConfigError

MIB = 1 << 20


def test_without_limits_the_settings_decide() -> None:
    for asked in ({}, {"memory": {"limit": -1}, "cpu": {"quota": 0}}, {"memory": {}, "cpu": {"period": 1000}}):
        request = shapes.request_for(limits.parse(asked), Settings())
        assert (request.memory_mib, request.vcpus) == (None, None)


@given(st.integers(1, (shapes.MEMORY_MAX_MIB - 64) * MIB))
def test_memory_is_enough_and_not_much_more(limit: int) -> None:
    settings = Settings()
    given_mib = shapes.request_for(limits.parse({"memory": {"limit": limit}}), settings).memory_mib
    assert given_mib is not None
    wanted = limit / MIB + settings.guest_overhead_mib
    assert wanted <= given_mib <= max(shapes.MEMORY_MIN_MIB, 1.5 * (wanted + 1))


@pytest.mark.parametrize(
    ("quota", "period", "vcpus"), [(1000, 0, 1), (100000, 0, 1), (100001, 0, 2), (50000, 10000, 5), (800000, 100000, 8)]
)
def test_vcpus_are_the_quota_rounded_up(quota: int, period: int, vcpus: int) -> None:
    asked = limits.parse({"cpu": {"quota": quota, "period": period}})
    assert shapes.request_for(asked, Settings()).vcpus == vcpus


@pytest.mark.parametrize(
    "asked",
    [
        {"memory": {"limit": 8192 * MIB}},
        {"cpu": {"quota": 800001}},
        {"unified": {"memory.max": str(8192 * MIB)}},
        {"unified": {"cpu.max": "900000 100000"}},
    ],
)
def test_more_than_a_vm_can_have_is_refused(asked: dict[str, dict[str, int]]) -> None:
    with pytest.raises(ConfigError, match="a VM has at most"):
        shapes.request_for(limits.parse(asked), Settings())
