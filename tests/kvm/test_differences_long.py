"""More of what differs under KVM (test_differences.py): large guests, file systems below a template, other processors. `make test-kvm` runs it."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kvm_bed
import pytest

from rundctl.engine import settings

from ..system.conftest import RUNDCTL, eventually
from .machines import PROBE, Look, digests, is_quiet, make_rootfs, messages_of_this_kernel, talking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..system.conftest import Cli

LATE_NS = 3_000_000_000  # of a sleep of 20 ms, where eight processors share the bed's one
DATE_S = 0.5
CLONE_MIB = 16
DISK_MIB = 1024
EPYC = "EPYC"
# The first again at last: its template is still its own, after the machine was another.
PROCESSORS = (EPYC, "EPYC,ucode-rev=0x1000099", "Opteron_G3", EPYC)
_MACHINES = """
set -e
grep -m1 '^model name' /proc/cpuinfo; grep -m1 '^microcode' /proc/cpuinfo
{rundctl} template build
{rundctl} run --bundle {bundle} c
cd "$RUNDCTL_HOME/templates" && sha256sum */memory
"""


@pytest.mark.parametrize("processors", [2, 4, 8])
def test_processors_and_memory(
    cli: Cli, probe: Callable[..., Path], configure: Callable[..., None], processors: int
) -> None:
    """A GiB for each. No clock goes back from one processor to the next, each has its timer, and memory is beyond the hole for devices below 4 GiB.

    The largest has twice as much as the bed: it takes what it touches.
    """
    mib = processors * 1024
    configure(vcpus=processors, memory_mib=mib)
    told = cli("run", "--bundle", str(probe(PROBE, "hops")), "c").stdout.decode().split()
    found = {name: int(number) for name, number in zip(told[::2], told[1::2], strict=True)}
    assert found["processors"] == processors
    assert found["back"] == 0
    assert found["slept"] < LATE_NS
    told = cli("run", "--bundle", str(probe(PROBE, "high", "64")), "c").stdout.decode().split()
    assert told[:3] == ["others", "0", "high"]
    assert (int(told[3]) > 0) == (mib > 3072), told
    is_quiet(messages_of_this_kernel())


def test_a_pause_of_four_processors(cli: Cli, probe: Callable[..., Path], configure: Callable[..., None]) -> None:
    """The date is right. Other clocks may have been ahead for a moment (docs/kvm.md)."""
    configure(vcpus=4, memory_mib=4096)
    with talking(cli, probe, "c") as (talk,):
        cli("pause", "c")
        cli("resume", "c")
        eventually(lambda: Look(talk).wrong_s() < DATE_S, "it knows the date")


@pytest.fixture(params=["ext4", "tmpfs"])
def other_home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """RUNDCTL_HOME on another file system than the bed's XFS."""
    where, image = tmp_path / "mounted", tmp_path / "image"
    where.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", where], check=True)
    else:
        with image.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, where], check=True)
    home = where / "home"
    home.mkdir()
    for name in ("kernels", "qemu"):
        shutil.copytree(f"{settings.load().home}/{name}", home / name, symlinks=True)
    monkeypatch.setenv("RUNDCTL_HOME", str(home))
    yield home
    subprocess.run(["umount", where], check=True)


def test_clones_share_memory_in_other_file_systems(cli: Cli, probe: Callable[..., Path], other_home: Path) -> None:
    """As in test_differences.py on XFS: a private mapping is private, whatever the file is in."""
    subprocess.run([RUNDCTL, "template", "build"], check=True)
    before = digests(other_home)
    with talking(cli, probe, "one", "two", argument=f"memory {CLONE_MIB} {{}}") as talks:
        assert [talk.read() for talk in talks] == ["full", "full"]
        assert [talk.ask() for talk in talks] == [{"others": 0}] * 2
    assert digests(other_home) == before


@pytest.mark.outside
def test_a_home_that_other_processors_use(tmp_path: Path, bundle: Callable[..., Path]) -> None:
    """One RUNDCTL_HOME, and machines with another model, another microcode: each makes a template of its own, and leaves the others as they are."""
    rootfs = make_rootfs(tmp_path)

    def change(config: dict[str, Any]) -> None:
        config["root"]["path"] = str(rootfs)

    where = bundle(PROBE, "show", "/proc/cpuinfo", change=change)
    script = _MACHINES.format(rundctl=RUNDCTL, bundle=where)
    disk = tmp_path / "disk"
    kvm_bed.make_disk(disk, 4096)
    told = []
    for number, processor in enumerate(PROCESSORS):
        results = tmp_path / f"results{number}"
        results.mkdir()
        code, printed = kvm_bed.run(
            ["sh", "-c", script], results, machine=kvm_bed.Machine(cpu=processor, disk=str(disk))
        )
        assert code == 0, printed
        told.append(Said(printed))
    assert [len(said.memories) for said in told] == [1, 2, 3, 3]
    assert len({said.key for said in told[:3]}) == 3
    assert told[3].key == told[0].key
    for earlier, later in pairwise(told):
        assert earlier.memories.items() <= later.memories.items()
    for said in told:
        assert said.guest == said.host, "the guest's processor is its host's"


class Said:
    """What one machine printed: the processor, as it and its guest have it, its template's key, and all templates' memory."""

    def __init__(self, printed: str) -> None:
        lines = printed.splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith(("model name", "microcode"))]
        self.host, self.guest = sorted(models[:2]), sorted(models[2:4])
        self.memories = {name: digest for digest, name in (line.split() for line in lines if line.endswith("/memory"))}
        (self.key,) = [line for line in lines if len(line) == 32 and f"{line}/memory" in self.memories]
