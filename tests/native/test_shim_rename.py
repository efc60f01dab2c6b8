"""No moment of a rename beside it brings a procfs of the host into a volume: assembly.c and what it calls, between whose system calls directories move."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from shim_rig import SANITIZERS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native"))
import build

ROOM = 60  # mounts, whose lines fill more than one page of the table, so that it is read in several moments


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    target = tmp_path_factory.mktemp("rename") / "probe"
    shim = [build.NATIVE / "shim" / f"{name}.c" for name in ("assembly", "copy", "mountinfo", "place", "procfs")]
    includes = [f"-I{build.NATIVE / name}" for name in ("shim", "common", "include")]
    flags = [*build.LANGUAGE, *build.WARNINGS, *build.SANITIZE, *includes, "-Wl,--wrap=syscall,--wrap=read"]
    subprocess.run(["cc", *flags, "-o", target, Path(__file__).with_name("rename_probe.c"), *shim], check=True)
    return target


@pytest.fixture
def place(tmp_path):
    """A source with a procfs two directories deep, of which kallsyms is hidden and sys is read-only, each mounted long after the other."""
    procfs = tmp_path / "source/y/proc"
    (tmp_path / "state").mkdir()
    procfs.mkdir(parents=True)
    with ExitStack() as undo:

        def mount(*words):
            subprocess.run(["mount", *words], check=True)
            if "-o" not in words:
                undo.callback(subprocess.run, ["umount", words[-1]], check=True)

        mount("-t", "proc", "proc", procfs)
        for number in range(ROOM):
            room = tmp_path / "room" / str(number)
            room.mkdir(parents=True)
            mount("-t", "tmpfs", "room", room)
        mount("--bind", "/dev/null", procfs / "kallsyms")
        mount("--bind", procfs / "sys", procfs / "sys")
        mount("-o", "remount,bind,ro", procfs / "sys")
        yield tmp_path


def test_a_rename_at_any_moment_shows_no_process(probe, place):
    """Nor is what hides and protects parts of a procfs missing on what is in its place: if the directory is away for too long, there is no volume."""
    done = subprocess.run([probe, "6"], cwd=place, env=SANITIZERS, capture_output=True, text=True, check=True)
    undisturbed, calls, *others = done.stdout.splitlines()
    assert undisturbed == "covered"
    assert int(calls) > 20
    assert {line.split()[0] for line in others} == {"covered", "nothing", "failed"}, done.stdout
