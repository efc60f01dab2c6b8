"""podman with a storage of its own, that drives rundctl: images from a tarball, ``--network none``."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from .conftest import DEADLINE_S, RUNDCTL, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "rundctl"
runtime_supports_json = ["rundctl", "crun", "runc"]
[engine.runtimes]
rundctl = ["{rundctl}"]
"""


class Podman:
    """podman with a storage of its own."""

    def __init__(self, directory: Path) -> None:
        conf = directory / "containers.conf"
        conf.write_text(CONF.format(rundctl=RUNDCTL))
        self.environment = {
            "CONTAINERS_CONF": str(conf),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",  # podman 5 would put it into the container's stderr
        }
        self.runroot = tempfile.mkdtemp(prefix="podman-")  # podman takes at most 50 characters
        self.flags = ["--root", f"{directory}/storage", "--runroot", self.runroot, "--storage-driver", "overlay"]

    def __call__(
        self, *arguments: str, code: int | None = 0, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            ["/usr/bin/podman", *self.flags, *arguments],
            env=self.environment, input=stdin, capture_output=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        if code is not None:
            assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done

    def run(
        self, *arguments: str, code: int | None = 0, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """``podman run --network none``."""
        return self("run", "--network", "none", *arguments, code=code, stdin=stdin)

    def inspect(self, name: str) -> dict[str, Any]:
        """What podman knows of a container."""
        return dict(json.loads(self("inspect", name).stdout)[0])


@contextmanager
def with_busybox(directory: Path, rootfs: Path) -> Iterator[Podman]:
    """One that has the image localhost/bb, and is gone afterwards with all it made."""
    command = Podman(directory)
    archive = directory / "image.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(rootfs, arcname=".")
    command("import", str(archive), "localhost/bb")
    yield command
    command("rm", "--all", "--force", "--time", "0", code=None)
    command("system", "reset", "--force", code=None)
    subprocess.run(["umount", directory / "storage/overlay"], check=False, stderr=subprocess.DEVNULL)
    shutil.rmtree(command.runroot, ignore_errors=True)
    for root in ("libpod_parent",):  # podman leaves its own parents
        for controller in Path("/sys/fs/cgroup").iterdir():
            if (controller / root).is_dir():
                subprocess.run(
                    ["find", controller / root, "-depth", "-type", "d", "-delete"], check=False, capture_output=True
                )


def check_nothing_left(podman: Podman) -> None:
    """podman keeps mounts and cgroups of its own: only containers and their processes are looked for."""
    ids = set(podman("ps", "--all", "--quiet", "--no-trunc").stdout.decode().split())
    podman("rm", "--all", "--force", "--time", "0")
    listed = subprocess.run([RUNDCTL, "list", "-q"], capture_output=True, text=True, check=True).stdout.split()
    assert not ids & set(listed)
    eventually(lambda: not _shims(ids), f"shims are gone: {_shims(ids)}")


def _shims(ids: set[str]) -> list[int]:
    lines = ((process.pid, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [pid for pid, line in lines if ids & set(line)]
