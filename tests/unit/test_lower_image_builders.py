"""Builders at once, killed ones, and those in the background of a start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from rundctl.engine import lower_image_store, lower_images
from rundctl.engine.lower_images import Content

from .lower_rig import (
    DEADLINE_S,
    MIB,
    build,
    deepen,
    eventually,
    names,
)

if TYPE_CHECKING:
    pass


BUILDER = """
import sys
from rundctl.engine import lower_image_build
from rundctl.engine.lower_images import Content
home, room, *directories = sys.argv[1:]
content = Content(tuple(directories), room_mib=int(room) if room else None)
image = lower_image_build.build(home, content, lambda step: print(step, flush=True), max_mib=10240)
print(image.path, flush=True)
"""


def builder(home: str, *layers: Path, room_mib: int | str = "") -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", BUILDER, home, str(room_mib), *map(str, layers)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def test_builders_at_once_build_once(home: str, tmp_path: Path) -> None:
    """Four of one content, one of another: two images are written."""
    one, other = tmp_path / "one", tmp_path / "other"
    for layer in (one, other):
        layer.mkdir()
        (layer / "data").write_bytes(os.urandom(20 * MIB))
    running = [builder(home, layer) for layer in (one, one, one, one, other)]
    said = [process_.communicate(timeout=DEADLINE_S)[0].splitlines() for process_ in running]
    assert [process_.returncode for process_ in running] == [0] * 5
    assert len({lines[-1] for lines in said[:4]}) == 1
    assert [sum(line.startswith("writing") for line in lines) for lines in said[:4]].count(1) == 1
    assert sum(line.startswith("writing") for lines in said for line in lines) == 2
    assert names(home) == {Content((str(one),)).key, Content((str(other),)).key}


def test_another_content_does_not_wait(home: str, tmp_path: Path, directory: Path) -> None:
    """While one builder is stopped amid its work."""
    slow = tmp_path / "slow"
    slow.mkdir()
    with builder(home, slow) as stopped:
        assert stopped.stdout is not None
        assert stopped.stdout.readline().startswith("reading")
        stopped.send_signal(signal.SIGSTOP)
        try:
            done = builder(home, directory)
            assert done.communicate(timeout=DEADLINE_S)[0]
            assert done.returncode == 0
        finally:
            stopped.send_signal(signal.SIGCONT)
        stopped.communicate(timeout=DEADLINE_S)
    assert stopped.returncode == 0


def test_a_killed_builder_leaves_what_the_next_sweeps(home: str, tmp_path: Path, directory: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    with (big / "zeroes").open("wb") as file:
        file.truncate(2000 * MIB)
    content = Content((str(big),))
    image = Path(lower_images.workspace(home, content.key)) / "image"
    with builder(home, big) as killed:
        eventually(lambda: image.exists() and image.stat().st_size > MIB, "mkfs.erofs writes")
        mkfs = children(killed.pid)
        assert len(mkfs) == 1
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    eventually(lambda: not Path(f"/proc/{mkfs[0]}").exists(), "mkfs.erofs ends with its builder")
    assert home not in Path("/proc/self/mountinfo").read_text()
    assert names(home) == {f".{content.key}.tmp"}
    assert lower_images.find(home, content) is None
    build(home, Content.of_directory(str(directory), "1"))  # any builder sweeps
    assert names(home) == {Content.of_directory(str(directory), "1").key}
    os.truncate(big / "zeroes", MIB)  # unseen by the key, for the sake of speed
    build(home, content)
    assert lower_images.find(home, content) is not None


def test_a_running_builder_is_not_swept(home: str, tmp_path: Path, directory: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "data").write_bytes(os.urandom(MIB))
    with builder(home, slow) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("reading")
        running.send_signal(signal.SIGSTOP)
        build(home, Content.of_directory(str(directory), "1"))
        assert lower_image_store.prune(home) == []
        assert f".{Content((str(slow),)).key}.tmp" in names(home)
        running.send_signal(signal.SIGCONT)
        running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 0


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


STARTER = """
import os, sys
from rundctl.engine import lower_images
from rundctl.engine.lower_images import Content
from rundctl.engine.settings import Settings
settings = Settings()
settings.home = sys.argv[1]
os.dup2(1, 17, inheritable=True)
print(lower_images.start_background(settings, Content(tuple(sys.argv[2:]))))
"""


def start(home: str, *layers: Path) -> subprocess.CompletedProcess[str]:
    """Returns once nobody holds the pipes any more, as podman does."""
    argv = [sys.executable, "-c", STARTER, home, *map(str, layers)]
    return subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S, check=True
    )


def log_of(home: str) -> str:
    path = Path(lower_images.root(home)) / "build.log"
    return path.read_text() if path.exists() else ""


def test_in_the_background_nobody_waits(home: str, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    with (layer / "zeroes").open("wb") as file:
        file.truncate(400 * MIB)
    content = Content((str(layer),))
    assert start(home, layer).stdout == f"image {content.key} is being built\n"
    assert lower_images.find(home, content) is None
    assert start(home, layer).stdout == f"image {content.key} is being built already\n"
    eventually(lambda: lower_images.find(home, content), "the image is there")
    eventually(lambda: "built in" in log_of(home), "the log says so")
    assert log_of(home).count("\n") == 1
    assert names(home) == {content.key, "build.log"}


def test_the_background_is_its_own_and_gives_way(home: str, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    with (layer / "zeroes").open("wb") as file:
        file.truncate(400 * MIB)
    content = Content((str(layer),))
    start(home, layer)
    image = Path(lower_images.workspace(home, content.key)) / "image"
    eventually(image.exists, "mkfs.erofs writes")
    (background,) = (
        psutil.Process(found.pid)
        for found in psutil.process_iter(["cmdline"])
        if "-c" in (found.info["cmdline"] or ()) and home in found.info["cmdline"][-1]
    )
    assert os.getsid(background.pid) not in (os.getsid(0), 0)
    assert background.nice() == 19
    assert background.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
    opened = {os.readlink(f"/proc/{background.pid}/fd/{fd}") for fd in (0, 1, 2)}
    assert opened == {"/dev/null", f"{lower_images.root(home)}/build.log"}
    assert not any(
        "pipe:" in os.readlink(f"/proc/{background.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{background.pid}/fd")
    )
    eventually(lambda: lower_images.find(home, content), "the image is there")


def test_what_failed_is_not_tried_again_soon(home: str, directory: Path) -> None:
    deepen(directory)
    content = Content((str(directory),))
    start(home, directory)
    eventually(lambda: "4095 bytes" in log_of(home), "the log says why")
    said = start(home, directory).stdout
    assert said.startswith("no image is built: the last attempt failed: ")
    assert "an image takes paths of at most 4095 bytes" in said
    failure = lower_images.failure_path(home, content.key)
    for seconds in (-lower_images.RETRY_S - 1, lower_images.RETRY_S + 10):  # late; or the clock was set back
        eventually(lambda: start(home, directory).stdout.startswith("no image is built: the last"), "it failed again")
        then = time.time() + seconds
        os.utime(failure, (then, then))
        assert start(home, directory).stdout == f"image {content.key} is being built\n"


def test_a_start_survives_a_home_that_cannot_be_written(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert start(f"{tmp_path}/file/home", directory).stdout.startswith("no image is built: ")
