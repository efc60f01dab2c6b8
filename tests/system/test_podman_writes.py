"""Where podman's containers write: as with runc wherever podman, or who uses it, will look; and into what dies with the VM where nobody will."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import podman_rig
from .conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .podman_rig import Podman

pytestmark = pytest.mark.usefixtures("template")
RUNC = "/usr/sbin/runc"
VOLATILE = ("--annotation", "io.rundctl.rootfs=volatile")
# All that a layer can hold: owners, modes, times, links, what is gone, what came in its place, FIFOs, device nodes.
CONTAINERFILE = """
FROM localhost/bb
RUN echo hello >/written && chown 1000:1000 /written && chmod 4711 /written && ln /written /hard && ln -s nowhere /link
RUN mkdir -p /d/deep && mv /d /e && rm /etc/hosts && rm -r /usr && mkdir /usr && touch -d @1000000000 /usr/old && chmod 1777 /e
RUN echo other:x:7: >/etc/new && mv /etc/new /etc/group && mkfifo /fifo && mknod /node c 1 3 && cat /written >/copy
"""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Podman]:
    with podman_rig.with_busybox(tmp_path_factory.mktemp("podman"), rootfs) as command:
        yield command


@pytest.fixture(autouse=True)
def nothing_left(podman: Podman) -> Iterator[None]:
    yield
    podman_rig.check_nothing_left(podman)


def _build(podman: Podman, directory: Path, name: str, *flags: str) -> list[str]:
    """What the layer of a build holds, a line a file; times only where the build set them."""
    (directory / "Containerfile").write_text(CONTAINERFILE)
    podman(
        "build",
        "--network",
        "none",
        "--no-cache",
        "--layers=false",
        "--tag",
        f"localhost/{name}",
        *flags,
        str(directory),
    )
    (inspected,) = json.loads(podman("image", "inspect", f"localhost/{name}").stdout)
    upper = inspected["GraphDriver"]["Data"]["UpperDir"]
    form = "%P %y %m %U:%G %s %n %l"
    listed = subprocess.check_output(["find", upper, "-printf", f"{form}\\n"], text=True).splitlines()
    (old,) = Path(upper).glob("usr/old")
    return [
        *sorted(listed),
        (Path(upper) / "etc/group").read_text(),
        (Path(upper) / "copy").read_text(),
        f"{old.stat().st_mtime}",
    ]


def test_a_build_s_layer_is_as_with_runc(podman: Podman, tmp_path: Path) -> None:
    ours = _build(podman, tmp_path, "ours")
    theirs = _build(podman, tmp_path, "theirs", "--runtime", RUNC)
    assert ours == theirs
    assert any(line.startswith("written f 4711 1000:1000 6 2") for line in ours)
    assert podman.run("--rm", "localhost/ours", "/bin/cat", "/written", "/copy").stdout == b"hello\n" * 2


def test_a_build_that_fails_fails(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("FROM localhost/bb\nRUN echo before; exit 3\n")
    done = podman("build", "--network", "none", "--no-cache", str(tmp_path), code=None)
    assert (
        done.returncode
        == podman("build", "--network", "none", "--no-cache", "--runtime", RUNC, str(tmp_path), code=None).returncode
    )
    assert b"before" in done.stdout


def test_a_container_that_stays_is_as_with_runc(podman: Podman, tmp_path: Path) -> None:
    """cp both ways, diff and commit see what it wrote, and a second start finds it."""
    (tmp_path / "in").write_text("from the host")
    script = "echo w >>/written; while [ ! -e /etc/in ]; do sleep 0.1; done; cat /etc/in; sleep 1000"
    podman.run("-d", "--name", "p", "localhost/bb", "/bin/sh", "-c", script)
    podman("cp", str(tmp_path / "in"), "p:/etc/in")
    eventually(lambda: podman("logs", "p").stdout == b"from the host", "the container sees it")
    podman("cp", "p:/written", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "w\n"
    assert {"A /written", "A /etc/in"} <= set(podman("diff", "p").stdout.decode().splitlines())
    podman("commit", "--quiet", "p", "localhost/committed")
    assert podman.run("--rm", "localhost/committed", "/bin/cat", "/written").stdout == b"w\n"
    podman("stop", "--time", "0", "p")
    podman("start", "p")
    eventually(lambda: podman("logs", "p").stdout == b"from the host" * 2, "the second start has what the first wrote")
    podman("cp", "p:/written", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "w\nw\n"


def test_cp_into_a_volatile_container_fails(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("x")
    podman.run("-d", "--name", "volatile", *VOLATILE, "localhost/bb", "/bin/sleep", "1000")
    done = podman("cp", str(tmp_path / "in"), "volatile:/etc/in", code=125)
    assert b"read-only file system" in done.stderr


def test_what_podman_removes_writes_into_what_dies_with_it(podman: Podman) -> None:
    """Faster, on the image that its layers share; the annotation overrules."""
    root = ("localhost/bb", "/bin/sh", "-c", "echo x >/new; grep ' / ' /proc/mounts; cat; :")
    fast = podman.run("--rm", *root).stdout
    assert fast.startswith(b"overlay / overlay rw")
    kept = podman.run("--rm", "--annotation", "io.rundctl.rootfs=persistent", *root).stdout
    assert not kept.startswith(b"overlay")
    podman.run("-d", "--rm", "--name", "r", "localhost/bb", "/bin/sh", "-c", "echo x >/new; echo on; sleep 1000")
    eventually(lambda: podman("logs", "r").stdout == b"on\n", "it wrote")
    assert b"/new" not in podman("diff", "r").stdout


def test_a_read_only_one_leaves_nothing(podman: Podman) -> None:
    podman.run("--name", "ro", "--read-only", "localhost/bb", "/bin/sh", "-c", "echo x >/new", code=1)
    assert b"/new" not in podman("diff", "ro").stdout


def test_a_rootfs_that_is_named(podman: Podman, rootfs: Path, tmp_path: Path) -> None:
    """It is written to, as with runc; with :O what podman lays over it is."""
    for name, suffix, seen in (("plain", "", True), ("over", ":O", False)):
        own = tmp_path / name
        subprocess.run(["cp", "-a", rootfs, own], check=True)
        podman.run("--name", name, "--rootfs", f"{own}{suffix}", "/bin/sh", "-c", "echo x >/new")
        assert (own / "new").exists() == seen


def test_what_cannot_be_kept_is_refused(podman: Podman) -> None:
    done = podman.run("--annotation", "io.rundctl.rootfs.lower=erofs", "localhost/bb", "/bin/true", code=126)
    assert b"io.rundctl.rootfs.lower" in done.stderr
    assert b"io.rundctl.rootfs=volatile" in done.stderr
    assert done.stderr.count(b"\n") == 1
