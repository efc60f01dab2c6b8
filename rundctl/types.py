"""Names for values that would otherwise be bare strings and integers."""

from __future__ import annotations

from rundctl.lean import enum

TYPE_CHECKING = False  # typing costs 4 ms to import, on every call
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NewType

    Progress = Callable[[str], None]  # where one line at a time is said of what takes long; for annotations alone
    ContainerId = NewType("ContainerId", str)
    TemplateKey = NewType("TemplateKey", str)
    HostPid = NewType("HostPid", int)
else:
    ContainerId = TemplateKey = str
    HostPid = int


class Accelerator(enum.Enum):
    """How QEMU runs guest code."""

    KVM = "kvm"
    TCG = "tcg"


class MemoryMode(enum.Enum):
    """What a clone's memory is to its template's: a private view of it, or a copy that others can map (a vhost-user server such as virtiofsd)."""

    COW = "cow"
    COPY = "copy"


class Status(enum.Enum):
    """Status of a container (runtime-spec, "State"; ``paused`` is runc's addition). The rules of each verb live here."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"

    @property
    def can_start(self) -> bool:
        """Whether ``start`` is allowed."""
        return self is Status.CREATED

    @property
    def can_pause(self) -> bool:
        """Whether ``pause`` is allowed; runc also pauses what was never started."""
        return self in (Status.CREATED, Status.RUNNING)

    @property
    def can_resume(self) -> bool:
        """Whether ``resume`` is allowed."""
        return self is Status.PAUSED

    @property
    def can_answer(self) -> bool:
        """Whether there is a guest that runs, which can be asked."""
        return self in (Status.CREATED, Status.RUNNING)

    @property
    def can_kill(self) -> bool:
        """Whether ``kill`` has something to signal."""
        return self in (Status.CREATED, Status.RUNNING, Status.PAUSED)

    @property
    def can_delete(self) -> bool:
        """Whether ``delete`` without ``--force`` is allowed; runc also deletes, and first kills, what was never started."""
        return self in (Status.STOPPED, Status.CREATED)
