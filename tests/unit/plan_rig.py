"""A bundle of a few words, compiled."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.engine.plan import compiler
from rundctl.engine.plan.mounts import Volume, binds
from rundctl.errors import ConfigError
from rundctl.guest import ops
from rundctl.oci import spec
from rundctl.oci.bundle import Bundle

if TYPE_CHECKING:
    from rundctl.guest.ops import Opcode

DATA = Path(__file__).parent / "data"
BPF = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)  # return ALLOW


def config_of(**sections: Any) -> dict[str, Any]:
    """The example, its sections updated (a level deep)."""
    config: dict[str, Any] = copy.deepcopy(spec.example())
    for name, value in sections.items():
        config[name] = {**config[name], **value} if isinstance(config.get(name), dict) else value
    return config


def plan_of(config: dict[str, Any], **facts: Any) -> compiler.CompiledPlan:
    """Its plan."""
    rootfs_ops = (ops.mount("over", "/root", "overlay"),)
    return compiler.compile(
        Bundle("/b", config, "/b/rootfs"), compiler.Facts(rootfs_ops=rootfs_ops, seccomp_bpf=BPF, **facts)
    )


def ops_of(config: dict[str, Any], opcode: Opcode, **facts: Any) -> list[ops.Op]:
    """Those of a kind."""
    return [op for op in plan_of(config, **facts).ops if op.opcode is opcode]


def refusal_of(config: dict[str, Any], **facts: Any) -> str:
    """Why there is none."""
    with pytest.raises(ConfigError) as caught:
        plan_of(config, **facts)
    return caught.value.message


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What podman wrote, and the facts that go with it."""
    config: dict[str, Any] = json.loads((DATA / f"{name}.json").read_bytes())
    volumes = {mount.index: Volume(f"/volumes/{mount.index}") for mount in binds(Bundle("/b", config, "/b/rootfs"))}
    return config, {"volumes": volumes}
