"""A caller in a chroot: what it names is there and nowhere else, and nothing of a start may look for it from the namespace's root.

The chroot shows all of the host, by a recursive bind, with an own file system at /mnt: settings, RUNDCTL_HOME, bundle and records are in it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.oci import options

from .conftest import DEADLINE_S, RUNDCTL

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import JsonDict

pytestmark = pytest.mark.vm
# ROOT HOME BUNDLE SCRIPT
_MOUNTED = """
mount --rbind / "$1"
mount -t tmpfs inside "$1/mnt"
mkdir -p "$1/mnt/home" "$1/mnt/run" "$1/mnt/volume"
for each in kernels qemu; do
    mkdir "$1/mnt/home/$each"
    mount --rbind "$2/$each" "$1/mnt/home/$each"
done
cp -a "$3" "$1/mnt/bundle"
exec chroot "$1" /bin/sh -ec "$4"
"""
# A directory is no mount: what runtimes do with their mount namespace is refused there.
_PLAIN = """
cd "$1"
mkdir -p proc sys dev usr etc run tmp mnt
for each in bin sbin lib lib64; do ln -s "usr/$each" "$each"; done
for each in proc sys dev usr etc; do mount --rbind "/$each" "$1/$each"; done
for each in $(echo "$2"; dirname "$(dirname "$5")"; python3 -c 'import sys; print(sys.base_prefix)'); do
    mkdir -p "$1$each"
    mount --rbind "$each" "$1$each"
done
cp -a "$3" "$1/mnt/bundle"
exec chroot "$1" /bin/sh -ec "$4"
"""


@pytest.fixture
def where(bundle: Callable[..., Path], rootfs: Path, tmp_path: Path) -> Callable[..., Path]:
    """A bundle that has its root file system with it, for the chroot: it copies the caller's input to the volume and says so."""

    def make(**annotations: str) -> Path:
        def change(config: JsonDict) -> None:
            config["root"] = {"path": "rootfs", "readonly": False}
            config["annotations"] = annotations
            config["mounts"].append(
                {"destination": "/volume", "type": "bind", "source": "/mnt/volume", "options": ["rbind", "rw"]}
            )

        made = bundle("/bin/sh", "-c", "echo written > /volume/file; echo here > /own; cat /own", change=change)
        subprocess.run(["cp", "-a", rootfs, made / "rootfs"], check=True)
        (tmp_path / "root").mkdir(exist_ok=True)
        return made

    return make


def _inside(kind: str, root: Path, bundle: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in the chroot, in a mount namespace of the test's own."""
    shell = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", kind, "sh"]
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "RUNDCTL_HOME": "/mnt/home",
        "R": f"{RUNDCTL} --root /mnt/run",
    }
    return subprocess.run(
        [*shell, root, settings.load().home, bundle, script, RUNDCTL],
        capture_output=True, text=True, timeout=4 * DEADLINE_S, env=environment, check=False,
    )  # fmt: skip


_RUN = """
cd /mnt/bundle
$R run c
cat /mnt/volume/file
[ "$(pwd)" = /mnt/bundle ]
$R list -q
"""


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {options.LOWER: "blk"},
        {options.ROOTFS: "persistent"},
        {options.LOWER: "erofs", options.IMMUTABLE: "/mnt/bundle/rootfs"},
        {options.LOWER: "blk", options.IMMUTABLE: "/mnt/bundle/rootfs"},
    ],
    ids=["9p", "blk", "persistent", "erofs", "blk of an image"],
)
def test_every_way_of_a_root_file_system(
    where: Callable[..., Path], tmp_path: Path, annotations: dict[str, str]
) -> None:
    done = _inside(_MOUNTED, tmp_path / "root", where(**annotations), _RUN)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "here\nwritten\n", "and no record is left"


def test_an_image_of_layers(where: Callable[..., Path], tmp_path: Path) -> None:
    """Its builder merges the layers in a mount namespace of its own, and goes on with paths afterwards."""
    script = """
mkdir -p /mnt/upper /mnt/work /mnt/merged
mount -t overlay o -o lowerdir=/mnt/bundle/rootfs,upperdir=/mnt/upper,workdir=/mnt/work /mnt/merged
cd /mnt/merged
key=$($R image build .)
[ "$(pwd)" = /mnt/merged ]
$R image list | grep -c "$key"
$R image verify
"""
    done = _inside(_MOUNTED, tmp_path / "root", where(), script)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "1"), done.stderr


def test_what_goes_wrong_is_traced(where: Callable[..., Path], tmp_path: Path) -> None:
    """From the namespace's root no module would be found any more."""
    script = "cd /mnt/bundle && mkdir rootfs/inner && mount -t tmpfs x rootfs/inner && $R --debug run c"
    done = _inside(_MOUNTED, tmp_path / "root", where(**{options.LOWER: "blk"}), script)
    assert done.returncode == 1
    assert "blk copies one file system" in done.stderr
    assert "Traceback" in done.stderr


def test_a_chroot_that_is_no_mount_is_refused_in_one_line(where: Callable[..., Path], tmp_path: Path) -> None:
    """By every way into a VM; runc cannot run there either."""
    home = settings.load().home
    script = f"cd /mnt/bundle && export RUNDCTL_HOME={home} && mkdir -p /mnt/volume && $R run c; $R list -q"
    for number, chosen in enumerate(({}, {options.LOWER: "blk"})):
        root = tmp_path / f"root{number}"
        root.mkdir()
        done = _inside(_PLAIN, root, where(**chosen), script)
        (line,) = done.stderr.splitlines()
        assert "the root directory is no mount" in line
        assert "(mount --bind DIR DIR, then chroot DIR)" in line
        assert done.stdout == ""


def test_the_test_hides_what_it_says(where: Callable[..., Path], tmp_path: Path) -> None:
    """Else it would show nothing: outside there is neither."""
    done = _inside(_MOUNTED, tmp_path / "root", where(), "cat /mnt/bundle/config.json")
    assert json.loads(done.stdout)["process"]["args"][0] == "/bin/sh"
    assert not Path("/mnt/bundle").exists()
