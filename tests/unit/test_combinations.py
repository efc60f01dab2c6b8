"""The table of what goes with what: complete, the one that is documented, and the one that `choose` goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from rundctl.engine.rootfs import combinations, transport
from rundctl.engine.rootfs.combinations import KERNELS, TABLE
from rundctl.engine.rootfs.images.content import Image
from rundctl.oci import options
from rundctl.types import Accelerator
from rundctl.vmm.shape import MachineShape
from rundctl.vmm.virtiofsd import Daemon

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/rootfs.md"
GIB = 1 << 30
DAEMON = Daemon("/d", "virtiofsd 1.13.2", is_rust=True)


def test_documented_is_what_is_there() -> None:
    text = DOCUMENT.read_text()
    assert combinations.document(text) == text, "run: python -m rundctl.engine.rootfs.combinations docs/rootfs.md"


def test_a_document_without_a_place_for_it() -> None:
    with pytest.raises(ValueError, match="combinations"):
        combinations.document("nothing")


def test_each_transport_that_can_be_asked_for_has_its_rows_and_no_other() -> None:
    assert {row.transport for row in TABLE} == set(options.TRANSPORTS) - {"auto"}
    assert len({_of(row) for row in TABLE}) == len(TABLE)


def test_each_way_a_rootfs_can_come_is_a_row() -> None:
    image = Image("key", "/image", GIB)
    made = [
        transport.virtiofs("/", DAEMON),
        transport.persistent("/", DAEMON),
        transport.nine_p("/"),
        transport.persistent("/"),
        transport.blk("/", 64),
        transport.blk("/", 64, image=image),
        *(transport.erofs(image, memory_mib, live) for memory_mib in (64, 8192) for live in ("", "/upper")),
    ]
    for each in made:
        assert not (each.persistent and combinations.of(each.transport, each.device, live=bool(each.live)).read_only)
    assert {(each.transport, each.device, bool(each.live)) for each in made} == {_of(row) for row in TABLE}


def _of(row: combinations.Combination) -> tuple[str, str, bool]:
    return row.transport, row.device, bool(row.live)


def test_words_of_the_table_are_known() -> None:
    for row in TABLE:
        assert row.memory in ("cow", "copy")
        assert row.volumes in ("9p", "virtiofs")
        assert row.live in ("", row.volumes), "an upper directory is one more volume"
        assert row.live in ("", *row.needs)
        assert row.needs <= KERNELS["lean"], "the recommended kernel can do all"
    assert combinations.writable() == ["9p", "virtiofs"]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.transport}-{row.device}-{row.live}")
def test_memory_is_what_a_machine_with_that_device_has(row: combinations.Combination) -> None:
    shape = MachineShape(
        qemu="", qemu_version=(7, 2), machine="", accelerator=Accelerator.TCG, memory_mib=128, vcpus=1, upper_mib=64,
        digests={}, host="", root_device=row.device,
    )  # fmt: skip
    assert shape.memory_mode.value == row.memory


def test_what_needs_9p_needs_root() -> None:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in combinations.table().splitlines()[2:]]
    assert len(cells) == 2 * len(TABLE)
    for rootfs, volumes, *_, unprivileged, _, _ in cells:
        assert (unprivileged == "no") == ("9p" in f"{rootfs} {volumes}")


def test_no_such_transport() -> None:
    with pytest.raises(KeyError):
        combinations.of("nfs")
