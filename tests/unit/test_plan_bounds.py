"""What a plan may hold: devices, numbers of users, sizes, capabilities."""

from __future__ import annotations

import os
import re
import stat
from typing import Any

import pytest

from rundctl.engine.plan import devices
from rundctl.errors import ConfigError
from rundctl.guest import ops
from rundctl.guest.ops import Opcode
from rundctl.guest.wire import MESSAGE_MAX
from rundctl.host import devices as host_devices

from .plan_rig import config_of, ops_of, plan_of, recorded, refusal_of


def test_podman_privileged_is_refused_for_the_hosts_devices() -> None:
    config, facts = recorded("podman-privileged")
    theirs = frozenset(path for *_, path in devices.asked(config))
    with pytest.raises(ConfigError) as caught:
        plan_of(config, devices=theirs, **facts)
    why = f"{min(theirs)} and {len(theirs) - 1} more are devices of the host, and do not exist in the VM"
    assert caught.value.message == f"config.json: linux.devices: not supported: {why}"
    assert caught.value.hint.startswith("--privileged asks for all devices of the host")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (
            {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
            "linux.devices[0]: not supported: /dev/sda (b 8:0) is a device of the host",
        ),
        ({"path": "dev/kvm", "type": "c", "major": 10, "minor": 232}, "linux.devices[0]: not supported"),
        ({"path": "/", "type": "c", "major": 1, "minor": 3}, "linux.devices[0].path: expected the path of a node"),
        (
            {"path": "/x", "type": "c", "major": 4096},
            "linux.devices[0].major: expected a number from 0 to 4095, got 4096",
        ),
        (
            {"path": "/x", "type": "b", "minor": -1},
            "linux.devices[0].minor: expected a number from 0 to 1048575, got -1",
        ),
        ({"path": "/x", "type": "z"}, "linux.devices[0].type"),
    ],
)
def test_other_devices(device: dict[str, Any], words: str) -> None:
    assert words in refusal_of(config_of(linux={"devices": [device]}), devices=frozenset(["/dev/sda", "/dev/kvm"]))


def test_a_device_that_the_host_has_not_is_a_node() -> None:
    entries = [
        {"path": "/dev/x", "type": "c", "major": 10, "minor": 666},
        {"path": "dev/y", "type": "b", "major": 240, "minor": 17, "fileMode": 0, "uid": 1},
        {"path": "null", "type": "u", "major": 1, "minor": 3},
        {"path": "/fifo", "type": "p", "major": -1},
    ]
    config = config_of(linux={"devices": entries})
    assert devices.asked(config) == [("c", 10, 666, "/dev/x"), ("b", 240, 17, "/dev/y")]
    made = {op.arguments[0]: op.arguments[1:] for op in ops_of(config, Opcode.MKNOD)}
    assert made["/dev/x"] == (stat.S_IFCHR | 0o666, 10, 666, 0, 0)
    assert made["/dev/y"] == (stat.S_IFBLK, 240, 17, 1, 0)
    assert made["/null"] == (stat.S_IFCHR | 0o666, 1, 3, 0, 0)
    assert made["/fifo"] == (stat.S_IFIFO | 0o666, 0, 0, 0, 0)


def test_which_devices_the_host_has() -> None:
    assert host_devices.exists("c", 1, 3)
    assert host_devices.exists("c", 5000, 5000) is False
    status = os.stat("/dev/null").st_rdev
    assert host_devices.exists("b", os.major(status), os.minor(status)) is False
    assert host_devices.exists("b", os.major(status), os.minor(status), "/dev/null")


@pytest.mark.parametrize(
    ("user", "field"),
    [
        ({"uid": 2**31}, "uid"),
        ({"uid": 2**32 - 1}, "uid"),
        ({"gid": 2**32 - 1}, "gid"),
        ({"additionalGids": [1, 2**31]}, "additionalGids"),
        ({"additionalGids": list(range(65537))}, "additionalGids"),
    ],
)
def test_ids_that_runc_refuses(user: dict[str, Any], field: str) -> None:
    """-1 would leave the process root's."""
    assert f"process.user.{field}: expected " in refusal_of(config_of(process={"user": {"uid": 0, "gid": 0, **user}}))


def test_a_group_given_twice_is_one() -> None:
    config = config_of(process={"user": {"uid": 0, "gid": 0, "additionalGids": [5, 7, 5]}})
    assert ops_of(config, Opcode.IDS)[0].arguments == (0, 0, 5, 7)


@pytest.mark.parametrize(
    ("sections", "fields"),
    [
        ({"process": {"args": ["x" * 100_000] * 390}}, "process.args"),
        (
            {"process": {"env": ["A=" + "x" * 100_000, *(f"B{number}={'x' * 100_000}" for number in range(99))]}},
            "process.env",
        ),
        ({"linux": {"maskedPaths": ["/" + "x" * 100_000] * 90}}, "linux.maskedPaths"),
        ({"mounts": [{"destination": "/" + "x" * 100_000, "type": "tmpfs"}] * 90}, "mounts"),
    ],
)
def test_a_plan_that_is_too_large_names_its_fields(sections: dict[str, Any], fields: str) -> None:
    message = refusal_of(config_of(**sections))
    assert re.fullmatch(rf"config\.json: {fields}: \d+ bytes, and the whole plan of a container has 8388576", message)


def test_as_much_as_execve_takes_has_room() -> None:
    """3/4 of 8 MiB, with 8 bytes for each pointer."""
    assert len(plan_of(config_of(process={"args": ["x" * 54] * 100_000})).encode()) < MESSAGE_MAX
    assert len(plan_of(config_of(process={"args": [""] * 700_000})).encode()) < MESSAGE_MAX


def test_the_size_of_a_plan_is_known_before_it_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(linux={"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}})
    size = len(plan_of(config).encode())
    head = MESSAGE_MAX - ops.PLAN_ROOM
    monkeypatch.setattr(ops, "PLAN_ROOM", size - head)
    plan_of(config)
    monkeypatch.setattr(ops, "PLAN_ROOM", size - head - 1)
    assert "the whole plan of a container has" in refusal_of(config)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("SYS_ADMIN", " (did you mean CAP_SYS_ADMIN?)"), ("cap_kill", " (did you mean CAP_KILL?)"), ("CAP_NEW", "")],
)
def test_a_capability_that_is_none_is_said(name: str, hint: str) -> None:
    sets = {"bounding": [name, "CAP_KILL"], "effective": [name]}
    compiled = plan_of(config_of(process={"capabilities": sets}))
    assert compiled.warnings == [f"process.capabilities: ignored: unknown capability {name!r}{hint}"]
