"""Builders at once, killed ones, and those in the background of a start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images import store
from rundctl.engine.rootfs.images.content import Content

from .images_rig import (
    DEADLINE_S,
    MIB,
    build,
    deepen,
    eventually,
    names,
)

BUILDER = """
import os, signal, sys
from rundctl.engine.rootfs.images import build as builds
from rundctl.engine.rootfs.images.content import Content
home, room, stop_at, *directories = sys.argv[1:]
def progress(step):
    print(step, flush=True)
    if stop_at and step.startswith(stop_at):
        os.kill(os.getpid(), signal.SIGSTOP)
image = builds.build(home, Content(tuple(directories), room_mib=int(room) if room else None), progress, max_mib=10240)
print(image.path, flush=True)
"""


def builder(home: str, *layers: Path, room_mib: int | str = "", stop_at: str = "") -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", BUILDER, home, str(room_mib), stop_at, *map(str, layers)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


@contextmanager
def stopped_builder(home: str, *layers: Path) -> Iterator[None]:
    """One that has stopped itself amid its work, where it holds the lock of its workspace and no other; afterwards it goes on, and succeeds."""
    with builder(home, *layers, stop_at="reading") as stopped:
        seen = os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert seen is not None
        assert seen.si_code == os.CLD_STOPPED, stopped.communicate()
        try:
            yield
        finally:
            stopped.send_signal(signal.SIGCONT)
        stopped.communicate(timeout=DEADLINE_S)
    assert stopped.returncode == 0


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
    with stopped_builder(home, slow):
        done = builder(home, directory)
        assert done.communicate(timeout=DEADLINE_S)[0]
        assert done.returncode == 0


def test_a_killed_builder_leaves_what_the_next_sweeps(home: str, tmp_path: Path, directory: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    with (big / "zeroes").open("wb") as file:
        file.truncate(2000 * MIB)
    content = Content((str(big),))
    image = Path(images.workspace(home, content.key)) / "image"
    with builder(home, big) as killed:
        eventually(lambda: image.exists() and image.stat().st_size > MIB, "mkfs.erofs writes")
        mkfs = children(killed.pid)
        assert len(mkfs) == 1
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    eventually(lambda: not Path(f"/proc/{mkfs[0]}").exists(), "mkfs.erofs ends with its builder")
    assert home not in Path("/proc/self/mountinfo").read_text()
    assert names(home) == {f".{content.key}.tmp"}
    assert images.find(home, content) is None
    build(home, Content.of_directory(str(directory), "1"))  # any builder sweeps
    assert names(home) == {Content.of_directory(str(directory), "1").key}
    os.truncate(big / "zeroes", MIB)  # unseen by the key, for the sake of speed
    build(home, content)
    assert images.find(home, content) is not None


def test_a_running_builder_is_not_swept(home: str, tmp_path: Path, directory: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "data").write_bytes(os.urandom(MIB))
    with stopped_builder(home, slow):
        build(home, Content.of_directory(str(directory), "1"))
        assert store.prune(home) == []
        assert f".{Content((str(slow),)).key}.tmp" in names(home)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


STARTER = """
import os, sys
from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images.content import Content
from rundctl.engine.settings import Settings
settings = Settings()
settings.home = sys.argv[1]
os.dup2(1, 17, inheritable=True)
print(images.start_background(settings, Content(tuple(sys.argv[2:]))))
"""


def start(home: str, *layers: Path) -> subprocess.CompletedProcess[str]:
    """Returns once nobody holds the pipes any more, as podman does."""
    argv = [sys.executable, "-c", STARTER, home, *map(str, layers)]
    return subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S, check=True
    )


def log_of(home: str) -> str:
    path = Path(images.root(home)) / "build.log"
    return path.read_text() if path.exists() else ""


def test_in_the_background_nobody_waits(home: str, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    with (layer / "zeroes").open("wb") as file:
        file.truncate(400 * MIB)
    content = Content((str(layer),))
    assert start(home, layer).stdout == f"image {content.key} is being built\n"
    assert images.find(home, content) is None
    assert start(home, layer).stdout == f"image {content.key} is being built already\n"
    eventually(lambda: images.find(home, content), "the image is there")
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
    image = Path(images.workspace(home, content.key)) / "image"
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
    assert opened == {"/dev/null", f"{images.root(home)}/build.log"}
    assert not any(
        "pipe:" in os.readlink(f"/proc/{background.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{background.pid}/fd")
    )
    eventually(lambda: images.find(home, content), "the image is there")


def test_what_failed_is_not_tried_again_soon(home: str, directory: Path) -> None:
    deepen(directory)
    content = Content((str(directory),))
    start(home, directory)
    builder_has_failed(home, 1)
    said = start(home, directory).stdout
    assert said.startswith("no image is built: the last attempt failed: ")
    assert "an image takes paths of at most 4095 bytes" in said
    failure = images.failure_path(home, content.key)
    late, clock_set_back = -images.RETRY_S - 1, images.RETRY_S + 3600
    others = [Path(images.failure_path(home, key)) for key in ("lately", "long ago")]
    for other in others:
        other.write_text("no longer there")
    os.utime(others[1], (1, 1))
    for failures, seconds in enumerate((late, clock_set_back), 2):
        then = time.time() + seconds
        os.utime(failure, (then, then))
        assert start(home, directory).stdout == f"image {content.key} is being built\n"
        builder_has_failed(home, failures)
        assert start(home, directory).stdout.startswith("no image is built: the last")
    assert [other.exists() for other in others] == [True, False], (
        "what keeps nobody from trying goes with the next failure"
    )


def builder_has_failed(home: str, times: int) -> None:
    """What it logs is the last that it does: the content is not locked any more, and the failure is remembered."""
    eventually(lambda: log_of(home).count("\n") == times, "the log says why")
    assert log_of(home).count("4095 bytes") == times


def test_a_start_survives_a_home_that_cannot_be_written(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert start(f"{tmp_path}/file/home", directory).stdout.startswith("no image is built: ")
