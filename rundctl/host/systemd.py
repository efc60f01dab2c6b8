"""systemd's manager over the system bus (org.freedesktop.systemd1(5)): transient scopes made, and stopped.

jeepney is imported here, and only when somebody asks for a scope: 35 ms of a call that no other one pays.
"""

from __future__ import annotations

import os
import time

from rundctl.errors import HostError, words
from rundctl.host import patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Self

    # name, (D-Bus signature, value)
    Property = tuple[str, tuple[str, Any]]

_RUNS = "/run/systemd/system"  # sd_booted(3)
_NAME = "org.freedesktop.systemd1"
_SCOPE = "ssa(sv)a(sa(sv))"  # StartTransientUnit: name, mode, properties, units to be made with it
_TIMEOUT_S = 30.0
_EXISTS = f"{_NAME}.UnitExists"
_GONE = (f"{_NAME}.NoSuchUnit",)
_HINT = "without --systemd-cgroup cgroups are made directly; podman: --cgroup-manager cgroupfs"


def is_running() -> bool:
    """Whether systemd is the init of this host."""
    return os.path.isdir(_RUNS)


class Manager:
    """A conversation with systemd, for a ``with`` block. HostError if there is no systemd, no bus, or no answer."""

    __slots__ = ("_address", "_bus")

    def __init__(self) -> None:
        if not is_running():
            raise HostError("--systemd-cgroup: systemd is not running here", hint=_HINT)
        from jeepney import DBusAddress
        from jeepney.bus import get_bus
        from jeepney.io.blocking import open_dbus_connection

        path = get_bus("SYSTEM")
        try:
            self._bus = open_dbus_connection("SYSTEM")
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            why = words(error) if isinstance(error, OSError) else str(error)
            raise HostError(f"--systemd-cgroup: connect to the system bus {path}: {why}", hint=_HINT) from error
        self._address = DBusAddress("/org/freedesktop/systemd1", bus_name=_NAME, interface=f"{_NAME}.Manager")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.close()

    def start_scope(self, name: str, properties: Sequence[Property]) -> None:
        """Make a scope of the processes that ``PIDs`` among its properties names, and wait until it is there.

        A unit of that name that failed before is forgotten first. HostError in systemd's words, or if a unit of that name is active.
        """
        body: tuple[Any, ...] = (name, "replace", list(properties), [])
        self._follow_jobs()
        try:
            self._job(f"start {name}", "StartTransientUnit", _SCOPE, body)
        except _RefusedError as error:
            if error.name != _EXISTS:
                raise
            self.reset_failed(name)
            self._job(f"start {name}", "StartTransientUnit", _SCOPE, body)

    def set_properties(self, name: str, properties: Sequence[Property]) -> None:
        """Change a unit that runs, until it ends. HostError in systemd's words."""
        self._call(f"set properties of {name}", "SetUnitProperties", "sba(sv)", (name, True, list(properties)))

    def stop(self, name: str) -> None:
        """Stop a unit, wait for it, and have systemd forget that it failed, if it did; one that is gone is fine. HostError in systemd's words."""
        self._follow_jobs()
        try:
            self._job(f"stop {name}", "StopUnit", "ss", (name, "replace"))
        except _RefusedError as error:
            if error.name not in _GONE:
                raise
        self.reset_failed(name)

    def reset_failed(self, name: str) -> None:
        """Forget that a unit failed; one that is unknown, or did not, is fine."""
        try:
            self._call(f"reset {name}", "ResetFailedUnit", "s", (name,))
        except _RefusedError as error:
            if error.name not in _GONE:
                raise

    def _follow_jobs(self) -> None:
        """Without a subscriber systemd sends no signals."""
        from jeepney import message_bus

        self._call("follow its jobs", "Subscribe")
        self._ask("follow its jobs", message_bus.AddMatch(self._rule()))

    def _rule(self) -> Any:
        from jeepney import MatchRule

        return MatchRule(
            type="signal", interface=f"{_NAME}.Manager", member="JobRemoved", path=self._address.object_path
        )

    def _job(self, what: str, method: str, signature: str, body: tuple[Any, ...]) -> None:
        """Call what returns a job, and wait for its end. All signals are kept: the job may end before we know its name."""
        from collections import deque

        ended: deque[Any] = deque()
        with self._bus.filter(self._rule(), queue=ended):
            (job,) = self._call(what, method, signature, body)
            deadline = time.monotonic() + patience.seconds(_TIMEOUT_S)
            while True:
                try:
                    signal = self._bus.recv_until_filtered(ended, timeout=max(0.0, deadline - time.monotonic()))
                except OSError as error:
                    raise HostError(f"systemd: {what}: {words(error)}") from error
                _, path, _, result = signal.body
                if path == job:
                    break
        if result not in ("done", "skipped"):
            raise HostError(f"systemd: {what}: {result}", hint="journalctl may tell why")

    def _call(self, what: str, method: str, signature: str = "", body: tuple[Any, ...] = ()) -> Any:
        from jeepney import new_method_call

        return self._ask(what, new_method_call(self._address, method, signature or None, body))

    def _ask(self, what: str, message: Any) -> Any:
        from jeepney import DBusErrorResponse
        from jeepney.wrappers import unwrap_msg

        try:
            return unwrap_msg(self._bus.send_and_get_reply(message, timeout=patience.seconds(_TIMEOUT_S)))
        except DBusErrorResponse as error:
            said = error.data[0] if error.data else error.name
            raise _RefusedError(f"systemd: {what}: {said}", error.name) from error
        except OSError as error:
            raise HostError(f"systemd: {what}: {words(error)}") from error


class _RefusedError(HostError):
    """systemd's own error, with its D-Bus name."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name
