"""The hooks that run when a container is gone, whether it was deleted or its ``create`` failed."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.container.context import Context
    from rundctl.engine.records.store import Container


def run(ctx: Context, container: Container, directory: str) -> None:
    """Nothing is left that a failure could stop: it is told, and the others run all the same."""
    wanted = container.record["hooks"]["poststop"]
    if wanted:
        from rundctl.oci import hooks  # which most containers have none of
        from rundctl.oci.state import state_json
        from rundctl.types import Status

        for problem in hooks.run_all("poststop", wanted, state_json(container.record, Status.STOPPED, 0), directory):
            ctx.warn(problem)
