"""Mounts: every option name of runc's, binds, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.engine.plan import mounts as plan_mounts
from rundctl.engine.plan.mounts import Volume
from rundctl.errors import ConfigError
from rundctl.guest.ops import Op, Opcode
from rundctl.guest.wire import MOUNT_NO_LINK
from rundctl.oci import linux
from rundctl.oci.bundle import Bundle

VOLUMES = {0: Volume("/volumes/0")}


def _mounts(*entries: dict[str, Any]) -> list[plan_mounts.Mount]:
    return plan_mounts.parse({"mounts": list(entries)})


def _compile(
    entry: dict[str, Any], volumes: dict[int, Volume] | None = None, shm: dict[int, int] | None = None
) -> list[Op]:
    return plan_mounts.compile_mounts(_mounts(entry), volumes or {}, shm or {}, frozenset(), [])


def _bind(*options: str, **more: Any) -> dict[str, Any]:
    return {"destination": "/d", "type": "bind", "source": "/s", "options": list(options), **more}


def _shape(found: list[Op]) -> list[tuple[Opcode, tuple[object, ...]]]:
    return [(op.opcode, op.arguments) for op in found]


ALL_FLAGS = list(linux.MOUNT_OPTIONS)
DATA = st.sampled_from(["size=1m", "mode=755", "hidepid=2"])


@given(st.lists(st.sampled_from([*ALL_FLAGS, *linux.RECURSIVE_OPTIONS, *linux.PROPAGATIONS]) | DATA))
def test_options_round_trip(names: list[str]) -> None:
    """What was parsed, spelt out again, means the same; nothing is both set and cleared; nothing is lost."""
    once = plan_mounts.parse_options(names)
    assert not once.flags & once.cleared
    assert not once.recursive_flags & once.recursive_cleared
    assert once.data == [name for name in names if "=" in name]
    assert once.propagation == [linux.PROPAGATIONS[name] for name in names if name in linux.PROPAGATIONS]
    for name, (on, off) in linux.MOUNT_OPTIONS.items():
        if names and names[-1] == name:
            assert once.flags & on == on
            assert once.flags & off & ~on == 0
    set_names = [name for name, (on, _) in linux.MOUNT_OPTIONS.items() if on and once.flags & on == on]
    again = plan_mounts.parse_options(set_names)
    assert again.flags == once.flags


@pytest.mark.parametrize(
    ("on", "off"),
    [("ro", "rw"), ("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec"), ("sync", "async"), ("noatime", "atime")],
)
def test_the_later_option_wins(on: str, off: str) -> None:
    flag = linux.MOUNT_OPTIONS[on][0]
    assert plan_mounts.parse_options([off, on]).flags == flag
    wins = plan_mounts.parse_options([on, off])
    assert (wins.flags, bool(wins.cleared & flag)) == (0, True)


def test_file_system() -> None:
    entry = {
        "destination": "/t",
        "type": "tmpfs",
        "source": "x",
        "options": ["nosuid", "size=1m", "mode=755", "rprivate", "tmpcopyup"],
    }
    assert _shape(_compile(entry)) == [
        (Opcode.MOUNT, ("x", "/t", "tmpfs", linux.MS_NOSUID, "size=1m,mode=755", 0o755, 1)),
        (Opcode.PROPAGATION, ("/t", linux.MS_PRIVATE | linux.MS_REC)),
    ]


def test_read_only_tmpfs_and_dev_stay_writable_until_the_end() -> None:
    mounts = _mounts(
        {"destination": "/t", "type": "tmpfs", "options": ["ro"]},
        {"destination": "/dev", "type": "devtmpfs", "options": ["ro"]},
        {"destination": "/sys", "type": "sysfs", "options": ["ro"]},
    )
    made = plan_mounts.compile_mounts(mounts, {}, {}, frozenset(), [])
    assert [op.arguments[3] for op in made] == [0, 0, linux.MS_RDONLY]
    assert [op.arguments[0] for op in plan_mounts.compile_late_readonly(mounts)] == ["/t", "/dev"]


def test_cgroup_is_version_2() -> None:
    [made] = _compile({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "all"]})
    assert made.arguments[2:5] == ("cgroup2", linux.MS_RDONLY, "")


CGROUPS = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}


@pytest.mark.parametrize(
    ("entries", "binds", "made"),
    [
        ([CGROUPS, _bind("rbind", destination="/sys/fs/cgroup/systemd")], {1}, [("/sys/fs/cgroup", 0)]),
        ([CGROUPS, _bind("ro", destination="/sys/fs/cgroup")], {1}, [("/sys/fs/cgroup", linux.MS_RDONLY)]),
        ([_bind("bind", "ro", destination="/sys/fs/cgroup")], {0}, [("/sys/fs/cgroup", linux.MS_RDONLY)]),
        ([_bind("rbind", destination="/c")], {0}, [("/c", 0)]),
        (
            [_bind("bind", destination="/sys/fs/cgroup/x"), CGROUPS],
            {0},
            [("/sys/fs/cgroup/x", 0), ("/sys/fs/cgroup", 0)],
        ),
    ],
)
def test_the_hosts_cgroups_are_the_containers_own(
    entries: list[dict[str, Any]], binds: set[int], made: list[tuple[str, int]]
) -> None:
    """podman --systemd binds one hierarchy of version 1, docker's users all of them."""
    found = plan_mounts.compile_mounts(_mounts(*entries), {}, {}, frozenset(binds), [])
    assert [(op.arguments[1], op.arguments[3]) for op in found] == made
    assert {op.arguments[2] for op in found} == {"cgroup2"}


def test_what_is_trusted_by_its_path_may_not_be_a_link() -> None:
    for kind, how in (("proc", MOUNT_NO_LINK), ("sysfs", MOUNT_NO_LINK), ("mqueue", 0)):
        [made] = _compile({"destination": f"/{kind}", "type": kind})
        assert made.arguments[-1] == how


def test_unknown_file_systems_go_to_the_kernel() -> None:
    [made] = _compile({"destination": "/x", "type": "binfmt_misc", "options": ["foo=1"]})
    assert made.arguments[:5] == ("binfmt_misc", "/x", "binfmt_misc", 0, "foo=1")


def test_binds() -> None:
    assert _shape(_compile(_bind("rbind", "ro", "rprivate"), VOLUMES)) == [
        (Opcode.BIND, ("/volumes/0", "/d", 1, 0)),
        (Opcode.REMOUNT, ("/d", linux.MS_RDONLY, 0, 0)),
        (Opcode.PROPAGATION, ("/d", linux.MS_PRIVATE | linux.MS_REC)),
    ]
    assert _shape(_compile(_bind("bind", "rw"), {0: Volume("/volumes/0", is_file=True)})) == [
        (Opcode.BIND, ("/volumes/0", "/d", 0, 1))
    ]
    assert _shape(_compile(_bind("bind", "dev"), VOLUMES))[1] == (Opcode.REMOUNT, ("/d", 0, linux.MS_NODEV, 0))
    assert _shape(_compile(_bind("rbind", "rro", "rnosuid"), VOLUMES))[1:] == [
        (Opcode.REMOUNT, ("/d", linux.MS_RDONLY | linux.MS_NOSUID, 0, 1)),
    ]
    assert _compile(_bind("bind", type="none"), VOLUMES)[0].opcode is Opcode.BIND


def test_read_only_is_known_to_the_host() -> None:
    for options, read_only in ((["ro"], True), (["rro"], True), (["rw"], False), (["ro", "rw"], False)):
        assert _mounts(_bind(*options))[0].is_read_only is read_only


def test_shared_memory_moves_into_the_guest() -> None:
    entry = _bind("bind", "nosuid", "rprivate", destination="/dev/shm")
    assert _shape(_compile(entry, shm={0: 4096})) == [
        (Opcode.MOUNT, ("shm", "/dev/shm", "tmpfs", linux.MS_NOSUID, "mode=1777,size=4096", 0o755, 0)),
        (Opcode.PROPAGATION, ("/dev/shm", linux.MS_PRIVATE | linux.MS_REC)),
    ]


def test_sources_count_from_the_bundle() -> None:
    bundle = Bundle(
        "/b",
        {"mounts": [_bind(source="rel"), {"destination": "/p", "type": "tmpfs"}, _bind(source="/abs")]},
        "/b/rootfs",
    )
    assert [(mount.index, mount.source) for mount in plan_mounts.binds(bundle)] == [(0, "/b/rel"), (2, "/abs")]


@pytest.mark.parametrize(
    ("written", "meant"),
    [("a/b", "/a/b"), ("//a", "/a"), ("/a/../b/", "/b"), ("../x", "/x"), ("/proc/meminfo", "/proc/meminfo")],
)
def test_destinations(written: str, meant: str) -> None:
    assert _mounts(_bind(destination=written))[0].destination == meant


def test_warnings() -> None:
    warnings: list[str] = []
    plan_mounts.compile_mounts(_mounts(_bind("bind", "size=1", "rslave", "shared")), VOLUMES, {}, frozenset(), warnings)
    assert [line.partition(": ")[0] for line in warnings] == ["mounts[0].options"] * 3


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (_bind(destination="/"), "mounts[0].destination: mounting into / is prohibited"),
        (_bind(destination="/a/.."), "mounts[0].destination: mounting into / is prohibited"),
        (_bind(destination="/proc"), "inside /proc"),
        (_bind(destination="/proc/sys/../self"), "inside /proc"),
        ({"destination": "/proc/x", "type": "tmpfs"}, "inside /proc"),
        (_bind(source=""), "mounts[0].source: expected the path to bind"),
        (_bind("idmap"), "mounts[0].options: not supported: idmap"),
        (_bind("ridmap"), "mounts[0].options: not supported: ridmap"),
        (_bind("tmpcopyup"), "mounts[0].options: tmpcopyup is for tmpfs only"),
        ({"destination": "/x"}, "mounts[0].type: expected a file system"),
        ({"destination": "/x", "type": "none"}, "mounts[0].type: expected a file system"),
        ({"destination": "/x", "type": "overlay"}, "mounts[0].type: not supported: overlay"),
        ({"destination": "/x", "type": "ext4", "source": "/dev/sda1"}, "mounts[0].source: not supported"),
        (_bind("bind"), "mounts[0].source: not supported: /s is not shared"),
    ],
)
def test_refusals(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _compile(entry)
    assert words in caught.value.message
