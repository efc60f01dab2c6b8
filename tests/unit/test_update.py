"""What an update makes of a container's resources, and of a command line."""

from __future__ import annotations

import io
from typing import Any

import pytest

from rundctl.commands import parse, update
from rundctl.commands.declare import Options
from rundctl.engine.cgroups import limits
from rundctl.engine.cgroups.limits import MIB, Machine
from rundctl.engine.container import update as engine
from rundctl.errors import ConfigError, UsageError

MACHINE = Machine(memory_mib=192, vcpus=2, guest_overhead_mib=64, vmm_overhead_mib=32, translations_mib=32)
BEFORE: dict[str, Any] = {
    "memory": {"limit": 100 * MIB, "swap": 200 * MIB},
    "cpu": {"shares": 512, "quota": 50000, "period": 100000, "burst": 1000, "idle": 1},
    "pids": {"limit": 10},
    "devices": [{"allow": False, "access": "rwm"}],
}


def options(*words: str) -> Options:
    parser = parse.Parser([*words, "c1"])
    parser.whole(update.VERB)
    return parser.options(*[lambda _: None] * 3)


def test_what_is_not_named_or_0_stays() -> None:
    nothing = {"memory": {"limit": 0, "swap": 0}, "cpu": {"shares": 0, "quota": 0, "cpus": ""}, "pids": {"limit": 0}}
    for asked in ({}, nothing):
        merged = engine.merge(BEFORE, asked)
        merged.pop("unified")
        assert merged == BEFORE


def test_merge_changes_what_is_named() -> None:
    merged = engine.merge(
        BEFORE, {"memory": {"limit": 50 * MIB}, "cpu": {"idle": 0, "cpus": "0"}, "pids": {"limit": -1}}
    )
    assert merged["memory"] == {"limit": 50 * MIB, "swap": 200 * MIB}
    assert merged["cpu"] == {**BEFORE["cpu"], "idle": 0, "cpus": "0"}
    assert merged["pids"] == {"limit": -1}
    assert merged["devices"] == BEFORE["devices"]
    assert BEFORE["cpu"]["idle"] == 1, "its argument is left alone"


def test_no_memory_limit_takes_that_of_swap_along() -> None:
    assert engine.merge(BEFORE, {"memory": {"limit": -1}})["memory"] == {"limit": -1, "swap": -1}
    assert limits.parse(engine.merge(BEFORE, {"memory": {"limit": -1}})).memory_swap is None


def test_a_field_wins_over_an_older_file_of_unified() -> None:
    before = {"unified": {"memory.max": str(100 * MIB), "memory.high": "5", "cpu.max": "1000 2000"}}
    merged = engine.merge(before, {"memory": {"limit": 50 * MIB}})
    assert limits.parse(merged).memory == 50 * MIB
    assert set(merged["unified"]) == {"memory.high", "cpu.max"}
    merged = engine.merge(before, {"memory": {"limit": 50 * MIB}, "unified": {"memory.max": "max"}})
    assert limits.parse(merged).memory is None


def test_a_quota_may_go_and_leave_its_burst() -> None:
    after = limits.parse(engine.merge(BEFORE, {"cpu": {"quota": -1}}))
    limits.release(after, limits.parse(BEFORE))
    assert limits.guest_files(after)["cpu.max"] == "max 100000"
    assert limits.guest_files(after)["cpu.max.burst"] == "1000"


def test_limits_that_go_are_said_in_words() -> None:
    before = limits.parse(BEFORE)
    after = limits.parse(
        engine.merge(BEFORE, {"memory": {"limit": -1}, "cpu": {"quota": -1, "burst": 0}, "pids": {"limit": -1}})
    )
    limits.release(after, before)
    files = limits.guest_files(after)
    assert files["memory.max"] == files["pids.max"] == "max"
    assert files["cpu.max"] == "max 100000"
    assert files["cpu.max.burst"] == "0"
    host = limits.for_vm(after, MACHINE)
    assert (host.memory, host.memory_swap, host.quota) == (-1, -1, -1)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"memory": {"limit": 129 * MIB}}, "room for at most 134217728 bytes (128 MiB)"),
        ({"cpu": {"quota": 200001, "period": 100000}}, "has 2 CPUs, so at most 200000 of a period of 100000"),
        ({"cpu": {"quota": 100001, "period": 50000}}, "at most 100000 of a period of 50000"),
    ],
)
def test_more_than_the_vm_has(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        engine.check_room(limits.parse(asked), MACHINE)
    assert words in caught.value.message


def test_all_that_the_vm_has() -> None:
    engine.check_room(limits.parse({"memory": {"limit": 128 * MIB}, "cpu": {"quota": 200000}}), MACHINE)


def test_flags() -> None:
    flags = {
        "--memory": "100m", "--memory-reservation": "1.5MiB", "--memory-swap": "-1", "--cpu-period": "100000",
        "--cpu-quota": "-1", "--cpu-burst": "0", "--cpu-share": "512", "--cpu-idle": "0", "--cpuset-cpus": "0-1",
        "--cpuset-mems": "0", "--pids-limit": "-1", "--blkio-weight": "500", "--cpu-rt-period": "0", "--cpu-rt-runtime": "0",
    }  # fmt: skip
    words = [word for pair in flags.items() for word in pair]
    assert update._from_flags(options(*words)) == {
        "memory": {"limit": 100 * MIB, "reservation": 3 << 19, "swap": -1},
        "cpu": {
            "period": 100000, "quota": -1, "burst": 0, "shares": 512, "idle": 0, "cpus": "0-1", "mems": "0",
            "realtimePeriod": 0, "realtimeRuntime": 0,
        },
        "pids": {"limit": -1},
        "blockIO": {"weight": 500},
    }  # fmt: skip


@pytest.mark.parametrize(("text", "size"), [("5", 5), ("5b", 5), ("2k", 2048), ("2KB", 2048), ("1g", 1 << 30), ("0.5G", 1 << 29), ("3 m", 3 * MIB)])  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert update._size("memory", text) == size


@pytest.mark.parametrize("flag", ["--memory", "--memory-swap", "--pids-limit", "--cpu-share", "--blkio-weight"])
@pytest.mark.parametrize("text", ["9223372036854775808", "9" * 400, "9" * 5000])
def test_values_that_are_too_large(flag: str, text: str) -> None:
    with pytest.raises(
        UsageError, match=f"invalid value for {flag[2:]}: expected a number up to 9223372036854775807, got 9"
    ) as caught:
        update._from_flags(options(flag, text))
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("flag", ["--memory", "--memory-swap", "--pids-limit", "--cpu-share", "--blkio-weight"])
@pytest.mark.parametrize("text", ["x", "-2x", "1..2", "m", "٣", "1q", "--", "1e3", "k5"])
def test_values_that_are_none(flag: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"invalid value for {flag[2:]}: "):
        update._from_flags(options(flag, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "resources in standard input: line 1 column 1: malformed JSON"),
        ("[]", "resources in standard input: linux.resources: expected object, got array"),
        ('{"memory": {"limit": "5"}}', "linux.resources.memory.limit: expected integer, got string"),
        ('{"blockIO": {"weightDevice": [null]}}', "linux.resources.blockIO.weightDevice[0]: expected object, got null"),
        (
            '{"memory": {"limit": ' + "9" * 5000 + "}}",
            "linux.resources.memory.limit: expected a number not above 9223372036854775807",
        ),
    ],
)
def test_resources_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    with pytest.raises(ConfigError) as caught:
        update._read("-")
    assert words in caught.value.message


def test_what_go_writes_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '{"memory": {"limit": null, "swap": 5}, "cpu": null, "pids": {}, "blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": null}]}, "x": XX}'
    text = text.replace("XX", "[" * 5000 + "]" * 5000)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    asked = update._read("-")
    del asked["x"]
    assert asked == {"memory": {"swap": 5}, "pids": {}, "blockIO": {"weightDevice": [{"major": 8, "minor": 0}]}}
    limits.parse({**asked, "memory": {}})


def test_what_update_does_not_change_is_listed() -> None:
    lines = engine._left_out(
        {"devices": [{"allow": True}], "memory": {"limit": 5, "swappiness": 7}, "blockIO": {"leafWeight": 0}, "unified": {"a.b": "1"}}
    )  # fmt: skip
    assert lines == ["update: devices: not changed by update", "update: memory.swappiness: not changed by update"]
