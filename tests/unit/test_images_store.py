"""Which images stay and which go; and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rundctl.engine.rootfs.images import build as builds
from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images import store
from rundctl.engine.rootfs.images.content import Content
from rundctl.host import manifest as manifests

from .images_rig import (
    MIB,
    build,
    corrupt,
    names,
    silent,
)

if TYPE_CHECKING:
    pass


def aged(home: str, tmp_path: Path, count: int) -> list[Content]:
    """Images of 2 MiB, the first of them used longest ago."""
    contents = []
    for number in range(count):
        source = tmp_path / f"source-{number}"
        source.mkdir()
        (source / "data").write_bytes(os.urandom(2 * MIB))
        contents.append(Content.of_directory(str(source), "1"))
        image = build(home, contents[-1])
        then = time.time() - 1000 + number
        os.utime(f"{os.path.dirname(image.path)}/manifest.json", (then, then))
    return contents


def test_the_least_recently_used_go(home: str, tmp_path: Path) -> None:
    a, b, c = aged(home, tmp_path, 3)
    assert images.find(home, a) is not None
    assert store.prune(home, max_mib=4) == [b.key]
    assert names(home) == {a.key, c.key}
    assert store.prune(home) == []
    assert store.prune(home, everything=True) == sorted([a.key, c.key])
    assert names(home) == set()


def test_a_build_makes_room_for_itself(home: str, tmp_path: Path) -> None:
    a, b = aged(home, tmp_path, 2)
    source = tmp_path / "new"
    source.mkdir()
    (source / "data").write_bytes(os.urandom(MIB))
    new = Content.of_directory(str(source), "1")
    builds.build(home, new, silent, max_mib=4)
    assert names(home) == {b.key, new.key}
    assert images.find(home, a) is None


def test_what_a_vm_has_open_stays(home: str, tmp_path: Path) -> None:
    a, b = aged(home, tmp_path, 2)
    with ExitStack() as undo:
        image = images.find_open(undo, home, a)
        assert image is not None
        holder = subprocess.Popen(["sleep", "60"], pass_fds=[image.fd])  # as QEMU inherits it
    try:
        os.utime(f"{os.path.dirname(image.path)}/manifest.json", (1, 1))
        assert {entry.key: entry.in_use for entry in store.entries(home)} == {a.key: True, b.key: False}
        assert store.prune(home, max_mib=0) == [b.key]
    finally:
        holder.kill()
        holder.wait()
    assert store.prune(home, max_mib=0) == [a.key]


def test_an_image_of_what_has_changed_goes(home: str, directory: Path) -> None:
    content = Content.of_directory(str(directory), "1")
    build(home, content)
    (directory / "new").touch()
    assert [entry.state for entry in store.entries(home)] == ["stale"]
    assert store.prune(home) == [content.key]


def test_verify_finds_what_stat_cannot(home: str, tmp_path: Path) -> None:
    good, bad = aged(home, tmp_path, 2)
    image = images.find(home, bad)
    assert image is not None
    corrupt(Path(image.path))
    manifest = Path(image.path).parent / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"]["image"]["identity"] = manifests.file_identity(image.path)  # the disk's doing, not a program's
    manifest.write_text(json.dumps(facts))
    assert images.find(home, bad) is not None
    assert store.verify(home, silent) == [bad.key]
    assert names(home) == {good.key}
    assert store.verify(home, silent) == []


def command(home: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RUNDCTL_HOME": home}
    return subprocess.run(
        [sys.executable, "-m", "rundctl", "image", *words], env=environment, capture_output=True, text=True, check=False
    )


def test_the_command(home: str, directory: Path) -> None:
    assert command(home, "list").stdout == "KEY         FOR         SIZE        STATE       CONTENT\n"
    key = Content.of_directory(str(directory), "1").key
    assert command(home, "build", "--immutable", "1", str(directory)).stdout == f"{key}\n"
    assert command(home, "list").stdout.splitlines()[1].split() == [key, "erofs", "0", "MiB", "ok", str(directory)]
    (told,) = json.loads(command(home, "list", "--json").stdout)
    assert (told["key"], told["state"], told["in_use"], told["content"]["version"]) == (key, "ok", False, "1")
    disk = Content.of_directory(str(directory), "1").with_room(2048).key
    assert command(home, "build", "--immutable", "1", "--lower", "blk", str(directory)).stdout == f"{disk}\n"
    told = {entry["key"]: entry["transport"] for entry in json.loads(command(home, "list", "--json").stdout)}
    assert told == {key: "erofs", disk: "blk"}
    assert (command(home, "verify").returncode, command(home, "prune").stdout) == (0, "")
    corrupt(Path(home) / "images" / key / "image")
    done = command(home, "verify")
    assert (done.returncode, done.stdout) == (1, f"{key}\n")
    assert command(home, "prune", "--all").stdout == f"{disk}\n"


def test_the_command_says_why_not(home: str, directory: Path) -> None:
    done = command(home, "build", str(directory))
    assert done.returncode == 1
    reason = f"rundctl: build an image of {directory}: {directory} is not a mount point"
    hint = "--immutable declares that a directory does not change, as io.rundctl.rootfs.immutable does"
    assert done.stderr == f"{reason} ({hint})\n"
