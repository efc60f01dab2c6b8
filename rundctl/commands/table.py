"""The one table of verbs. A verb's declaration is in the module of its name; only the one that is called gets loaded."""

from __future__ import annotations

from rundctl.commands.declare import Flag, Verb
from rundctl.errors import RundctlError, UsageError

VERBS = (
    "create",
    "start",
    "state",
    "kill",
    "delete",
    "pause",
    "resume",
    "update",
    "run",
    "list",
    "ps",
    "events",
    "spec",
    "features",
    "template",
    "kernel",
    "image",
    "qemu",
    "storage",
    "pool",
    "doctor",
)

# Verbs of runc that are still to come. They are refused by name, `--help` included: podman probes `checkpoint --help`.
REFUSED = {
    "exec": "make the program a part of the container's own command; podman: no healthcheck",
    "checkpoint": "pause keeps a container as it is in memory",
    "restore": "pause keeps a container as it is in memory",
}

GLOBAL_FLAGS = (
    Flag("--root", "Directory of the containers' state (default: /run/rundctl).", value="DIR"),
    Flag("--log", "Append errors (and with --debug more) to a file.", value="FILE"),
    Flag("--log-format", "Format of the log.", value="FORMAT", default="text", choices=("text", "json")),
    Flag("--debug", "Say what is done, to the log or else to stderr; show tracebacks."),
    Flag("--systemd-cgroup", "Have systemd make the cgroups of new containers, as scopes."),
    Flag("--cgroup-manager", "systemd: as --systemd-cgroup. cgroupfs, disabled: accepted, no effect.", value="NAME"),
    Flag("--rootless", "Accepted for callers that pass it; rundctl needs root.", value="WHEN"),
    Flag("--criu", "Accepted for callers that pass it; there is no checkpoint.", value="PATH"),
    Flag("--version", "Show the version and exit.", short="-v"),
)


def load(name: str) -> Verb:
    """Declaration of a verb; UsageError if there is none of that name, RundctlError if it is still to come."""
    if name in REFUSED:
        raise RundctlError(f"{name} is not supported yet", hint=REFUSED[name])
    if name not in VERBS:
        raise UsageError(f'no such command "{name}"')
    module = __import__(f"rundctl.commands.{name}", fromlist=["VERB"])  # importlib would be one more module to load
    verb: Verb = module.VERB
    return verb
