"""A real systemd: it is the init of a VM of ours over the host's root, with a system bus, and these tests are its one service."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "native"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import host_vm
import inside

# None of the host's units is started: they would take minutes, and some would fail. DefaultDependencies would pull them in.
_UNITS = {
    "tests.target": """
[Unit]
DefaultDependencies=no
Requires=dbus.socket
Requires=tests.service
""",
    "dbus.socket": """
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
""",
    # systemd looks for the bus when units of these names run.
    "dbus.service": """
[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
Type=notify
NotifyAccess=main
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation
""",
    "tests.service": f"""
[Unit]
DefaultDependencies=no
Requires=dbus.service
After=dbus.socket dbus.service
SuccessAction=exit
FailureAction=exit
[Service]
Type=oneshot
ExecStart=/bin/sh {host_vm.RESULTS}/run
""",
}
_BOOT = f"""
mkdir -p /run/systemd/system /run/dbus
cp {host_vm.RESULTS}/units/* /run/systemd/system
exec /lib/systemd/systemd --unit=tests.target --log-target=console --log-level=notice --show-status=no
"""


def run(nodes: list[str], results: Path, environment: dict[str, str]) -> tuple[int, str]:
    """systemd exits with its service's status, and the container with it."""
    (results / "units").mkdir()
    for name, text in _UNITS.items():
        (results / "units" / name).write_text(text)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    checkout = Path(__file__).resolve().parents[2]
    lines = [
        f"exec >{host_vm.RESULTS}/printed 2>&1",
        f"cd {checkout}",
        *exports,
        shlex.join(["exec", *inside.argv(nodes)]),
    ]
    (results / "run").write_text("\n".join(lines) + "\n")
    code, console = host_vm.run(
        ["/bin/sh", "-ec", _BOOT], results, environment={"container": "rundctl"}, delegate=False
    )
    printed = results / "printed"
    return code, console + (printed.read_text() if printed.exists() else "")


def pytest_configure(config: pytest.Config) -> None:
    """Reports of the VM in place of runs on the host."""
    inside.install(config, Path(__file__).resolve().parent, run)
