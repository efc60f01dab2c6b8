"""Who makes a container's cgroups, and who gives them back: the kinds of `Lease`, each loaded when it is needed.

``plain``: made on the spot; ``pool``: a slot that was made before; ``systemd``: a scope that systemd makes, for ``--systemd-cgroup``.
"""

from __future__ import annotations

from rundctl.errors import StateError
from rundctl.host.cgroupfs import Hierarchy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rundctl.engine.cgroups.lease import Facts, Lease


def path_of(cgroups_path: str, container_id: str, root_name: str = "", *, systemd: bool) -> str:
    """The path below each hierarchy that ``linux.cgroupsPath`` means, which with ``systemd`` is a scope's. ConfigError for what cannot be one."""
    if systemd:
        from rundctl.engine.cgroups import scope

        return scope.path_of(cgroups_path, container_id, root_name)
    from rundctl.engine.cgroups import paths

    return paths.path_of(cgroups_path, container_id, root_name)


def lease(hierarchies: Sequence[Hierarchy], path: str, container_directory: str, *, systemd: bool) -> Lease:
    """Name a container's cgroups, so that the record can hold them before they exist. HostError where nobody could make them."""
    if systemd:
        from rundctl.engine.cgroups import scope

        return scope.lease(hierarchies, path)
    from rundctl.engine.cgroups import cgroup_pool

    return cgroup_pool.lease(hierarchies, path, container_directory)


def recorded(facts: Facts, hierarchy: type[Hierarchy] = Hierarchy) -> Lease:
    """The cgroups that a container's record tells of. StateError for a kind that this rundctl does not know."""
    kind = _KINDS.get(facts["kind"])
    if kind is None:
        raise StateError(
            f"the record has cgroups of an unknown kind, {facts['kind']!r}",
            hint="another version of rundctl made the container",
        )
    return kind().recorded(facts, hierarchy)


def _plain() -> type[Lease]:
    from rundctl.engine.cgroups.plain import PlainLease

    return PlainLease


def _pool() -> type[Lease]:
    from rundctl.engine.cgroups.cgroup_pool import PooledLease

    return PooledLease


def _systemd() -> type[Lease]:
    from rundctl.engine.cgroups.scope import Scope

    return Scope


_KINDS: dict[str, Callable[[], type[Lease]]] = {"plain": _plain, "pool": _pool, "systemd": _systemd}
