"""``linux.resources``, divided between host and guest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.engine.cgroups import limits as resources
from rundctl.engine.cgroups.limits import MEMORY_MIN, MIB, Machine
from rundctl.engine.container import shapes
from rundctl.engine.rootfs import transport
from rundctl.engine.settings import Settings
from rundctl.errors import ConfigError
from rundctl.host import cgroup_settings
from rundctl.host.cgroup_settings import Limits

MACHINE = Machine(memory_mib=192, vcpus=2, guest_overhead_mib=64, vmm_overhead_mib=32, translations_mib=16)


def host_files(limits: Limits, *, v2: bool) -> dict[str, str]:
    """File and text on a host that has one version's files, all of them."""
    found: dict[str, str] = {}
    prefixes = {
        False: ("memory.limit", "memory.memsw", "memory.soft", "cpu.cfs", "cpu.shares", "blkio"),
        True: ("io.",),
    }
    only_v2 = ("memory.max", "memory.low", "memory.swap.max", "cpu.max", "cpu.max.burst", "cpu.weight")
    for setting in cgroup_settings.settings(resources.for_vm(limits, MACHINE)):
        for file, text in setting.candidates:
            is_v1 = file.startswith(prefixes[False])
            is_v2 = file.startswith(prefixes[True]) or file in only_v2
            if (v2 and not is_v1) or (not v2 and not is_v2):
                found[file] = text
                break
    return found


def test_memory() -> None:
    limits = resources.parse({"memory": {"limit": 100 * MIB, "swap": 150 * MIB, "reservation": 20 * MIB}})
    vm = (192 + 32 + 16 + 2) * MIB
    assert MACHINE.host_memory == vm
    assert host_files(limits, v2=False) == {
        "memory.limit_in_bytes": str(vm),
        "memory.memsw.limit_in_bytes": str(vm + 50 * MIB),
        "memory.soft_limit_in_bytes": str(20 * MIB + vm - 128 * MIB),
    }
    assert host_files(limits, v2=True) == {
        "memory.max": str(vm),
        "memory.swap.max": str(50 * MIB),
        "memory.low": str(20 * MIB + vm - 128 * MIB),
    }
    assert resources.guest_files(limits) == {"memory.max": str(100 * MIB), "memory.low": str(20 * MIB)}


def test_cpu() -> None:
    asked = {"shares": 2048, "quota": 50000, "period": 200000, "burst": 1000, "cpus": "0-1,3", "mems": "0", "idle": 0}
    limits = resources.parse({"cpu": asked})
    pinned = {"cpuset.cpus": "0-1,3", "cpuset.mems": "0", "cpu.idle": "0"}
    assert host_files(limits, v2=False) == {
        "cpu.shares": "2048",
        "cpu.cfs_quota_us": "100000",
        "cpu.cfs_period_us": "200000",
        "cpu.cfs_burst_us": "1000",
        **pinned,
    }
    assert host_files(limits, v2=True) == {
        "cpu.weight": "79",
        "cpu.max": "100000 200000",
        "cpu.max.burst": "1000",
        **pinned,
    }
    assert resources.guest_files(limits) == {"cpu.weight": "79", "cpu.max": "50000 200000", "cpu.max.burst": "1000"}


def test_a_period_alone() -> None:
    limits = resources.parse({"cpu": {"period": 50000}})
    assert resources.guest_files(limits) == {"cpu.max": "max 50000"}
    assert host_files(limits, v2=False) == {"cpu.cfs_period_us": "50000"}


def test_pids_are_the_guest_s_and_disks_the_host_s() -> None:
    device = {"major": 8, "minor": 16}
    limits = resources.parse(
        {
            "pids": {"limit": 9},
            "blockIO": {
                "weight": 500,
                "weightDevice": [{**device, "weight": 10}],
                "throttleReadBpsDevice": [{**device, "rate": 1000}],
                "throttleWriteIOPSDevice": [{**device, "rate": 7}, {"major": 8, "minor": 0, "rate": 0}],
            },
        }
    )
    assert resources.guest_files(limits) == {"pids.max": "9"}
    texts = {
        name: [dict(setting.candidates).get(name) for setting in cgroup_settings.settings(limits)]
        for name in ("io.max", "io.weight", "blkio.throttle.write_iops_device")
    }
    assert [text for text in texts["io.max"] if text] == ["8:16 rbps=1000", "8:16 wiops=7", "8:0 wiops=max"]
    assert [text for text in texts["io.weight"] if text] == ["4950", "8:16 1"]
    assert [text for text in texts["blkio.throttle.write_iops_device"] if text] == ["8:16 7", "8:0 0"]


def test_unified_is_the_field_it_means() -> None:
    limits = resources.parse(
        {
            "memory": {"limit": 500 * MIB},
            "unified": {
                "memory.max": str(100 * MIB),
                "memory.low": str(MIB),
                "memory.high": str(90 * MIB),
                "memory.swap.max": "0",
                "cpu.max": "150000 100000",
                "cpu.weight": "79",
                "pids.max": "max",
                "cpuset.cpus": "1",
                "io.max": "8:0 rbps=5",
                "hugetlb.2MB.max": "0",
            },
        }
    )
    assert shapes.request_for(limits, Settings(), transport.nine_p("/"), volumes=False).memory_mib == 192
    assert shapes.request_for(limits, Settings(), transport.nine_p("/"), volumes=False).vcpus == 2
    files = resources.guest_files(limits)
    assert files["memory.max"] == str(100 * MIB)
    assert files["memory.high"] == str(90 * MIB)
    assert files["hugetlb.2MB.max"] == "0"
    assert files["cpu.weight"] == "79"
    assert not {"pids.max", "io.max", "cpuset.cpus"} & set(files)
    host = host_files(limits, v2=True)
    assert host["io.max"] == "8:0 rbps=5"
    assert host["cpuset.cpus"] == "1"
    assert host["memory.swap.max"] == "0"


def test_the_order_in_unified_means_nothing() -> None:
    limits = resources.parse({"unified": {"memory.swap.max": str(50 * MIB), "memory.max": str(100 * MIB)}})
    assert (limits.memory, limits.memory_swap) == (100 * MIB, 150 * MIB)


def test_a_burst_without_a_quota_is_the_kernel_s_to_take() -> None:
    assert resources.guest_files(resources.parse({"cpu": {"burst": 6000}})) == {"cpu.max.burst": "6000"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"cpu": {"shares": 1}}, "cpu.shares: expected a number from 2 to 262144, got 1"),
        ({"cpu": {"quota": 5}}, "cpu.quota: expected at least 1000 microseconds, got 5"),
        ({"cpu": {"period": 5}}, "cpu.period: expected a number from 1000 to 1000000, got 5"),
        ({"cpu": {"quota": 5000, "burst": 6000}}, "cpu.burst: 6000 is more than the quota, 5000"),
        ({"cpu": {"cpus": "0-"}}, "cpu.cpus: expected a list like 0-2,7, of numbers up to 8191, got '0-'"),
        ({"cpu": {"mems": "x"}}, "cpu.mems: expected a list like 0-2,7, of numbers up to 8191, got 'x'"),
        ({"cpu": {"idle": 2}}, "cpu.idle: expected a number from 0 to 1, got 2"),
        ({"memory": {"swap": 5}}, "memory.swap: needs memory.limit"),
        ({"memory": {"limit": 9 * MIB, "swap": 5}}, "memory.swap: 5 is less than memory.limit, 9437184"),
        (
            {"memory": {"limit": 9 * MIB, "reservation": 10 * MIB}},
            "memory.reservation: 10485760 is more than memory.limit, 9437184",
        ),
        (
            {"memory": {"limit": 1}},
            "memory.limit: expected at least 2097152 bytes (2 MiB), which a small program needs, got 1",
        ),
        ({"memory": {"limit": 524_288}}, "memory.limit: expected at least 2097152 bytes"),
        ({"unified": {"memory.max": "0"}}, "memory.limit: expected at least 2097152 bytes"),
        *(
            ({"memory": {name: -2}}, f"memory.{name}: expected a number of bytes, or -1, got -2")
            for name in ("limit", "swap", "reservation")
        ),
        ({"cpu": {"cpus": "0-8192"}}, "cpu.cpus: expected a list like 0-2,7, of numbers up to 8191, got '0-8192'"),
        ({"cpu": {"mems": "9" * 5000}}, "cpu.mems: expected a list like 0-2,7"),
        ({"unified": {"cpuset.cpus": "0," * 5000}}, "cpu.cpus: expected a list like 0-2,7"),
        ({"cpu": {"burst": 1 << 63}}, "cpu.burst: expected a number from 0 to 9223372036854775807"),
        *(
            ({"unified": {file: digits}}, f"unified[{file!r}]: expected a number up to 9223372036854775807, got 9")
            for file in (
                "memory.max",
                "memory.low",
                "memory.swap.max",
                "pids.max",
                "cpu.max",
                "cpu.weight",
                "cpu.idle",
                "cpu.max.burst",
            )
            for digits in ("9" * 19, "9" * 4301)
        ),
        ({"unified": {"cpu.max": "1000 " + "9" * 4301}}, "unified['cpu.max']: expected a number up to"),
        ({"unified": {"memory.max": "x" * 4301}}, "unified['memory.max']: expected a number or max, got 'xxx"),
        ({"memory": {"swappiness": 101}}, "memory.swappiness: expected a number from 0 to 100, got 101"),
        ({"blockIO": {"weight": 5}}, "blockIO.weight: expected a number from 10 to 1000, got 5"),
        ({"unified": {"memory.max": "1G"}}, "unified['memory.max']: expected a number or max, got '1G'"),
        ({"unified": {"a/b": "1"}}, "unified['a/b']: expected the name of a file, CONTROLLER.PARAMETER"),
        ({"unified": {"memory": "1"}}, "unified['memory']: expected the name of a file"),
        ({"unified": {"cgroup.procs": "1"}}, "a container in a VM has no controller 'cgroup'"),
        ({"unified": {"io.max": "a\nb"}}, "expected one line"),
    ],
)
def test_what_makes_no_sense_is_named(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resources.parse(asked)
    assert caught.value.message.startswith("config.json: linux.resources")
    assert words in caught.value.message
    assert len(caught.value.message) < 250


@given(st.integers(2, 262144))
def test_shares_and_weights(shares: int) -> None:
    weight = cgroup_settings.weight_of_shares(shares)
    assert 1 <= weight <= 10000
    back = cgroup_settings.shares_of_weight(weight)
    assert back <= shares
    assert cgroup_settings.weight_of_shares(back) == weight


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000)])
def test_the_conversion_is_runc_s(shares: int, weight: int) -> None:
    assert cgroup_settings.weight_of_shares(shares) == weight


@given(st.integers(MEMORY_MIN, 8000 * MIB), st.integers(0, 1000), st.integers(0, 2048))
def test_a_container_can_use_its_limit_before_its_vm_is_out_of_memory(limit: int, vmm: int, translations: int) -> None:
    settings = Settings()
    limits = resources.parse({"memory": {"limit": limit, "swap": limit}})
    memory_mib = shapes.memory_mib(limits, settings)
    assert memory_mib is not None
    machine = Machine(
        memory_mib=memory_mib, vcpus=1, guest_overhead_mib=64, vmm_overhead_mib=vmm, translations_mib=translations
    )
    assert limit <= machine.limit_max
    host = resources.for_vm(limits, machine)
    assert host.memory is not None
    assert host.memory >= (memory_mib + vmm + translations) * MIB
    assert host.memory_swap == host.memory


NUMBER = st.one_of(st.none(), st.integers(-1, 1 << 64))
ANY = st.fixed_dictionaries(
    {},
    optional={
        "memory": st.fixed_dictionaries({}, optional=dict.fromkeys(("limit", "reservation", "swap", "swappiness"), NUMBER)),
        "cpu": st.fixed_dictionaries(
            {},
            optional={
                **dict.fromkeys(("shares", "quota", "period", "burst", "idle"), NUMBER),
                **dict.fromkeys(("cpus", "mems"), st.one_of(st.text(max_size=5), st.just("0-1"))),
            },
        ),
        "pids": st.fixed_dictionaries({"limit": NUMBER}),
        "unified": st.dictionaries(
            st.sampled_from(["memory.max", "cpu.max", "cpu.weight", "pids.max", "memory.swap.max", "io.max", "x"]),
            st.sampled_from(["max", "0", "1", "0" * 5000 + "5000000", "1000 2000", "100 x", "", "٣"]),
        ),
    },
)  # fmt: skip


@given(ANY)
def test_anything_is_divided_or_refused(asked: dict[str, Any]) -> None:
    try:
        limits = resources.parse(asked)
    except ConfigError:
        return
    files = resources.guest_files(limits)
    assert all(text.isprintable() and text for text in files.values())
    assert all(file.partition(".")[0] in ("memory", "cpu", "pids", "hugetlb") for file in files)
    for v2 in (False, True):
        assert "pids.max" not in host_files(limits, v2=v2)
