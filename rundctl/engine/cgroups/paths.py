"""Where a container's cgroups are below each hierarchy, and what becomes of the cgroups above them."""

from __future__ import annotations

from rundctl.errors import ConfigError
from rundctl.lean import os
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.host.cgroupfs import Hierarchy

DEFAULT_PARENT = "/rundctl"
SLOT_PREFIX = "rundctl.pool."


def path_of(cgroups_path: str, container_id: str, root_name: str = "") -> str:
    """The path below each hierarchy that ``linux.cgroupsPath`` means (runtime-spec, config-linux, "Cgroups Path").

    Without it the container's id, and for another root than the default one the root's name, which may have a container of the same id.
    ``slice:prefix:name`` means nothing but itself here, as in runc (with --systemd-cgroup: `cgroups.scope`). ConfigError if the path leaves the hierarchy,
    is what all containers are in, or a slot, which is somebody's already, or will be.
    """
    if not cgroups_path:
        if container_id.startswith(SLOT_PREFIX):
            raise ConfigError(
                f"container id {container_id}: names such as {SLOT_PREFIX}N belong to slots of pools",
                hint="choose another id, or set linux.cgroupsPath",
            )
        return f"{DEFAULT_PARENT}/{container_id}{'.' if root_name else ''}{root_name}"
    path = cgroups_path if cgroups_path.startswith("/") else f"{DEFAULT_PARENT}/{cgroups_path}"
    parts = [part for part in path.split("/") if part not in ("", ".")]
    normal = f"/{'/'.join(parts)}"
    if ".." in parts or not parts or "\0" in path:
        raise ConfigError(f"config.json: linux.cgroupsPath: {cgroups_path!r} leaves the cgroup hierarchy")
    if normal == DEFAULT_PARENT:
        raise ConfigError(f"config.json: linux.cgroupsPath: {cgroups_path!r}: other containers are in {DEFAULT_PARENT}")
    if any(part.startswith(SLOT_PREFIX) for part in parts):
        raise ConfigError(
            f"config.json: linux.cgroupsPath: {cgroups_path!r}: names such as {SLOT_PREFIX}N belong to slots of pools"
        )
    return normal


def of_slot(parent: str, number: int) -> str:
    """A slot's path below a pool's parent."""
    return f"{parent.rstrip('/')}/{SLOT_PREFIX}{number}"


def missing(hierarchy: Hierarchy, path: str) -> list[str]:
    """Which of a cgroup and its parents are not there, topmost first."""
    paths = [path]
    while paths[0] != "/":
        paths.insert(0, os.path.dirname(paths[0]))
    return [each for each in paths[1:] if not hierarchy.exists(each)]


def leave(hierarchy: Hierarchy, parent: str) -> None:
    """Remove our own default parent with its last container. Any other is left as it is, as runc leaves it."""
    if parent == DEFAULT_PARENT:
        with suppress(OSError):  # other containers are in it
            hierarchy.rmdir(parent)
