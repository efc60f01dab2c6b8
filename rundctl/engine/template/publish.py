"""Move a template's files into place, described so that every change to them is seen. Cold."""

from __future__ import annotations

import json
import os
import shutil
import time

from rundctl.engine.template import boot, store
from rundctl.host import files
from rundctl.host import manifest as manifests
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.vmm.shape import MachineShape


def publish(directory: str, place: str, shape: MachineShape, facts: dict[str, Any]) -> None:
    """Make the files in ``directory`` durable and read-only, describe them with ``facts``, and give the directory its name, ``place``.

    What is there, and is no template that could be used, makes room. OSError if the host refuses anything.
    """
    disk, *copies = store.UPPERS
    extents = _hidden_extents(f"{directory}/{disk}")
    for name in copies:
        _copy_disk(f"{directory}/{disk}", f"{directory}/{name}", extents)
    for name in boot.LOGS:
        files.unlink(f"{directory}/{name}")
    described = {
        name: _describe(f"{directory}/{name}", _mode(name, shape), extents if name in store.UPPERS else None)
        for name in store.FILES
    }
    manifest = {
        "format": store.FORMAT,
        "key": os.path.basename(place),
        "shape": shape.facts(),
        "built_ns": time.time_ns(),
        "upper_extents": extents,
        **facts,
        "files": described,
    }
    files.replace(f"{directory}/{manifests.NAME}", json.dumps(manifest, indent=1).encode())
    files.sync_directory(directory)
    shutil.rmtree(place, ignore_errors=True)
    os.rename(directory, place)
    files.sync_directory(os.path.dirname(place))


def _hidden_extents(path: str) -> files.Extents | None:
    with open(path, "rb") as file:
        return files.hidden_extents(file.fileno())


def _copy_disk(source: str, target: str, extents: files.Extents | None) -> None:
    """Copy an image's data to blocks of its own: shared ones would be counted in one place for all copies."""
    with open(source, "rb") as old, open(target, "xb") as new:
        files.copy_sparse(old.fileno(), new.fileno(), may_share=False, extents=extents)


def _mode(name: str, shape: MachineShape) -> int:
    """Nobody writes to a template; but a QEMU that cannot map its memory read-only must be able to open it for writing."""
    return 0o600 if name == "memory" and not qemu.maps_memory_read_only(shape.qemu_version) else 0o400


def _describe(path: str, mode: int, extents: files.Extents | None) -> dict[str, object]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(fd, mode)
        os.fsync(fd)
        digest = files.content_digest(fd, extents)
        return {"size": os.fstat(fd).st_size, "digest": digest, "identity": manifests.file_identity(path)}
    finally:
        os.close(fd)
