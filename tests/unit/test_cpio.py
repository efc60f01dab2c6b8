"""The initramfs writer: read back by an independent reader, and the same bytes every time."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.guest.cpio import Archive
from rundctl.host import process

_FIELDS = 13


def _read(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name → (mode, contents) of a newc archive."""
    entries: dict[str, tuple[int, bytes]] = {}
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * index : offset + 14 + 8 * index], 16) for index in range(_FIELDS)]
        name_end = offset + 110 + fields[11]
        name = archive[offset + 110 : name_end - 1].decode()
        start = (name_end + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        entries[name] = (fields[1], archive[start : start + fields[6]])
        offset = (start + fields[6] + 3) & ~3


@given(st.dictionaries(st.from_regex(r"[a-z]{1,20}", fullmatch=True), st.binary(max_size=200), max_size=6))
def test_what_goes_in_comes_out(contents: dict[str, bytes]) -> None:
    archive = Archive()
    for name, data in contents.items():
        archive.file(name, data, 0o755)
    data = archive.close()
    assert _read(data) == {name: (0o100755, body) for name, body in contents.items()}
    assert len(data) % 4 == 0


def _sample() -> bytes:
    archive = Archive()
    archive.directory("/dev")
    archive.character_device("/dev/console", 5, 1)
    archive.file("init", b"#!/bin/sh\n", 0o755)
    return archive.close()


def test_same_entries_same_bytes() -> None:
    assert _sample() == _sample()


def test_another_program_reads_it() -> None:
    tool = process.find_tool("busybox")
    assert tool is not None, "busybox is needed by the tests"
    listing = subprocess.run([tool, "cpio", "-tv"], input=_sample(), capture_output=True, check=True).stdout.decode()
    assert "crw-------" in listing
    assert "dev/console" in listing


@pytest.mark.parametrize("path", ["", "/", "a\0b"])
def test_bad_path(path: str) -> None:
    with pytest.raises(ValueError, match="bad archive path"):
        Archive().file(path, b"")
