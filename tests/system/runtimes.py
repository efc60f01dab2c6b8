"""Containers for suites that hold rundctl and runc to the same expectations: made and run alike, whatever runs them."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rundctl.host import patience
from rundctl.oci import options

from . import conftest
from .conftest import RUNDCTL, Cli, JsonDict, eventually

RUNC = "runc"
VOLUME_TRANSPORTS = ("9p", "virtiofs")
LAYERS = "layers"  # an engine's overlay mount: by its image, and on that what its upper directory has
RUNC_ON_LAYERS = "runc on layers"
OF_IMAGES = ("erofs", "blk")  # transports of what is declared not to change
ON_PMEM = " on pmem"
MEMORY_FOR_PMEM = (
    4032 << 20
)  # a guest with so much takes an image of 8 GiB, as that of the contract's tree, on pmem and not as a disk
DEADLINE_S = patience.seconds(300)
# What the checks take; all there are would be more than the host may give to runc.
CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "MKNOD", "SETFCAP", "SETGID", "SETUID", "SYS_ADMIN",
    )
]  # fmt: skip
Change = Callable[[JsonDict], object]


def _unchanged(config: JsonDict) -> None:
    del config


class Rundctl:
    """Containers of one transport, all files of theirs in one directory."""

    def __init__(self, transport: str, rootfs: Path, directory: Path) -> None:
        self.transport = transport
        self.rootfs = rootfs
        self.directory = directory
        self.cli = Cli(directory / "root")
        self.cli.root.mkdir()

    def prepare(self, name: str, config: JsonDict, stack: ExitStack) -> None:
        """Give a container its root; ``stack`` takes it away."""
        config["root"] = {"path": str(self.rootfs), "readonly": False}
        lower = self.transport.removesuffix(ON_PMEM).replace(LAYERS, "erofs")
        config["annotations"] = {options.ROOTFS: "volatile", options.LOWER: lower}
        if self.transport.endswith(ON_PMEM):
            config["linux"]["resources"] = {"memory": {"limit": MEMORY_FOR_PMEM}}
        if self.transport.removesuffix(ON_PMEM) in OF_IMAGES:
            config["annotations"][options.IMMUTABLE] = str(self.rootfs)

    def argv(self, name: str, bundle: Path) -> list[str]:
        return self.cli.argv("run", "--bundle", str(bundle), name)

    def delete(self, name: str) -> None:
        self.cli("delete", "--force", name, code=None)


class Runc:
    """runc over an overlay mount a container, as podman makes it; ``layers``: what lies below, topmost first."""

    def __init__(self, layers: Sequence[Path], directory: Path) -> None:
        self.layers = layers
        self.directory = directory

    def prepare(self, name: str, config: JsonDict, stack: ExitStack) -> None:
        place = self.directory / name
        for part in ("upper", "work", "merged"):
            (place / part).mkdir()
        # The options are those of the guest's overlay.
        lowers = ":".join(map(str, self.layers))
        directories = f"lowerdir={lowers},upperdir={place}/upper,workdir={place}/work"
        data = f"{directories},redirect_dir=on,index=off,metacopy=off"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", data, place / "merged"], check=True)
        stack.callback(subprocess.run, ["umount", place / "merged"], check=True)
        config["root"] = {"path": str(place / "merged"), "readonly": False}
        config["linux"]["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}

    def argv(self, name: str, bundle: Path) -> list[str]:
        return ["runc", "--root", f"{self.directory}/root", "run", "--bundle", str(bundle), self._id(name)]

    def delete(self, name: str) -> None:
        argv = ["runc", "--root", f"{self.directory}/root", "delete", "--force", self._id(name)]
        subprocess.run(argv, check=False, capture_output=True)

    def _id(self, name: str) -> str:
        return f"contract-{os.getpid()}-{name}"  # names cgroups, which other suites' containers have too


Runtime = Rundctl | Runc


def runtime_of(container: str, rootfs: Path, directory: Path, layers: Sequence[Path] = ()) -> Runtime:
    """``container``: a transport, or runc; ``layers``: those that ``rootfs`` is mounted over, if it is an overlay."""
    return Runc(layers or (rootfs,), directory) if container.startswith(RUNC) else Rundctl(container, rootfs, directory)


def nothing_is_left(directory: Path) -> None:
    """After the last container of a runtime; ``nothing_left`` looks after those that live for one test."""
    suffix = conftest._cgroup_suffix(directory / "root")
    assert list((directory / "root").iterdir()) == []
    eventually(lambda: not conftest._processes(str(directory), suffix), "processes end")
    assert conftest._mounts(str(directory)) == []
    assert conftest._cgroups(suffix) == []


@contextmanager
def bundled(runtime: Runtime, name: str, args: list[str], change: Change = _unchanged) -> Iterator[Path]:
    """The bundle of a container that may do all that the checks need; ``change`` edits its config.json."""
    with ExitStack() as stack:
        bundle = runtime.directory / name
        bundle.mkdir()
        subprocess.run([RUNDCTL, "spec", "--bundle", bundle], check=True)
        config: JsonDict = json.loads((bundle / "config.json").read_text())
        config["process"]["args"] = args
        config["process"]["noNewPrivileges"] = False
        config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES)
        runtime.prepare(name, config, stack)
        change(config)
        (bundle / "config.json").write_text(json.dumps(config))
        yield bundle


@contextmanager
def running(
    runtime: Runtime, name: str, args: list[str], change: Change = _unchanged
) -> Iterator[subprocess.Popen[bytes]]:
    """A container with pipes; after ``DEADLINE_S`` it is killed, so that reading from it ends."""
    with bundled(runtime, name, args, change) as bundle, ExitStack() as stack:
        stack.callback(runtime.delete, name)
        run = subprocess.Popen(runtime.argv(name, bundle), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.enter_context(run)
        timer = threading.Timer(DEADLINE_S, runtime.delete, [name])
        timer.start()
        stack.callback(timer.join)
        stack.callback(timer.cancel)
        yield run


def mountinfo() -> list[str]:
    """Mounts of this namespace, which is the host's; their order and numbers are nobody's business."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(line.split(" ", 2)[2] for line in lines)


def bind(source: Path, destination: str, *names: str) -> JsonDict:
    """An entry of config.json's ``mounts``."""
    return {"destination": destination, "type": "bind", "source": str(source), "options": [*names]}


def exchange(one: Path, other: Path) -> None:
    """At once, so that nobody finds neither."""
    done = ctypes.CDLL(None).renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2)  # AT_FDCWD, RENAME_EXCHANGE
    assert done == 0
