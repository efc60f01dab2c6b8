"""What ``state`` and ``list`` tell of containers. Apart from what other verbs do, for it needs little of it, and callers ask often."""

from __future__ import annotations

from rundctl.engine.records import store
from rundctl.oci.state import state_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.engine.container.context import Context
    from rundctl.engine.records.store import Container


def state(ctx: Context, container_id: str) -> dict[str, Any]:
    """The state of runtime-spec, "State", with runc's additions. StateError if the container does not exist."""
    return of(store.load(ctx.root, container_id))


def list_(ctx: Context) -> list[dict[str, Any]]:
    """The state of every container of the root, by id; damaged ones are told of."""
    return [of(container) for container in store.list_all(ctx.root, ctx.warn)]


def of(container: Container) -> dict[str, Any]:
    """The state of one that was found."""
    return state_json(container.record, *container.seen())
