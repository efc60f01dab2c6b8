"""Random changes of configurations that callers really wrote, and what ``create`` does with one before it asks the host for anything."""

from __future__ import annotations

import copy
import json
import random
from typing import TYPE_CHECKING, Any

from rundctl.engine.cgroups import kinds, limits
from rundctl.engine.container import shapes
from rundctl.engine.plan import compiler, devices, seccomp
from rundctl.engine.plan import mounts as plan_mounts
from rundctl.engine.plan.mounts import Volume
from rundctl.engine.rootfs import transport
from rundctl.engine.settings import Settings
from rundctl.guest import ops
from rundctl.oci import bundle, spec
from rundctl.oci.state import state_json
from rundctl.oci.support_table import NEWER, ROWS
from rundctl.types import Status

from .plan_rig import DATA

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RAW = "@raw:"  # what follows in such a string goes into the text as it is
NUMBERS = (
    *(-1, 0, 1, 2, -2, 0.5, 1e300, -1e300),
    *(sign * 2**power + step for sign in (1, -1) for power in (7, 15, 31, 32, 53, 63, 64, 70) for step in (-1, 0, 1)),
)
WORDS = (
    *(
        "",
        "/",
        ".",
        "..",
        "/..",
        "a",
        "a/b",
        "/a b",
        "x" * 300,
        "/" + "x" * 5000,
        "\0",
        "a\0b",
        "ü",
        "\ud800",
        "a\nb",
        "%s{}",
    ),
    *(
        "0",
        "-1",
        "max",
        "max 100000",
        "1e9",
        "9" * 400,
        "9" * 4301,
        "0-",
        "0-3,7",
        "1:2",
        "8:0 rbps=1",
        "²",
        "2MB",
        "1GB",
        "0KB",
    ),
    *(
        "bind",
        "rbind",
        "ro",
        "rro",
        "rshared",
        "unbindable",
        "tmpcopyup",
        "idmap",
        "tmpfs",
        "proc",
        "cgroup",
        "overlay",
        "none",
    ),
    *(
        "pid",
        "user",
        "time",
        "CAP_KILL",
        "SYS_ADMIN",
        "RLIMIT_CORE",
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_NOTIFY",
        "SCMP_ARCH_X86",
        "LINUX",
    ),
    *(
        "a.slice:b:c",
        "::",
        "a:b",
        "/a/../..",
        "net.ipv4.ip_forward",
        "kernel.hostname",
        "io.rundctl.rootfs",
        "rwm",
        "c",
        "p",
        "1.0.2",
    ),
    *(
        RAW + text
        for text in ("NaN", "1e400", "-" + "9" * 5000, '"\\ud800"', '"\\u0000"', "[" * 600 + "]" * 600, "[" * 10001)
    ),
)
_FIELDS = [row[0] for row in (*ROWS, *NEWER) if row[0]]


def bases() -> list[dict[str, Any]]:
    """Configurations to begin with; none is changed."""
    found = [json.loads(path.read_bytes()) for path in sorted(DATA.glob("podman-*.json"))]
    for config in found:
        filter_ = config.get("linux", {}).get("seccomp")
        if filter_:  # most of each
            filter_["syscalls"] = [
                *filter_["syscalls"][:1],
                *[rule for rule in filter_["syscalls"] if rule.get("args")][:2],
            ]
            filter_["syscalls"][0]["names"] = filter_["syscalls"][0]["names"][:5]
    return [*found, spec.example()]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to all values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def junk(rng: random.Random, depth: int = 0) -> Any:
    """Any value."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(WORDS)
    if kind == 6 or depth > 2:
        return rng.choice([None, True, False, [], {}])
    several = range(rng.randrange(4))
    if rng.random() < 0.5:
        return [junk(rng, depth + 1) for _ in several]
    return {rng.choice(WORDS): junk(rng, depth + 1) for _ in several}


def change(rng: random.Random, config: dict[str, Any]) -> None:
    """One change, in place: another value, one less, one twice, or a field of the specification."""
    kind = rng.randrange(6)
    if kind == 0:
        add_field(rng, config)
        return
    where = rng.choice(list(places(config)))
    holder: Any = config
    for key in where[:-1]:
        holder = holder[key]
    if kind == 1:
        del holder[where[-1]]
    elif kind == 2 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[where[-1]]))
    else:
        holder[where[-1]] = junk(rng)


def add_field(rng: random.Random, config: dict[str, Any]) -> None:
    """A field by its name in the table, such as ``linux.resources.blockIO.weightDevice[].major``."""
    holder: Any = config
    *parents, last = rng.choice(_FIELDS).split(".")
    for name in parents:
        inner = holder.setdefault(name.removesuffix("[]"), [{}] if name.endswith("[]") else {})
        if name.endswith("[]"):
            if not isinstance(inner, list) or not inner:
                return
            inner = rng.choice(inner)
        if not isinstance(inner, dict):
            return
        holder = inner
    holder[last.removesuffix("[]")] = junk(rng)


def text_of(rng: random.Random, config: dict[str, Any]) -> bytes:
    """It as JSON, now and then damaged."""
    encoder = json.JSONEncoder(ensure_ascii=rng.random() < 0.5)
    text = encoder.encode(config).encode("utf-8", "surrogatepass")
    for word in WORDS:
        if word.startswith(RAW):
            text = text.replace(json.dumps(word).encode(), word.removeprefix(RAW).encode())
    if rng.random() < 0.05:
        at, length = rng.randrange(len(text)), rng.randrange(4)
        text = text[:at] + rng.randbytes(rng.randrange(3)) + text[at + length :]
    return text


def judge(directory: Path, text: bytes) -> None:
    """All that ``create`` makes of a configuration on its own. RundctlError where it refuses."""
    (directory / "config.json").write_bytes(text)
    loaded = bundle.load(str(directory))
    config, settings = loaded.spec, Settings()
    for systemd in (False, True):
        if not systemd or config["linux"].get("cgroupsPath", "").count(":") == 2:
            kinds.path_of(config["linux"].get("cgroupsPath", ""), "c1", "root", systemd=systemd)
    asked = limits.parse(config["linux"].get("resources", {}))
    rootfs = transport.nine_p("/")
    request = shapes.request_for(asked, settings, rootfs, volumes=False)
    assert request is not None
    binds = {mount.index: Volume(f"/volumes/{mount.index}") for mount in plan_mounts.binds(loaded)}
    facts = compiler.Facts(
        rootfs_ops=(ops.mount("over", "/root", "overlay"),),
        volumes=binds,
        seccomp_bpf=seccomp.compile_profile(config["linux"]["seccomp"]) if "seccomp" in config["linux"] else None,
        devices=frozenset(path for *_, path in devices.asked(config)[1:]),
        hostname="c1",
    )
    compiled = compiler.compile(loaded, facts)
    assert compiled.encode()
    record = {
        "id": "c1", "oci_version": config["ociVersion"], "bundle": loaded.path, "rootfs": loaded.rootfs,
        "annotations": config.get("annotations", {}), "hooks": config.get("hooks", {}), "created": 1.0, "owner_uid": 0,
    }  # fmt: skip
    json.dumps(state_json(json.loads(json.dumps(record)), Status.CREATING, 1))
