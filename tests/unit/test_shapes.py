"""A VM's size from ``linux.resources``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.engine.cgroups import limits
from rundctl.engine.container import shapes
from rundctl.engine.rootfs import transport
from rundctl.engine.rootfs.images.content import Image
from rundctl.engine.settings import Settings
from rundctl.errors import ConfigError
from rundctl.vmm.virtiofsd import Daemon

if TYPE_CHECKING:
    from rundctl.engine.rootfs.transport import Rootfs
    from rundctl.engine.template.inputs import Request

MIB = 1 << 20
DAEMON = Daemon("/d", "virtiofsd 1.13.2", is_rust=True)


def _request(asked: dict[str, Any], rootfs: Rootfs | None = None, *, volumes: bool = False) -> Request:
    return shapes.request_for(limits.parse(asked), Settings(), rootfs or transport.nine_p("/"), volumes=volumes)


def test_devices_are_those_that_rootfs_and_volumes_come_by() -> None:
    image = Image("key", "/image", 200 * MIB)
    for rootfs, volumes, wanted in (
        (transport.nine_p("/"), True, ("9p", 0, True)),
        (transport.erofs(image, 8192), False, ("pmem", 256, False)),
        (transport.erofs(image, 64), True, ("blk", 256, True)),
        (transport.blk("/", 64), True, ("disk", 64, True)),
        (transport.virtiofs("/", DAEMON), True, ("virtiofs", 0, False)),
    ):
        request = _request({}, rootfs, volumes=volumes)
        assert (request.root_device, request.root_mib, request.volumes) == wanted


def test_without_limits_the_settings_decide() -> None:
    for asked in ({}, {"memory": {"limit": -1}, "cpu": {"quota": 0}}, {"memory": {}, "cpu": {"period": 1000}}):
        request = _request(asked)
        assert (request.memory_mib, request.vcpus) == (Settings().memory_mib, None)


@given(st.integers(limits.MEMORY_MIN, (shapes.MEMORY_MAX_MIB - 64) * MIB))
def test_memory_is_enough_and_not_much_more(limit: int) -> None:
    settings = Settings()
    given_mib = shapes.memory_mib(limits.parse({"memory": {"limit": limit}}), settings)
    wanted = limit / MIB + settings.guest_overhead_mib
    assert wanted <= given_mib <= max(shapes.MEMORY_MIN_MIB, 1.5 * (wanted + 1))


@pytest.mark.parametrize(
    ("quota", "period", "vcpus"), [(1000, 0, 1), (100000, 0, 1), (100001, 0, 2), (50000, 10000, 5), (800000, 100000, 8)]
)
def test_vcpus_are_the_quota_rounded_up(quota: int, period: int, vcpus: int) -> None:
    assert _request({"cpu": {"quota": quota, "period": period}}).vcpus == vcpus


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
        _request(asked)
