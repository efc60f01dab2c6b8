"""The reflink store's words and refusals; what it does to a host is in tests/system/test_storage.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rundctl.commands import storage as command
from rundctl.engine.template import reflink_store
from rundctl.engine.template.reflink_store import Status
from rundctl.errors import HostError, UsageError
from rundctl.host import loop

GIB = 1 << 30


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("20G", 20 * GIB), ("1T", 1 << 40)])
def test_sizes(text: str, size: int) -> None:
    assert command._bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "20", "20g", "-1G", "1.5G", "20GiB", "²G"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="M, G or T"):
        command._bytes(text)


def test_words() -> None:
    mounted = command._text(
        Status("mounted", "/h/templates", "/h/storage.img", 2 * GIB, GIB, GIB, "/dev/loop3", True, 2)
    )
    assert mounted.splitlines() == [
        "state       mounted",
        "templates   /h/templates",
        "image       /h/storage.img",
        "size        2048 MiB, of which the host gave 1024",
        "free        1024 MiB",
        "device      /dev/loop3, direct I/O",
        "users       2 processes",
    ]
    assert "storage init" in command._text(Status("none", "/h/templates", "/h/storage.img"))
    assert "storage mount" in command._text(Status("unmounted", "/h/templates", "/h/storage.img", GIB))


def test_structures_are_the_kernel_s() -> None:
    """linux/loop.h on a 64-bit machine: sizeof struct loop_info64 and struct loop_config."""
    assert loop._INFO.size == 232
    assert loop._CONFIG.size == 304


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A home whose file system cannot share extents, whatever it is."""
    monkeypatch.setattr("rundctl.host.ficlone.works_in", lambda _: False)
    return str(tmp_path / "home")


def _nothing_but_locks(home: str) -> bool:
    found = {name for _, _, names in os.walk(home) for name in names}
    return found <= {".storage.lock", ".lock"}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (511 << 20, "a reflink store of 511 MiB is too small: 512 MiB is the least"),
        (1 << 60, "no space for a reflink store of"),
    ],
)
def test_sizes_that_are_refused(home: str, size: int, words: str) -> None:
    with pytest.raises(HostError, match=words):
        reflink_store.init(home, size, print)
    assert _nothing_but_locks(home)


def test_no_mkfs(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rundctl.host.process.TOOL_DIRECTORIES", (str(tmp_path),))
    with pytest.raises(HostError, match=r"mkfs.xfs: is not in") as caught:
        reflink_store.init(home, reflink_store.SIZE_LEAST, print)
    assert caught.value.hint == "apt-get install xfsprogs"
    assert _nothing_but_locks(home)


def test_no_loop_devices(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_CONTROL", "/nowhere/loop-control")
    with pytest.raises(
        HostError, match=r"no loop device for .*storage.img: /nowhere/loop-control is missing"
    ) as caught:
        reflink_store.init(home, reflink_store.SIZE_LEAST, print)
    assert caught.value.hint == "modprobe loop"
    assert _nothing_but_locks(home)


def test_nothing_to_mount_or_remove(home: str) -> None:
    for verb in (lambda: reflink_store.mount(home, print), lambda: reflink_store.remove(home)):
        with pytest.raises(HostError, match="there is no reflink store") as caught:
            verb()
        assert caught.value.hint == "rundctl storage init"
    reflink_store.mount_if_there(home, print)
    assert reflink_store.status(home).state == "none"
