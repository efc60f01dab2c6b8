"""What differs under KVM, looked at on purpose: clocks, the guest's processor, memory and interrupts. More of it is in test_differences_long.py."""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kvm_bed
import psutil
import pytest

from rundctl.engine import settings
from rundctl.host import machine
from rundctl.oci import options

from ..system.conftest import eventually
from .conftest import qemu_of
from .machines import PROBE, Look, digests, is_quiet, messages_of_this_kernel, privileged, talking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..system.conftest import Cli

DATE_S = 0.5  # a date may be so wrong: idle it was 3 ms, but on a busy host a guest is told late
RATE = 0.02  # as for a template (engine/template/clock.py)
HELD_S = 4.0
STEP_S = 1000.0
LATE_S = 2.0  # a sleep of 10 ms may take so long, on a bed whose one processor all share
CLONE_MIB = 16
SVM, VMX, RDRAND = 1 << 2, 1 << 5, 1 << 30  # of ecx of CPUID leaves 0x80000001, 1 and 1
SLOTS = 12  # of memory, at most; KVM has 32764, but looks through them at each access that is no page's
READ_ONLY = 2  # KVM_MEM_READONLY
_TRACING = Path("/sys/kernel/tracing")
_SLOT = re.compile(r"slots: .* slot=(\d+) flags=(\d+) gpa=(0x[0-9a-f]+) size=(0x[0-9a-f]+)")


@pytest.fixture
def show(cli: Cli, probe: Callable[..., Path]) -> Callable[..., dict[str, str]]:
    """Files of a guest, by their paths."""

    def read(*paths: str) -> dict[str, str]:
        told = cli("run", "--bundle", str(probe(PROBE, "show", *paths)), "show").stdout.decode()
        parts = re.split(r"^== (.*)\n", told, flags=re.MULTILINE)
        return dict(zip(parts[1::2], parts[2::2], strict=True))

    return read


def _is_right(look: Look, since: Look | None = None) -> None:
    """The date, and how far all clocks went since another look."""
    assert look.wrong_s() < DATE_S
    assert look.guest["back"] == 0
    if since is None:
        return
    for clock in ("monotonic", "boottime", "raw"):
        least, most = look.host_went_s(since, "monotonic")
        assert least * (1 - RATE) < look.went_s(since, clock) < most * (1 + RATE), clock


def test_a_clone_s_clocks(cli: Cli, probe: Callable[..., Path]) -> None:
    """Those of a template that was saved a while ago. Its date is the host's. What counts from its boot goes on from where it was saved, at the host's pace."""
    with talking(cli, probe, "one", "two") as (one, two):
        first = [Look(one), Look(two)]
        assert not [each for each in psutil.process_iter(["name"]) if each.info["name"].startswith("kvm-pit")], (
            "a timer that nobody listens to"
        )
        eventually(lambda: Look(two).host_went_s(first[1], "monotonic")[0] > 2, "two seconds go by")
        for talk, since in zip((one, two), first, strict=True):
            look = Look(talk)
            _is_right(look, since)
            assert 0 < look.guest["monotonic"] < look.after["monotonic"]
            assert look.guest["slept"] < LATE_S * 1e9


def test_a_pause_stops_all_clocks_but_the_date(cli: Cli, probe: Callable[..., Path]) -> None:
    """By runc they go on. What waits for a time of its own clock is not late when it goes on (docs/adr/0003-process-model.md)."""
    with talking(cli, probe, "paused") as (talk,):
        before = Look(talk)
        cli("pause", "paused")
        time.sleep(HELD_S)  # what is measured is that nothing happens
        cli("resume", "paused")
        after = Look(talk)
        assert after.wrong_s() < DATE_S
        assert after.guest["back"] == 0
        assert after.guest["slept"] < LATE_S * 1e9
        for clock in ("monotonic", "boottime", "raw"):
            assert after.went_s(before, clock) < after.host_went_s(before, "monotonic")[1] - HELD_S
        again = Look(talk)
        _is_right(again, after)


def test_a_host_that_stood_still(cli: Cli, probe: Callable[..., Path]) -> None:
    """Its processor was taken away, and its clocks went on: so do the guest's, together with it. Nothing goes back, and no kernel sees a fault in that."""
    with talking(cli, probe, "c") as (talk,):
        before = Look(talk)
        began = time.monotonic()
        kvm_bed.hold(HELD_S)
        assert time.monotonic() - began > HELD_S
        after = Look(talk)
        _is_right(after, before)
        assert after.guest["slept"] < (HELD_S + LATE_S) * 1e9
        again = Look(talk)
        _is_right(again, after)
        assert again.guest["slept"] < LATE_S * 1e9
    is_quiet(messages_of_this_kernel())


def test_a_host_whose_date_is_set(cli: Cli, probe: Callable[..., Path]) -> None:
    """The guest's is, too, as that of a container of runc. So it is after a host has slept. Who is paused meanwhile is told when it goes on."""
    with talking(cli, probe, "runs", "paused") as (runs, paused):
        cli("pause", "paused")
        before = Look(runs)
        for seconds in (STEP_S, -STEP_S):
            time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
            eventually(lambda: Look(runs).wrong_s() < DATE_S, "it knows the date")
        for clock in ("monotonic", "boottime"):
            assert Look(runs).went_s(before, clock) < STEP_S
        time.clock_settime(time.CLOCK_REALTIME, time.time() + STEP_S)
        cli("resume", "paused")
        for talk in (runs, paused):
            eventually(lambda talk=talk: Look(talk).wrong_s() < DATE_S, "it knows the date")
        time.clock_settime(time.CLOCK_REALTIME, time.time() - STEP_S)


def test_the_guest_s_processor(cli: Cli, probe: Callable[..., Path]) -> None:
    """It is the host's, without what nests in it, and without counters of its events."""
    script = ("cpuid", "0", "1", "a", "80000001", "8000000a")
    told = cli("run", "--bundle", str(probe(PROBE, *script)), "c").stdout.decode()
    leaves = {
        int(leaf, 16): [int(number) for number in numbers] for leaf, *numbers in map(str.split, told.splitlines())
    }
    name, flags = machine.processor()
    vendor = b"".join(leaves[0][index].to_bytes(4, "little") for index in (1, 3, 2)).decode()
    assert f"vendor_id\t: {vendor}" in Path("/proc/cpuinfo").read_text(), name
    assert "svm" in flags, "the bed's own processor has it"
    assert not leaves[0x80000001][2] & SVM
    assert not leaves[1][2] & VMX
    assert bool(leaves[1][2] & RDRAND) == ("rdrand" in flags)
    assert leaves[0xA] == [0] * 4
    assert leaves[0x8000000A] == [0] * 4


def test_the_guest_s_clock_interrupts_and_memory_types(show: Callable[..., dict[str, str]]) -> None:
    """KVM's clock; an interrupt of its own for each queue, none of an interval timer; and no memory that is not cached."""
    source = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    told = show(source, "/proc/interrupts", "/proc/mtrr", "/proc/iomem")
    assert told[source].strip() == "kvm-clock"
    interrupts = [line.split() for line in told["/proc/interrupts"].splitlines()[1:]]
    assert not [words for words in interrupts if words[0] == "0:"], "the PIT's"
    assert [words for words in interrupts if words[0] == "LOC:" and int(words[1]) > 0]
    queues = [words for words in interrupts if words[-1].startswith("virtio")]
    assert queues
    assert all("PCI-MSI" in words or "PCI-MSIX" in " ".join(words) for words in queues), queues
    memory = _ranges(r"^ *([0-9a-f]+)-([0-9a-f]+) : System RAM$", told["/proc/iomem"], inclusive=1)
    assert sum(end - start for start, end in memory) > 64 << 20
    uncached = [
        (int(base, 16), int(base, 16) + (int(mib) << 20))
        for base, mib, kind in re.findall(r"base=0x([0-9a-f]+) .* size= *(\d+)MB, count=\d+: (.*)", told["/proc/mtrr"])
        if kind != "write-back"
    ]
    assert uncached, "the devices' addresses below 4 GiB"
    assert not [(ram, range_) for ram in memory for range_ in uncached if ram[0] < range_[1] and range_[0] < ram[1]]


def _ranges(pattern: str, text: str, inclusive: int) -> list[tuple[int, int]]:
    return [(int(start, 16), int(end, 16) + inclusive) for start, end in re.findall(pattern, text, flags=re.MULTILINE)]


def test_clones_share_memory_that_none_of_them_changes(cli: Cli, probe: Callable[..., Path]) -> None:
    """Each has what it wrote, and nothing of another's. What is written through a private mapping stays in it, with KVM's page tables between."""
    before = digests(Path(settings.load().home))
    with talking(cli, probe, "one", "two", argument=f"memory {CLONE_MIB} {{}}") as talks:
        assert [talk.read() for talk in talks] == ["full", "full"]
        for talk in talks:
            assert talk.ask() == {"others": 0}
            maps = Path(f"/proc/{qemu_of(cli, talk.name).pid}/maps").read_text()
            (mapping,) = [line for line in maps.splitlines() if line.endswith("/memory")]
            assert mapping.split()[1] == "rw-p"
    assert digests(Path(settings.load().home)) == before


@pytest.fixture
def slots() -> Iterator[Callable[[], list[tuple[int, int, int, int]]]]:
    """What QEMU tells KVM of a guest's memory: (slot, flags, address, size) of each call, in order."""
    if not (_TRACING / "kprobe_events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", _TRACING], check=True)
    event = "kvm:__kvm_set_memory_region slot=+0(%si):u32 flags=+4(%si):u32 gpa=+8(%si):x64 size=+16(%si):x64"
    (_TRACING / "trace").write_text("")
    (_TRACING / "kprobe_events").write_text(f"p:slots {event}\n")
    enable = _TRACING / "events/kprobes/slots/enable"
    enable.write_text("1")

    def read() -> list[tuple[int, int, int, int]]:
        calls = _SLOT.findall((_TRACING / "trace").read_text())
        return [(int(slot), int(flags), int(address, 16), int(size, 16)) for slot, flags, address, size in calls]

    yield read
    enable.write_text("0")
    (_TRACING / "kprobe_events").write_text("")


def test_slots_of_memory_and_an_image(
    cli: Cli, bundle: Callable[..., Path], rootfs: Path, slots: Callable[[], list[tuple[int, int, int, int]]]
) -> None:
    """Few slots, which do not overlap. An image is in one for reading only, and the guest's kernel refuses to write to it, whoever asks."""

    def change(config: dict[str, Any]) -> None:
        privileged(config)
        config["annotations"] = {options.LOWER: "erofs", options.IMMUTABLE: str(rootfs)}

    script = """
        mknod /dev/image b $(tr : ' ' </sys/block/pmem0/dev)
        look() { dd if=/dev/image iflag=direct bs=4096 count=4 2>/dev/null | md5sum; }
        look
        blockdev --setrw /dev/image
        for how in conv=fsync oflag=direct; do dd if=/dev/zero of=/dev/image $how bs=4096 count=4 2>/dev/null; echo $?; done
        look
        ls / | md5sum
    """
    told = cli("run", "--bundle", str(bundle("/bin/sh", "-c", script, change=change)), "c").stdout.decode().splitlines()
    first, *codes, second, listed = told
    assert codes == ["1", "1"]
    assert first == second
    assert (
        listed.split()[0] == hashlib.md5("".join(f"{name}\n" for name in sorted(_names(rootfs))).encode()).hexdigest()
    )
    last: dict[int, tuple[int, int, int]] = {}
    for slot, flags, address, size in slots():
        last[slot] = (flags, address, size)
    final = {slot: told for slot, told in last.items() if told[2] and slot < 1 << 16}  # from there on: of SMM
    assert 2 < len(final) <= SLOTS, final
    ranges = sorted((address, address + size) for _, address, size in final.values())
    assert all(one[1] <= other[0] for one, other in pairwise(ranges)), ranges
    above = [flags for flags, address, _ in final.values() if address >= 1 << 32]
    assert above == [READ_ONLY], "the image's"


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_huge_pages(cli: Cli, probe: Callable[..., Path]) -> None:
    """In the guest: of two MiB, over memory of the host that is copied page by page."""
    told = cli("run", "--bundle", str(probe(PROBE, "huge", "8")), "c").stdout.decode()
    assert told == "others 0 high 0\n"
