"""Both decoders of bytes that others send, under coverage-guided fuzzing (libFuzzer) with sanitizers: 15 s each, beginning with what our own encoder makes."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.guest import ops, wire

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native"))
import build

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = int(os.environ.get("RUNDCTL_FUZZ_S", "15"))
RUNTIME = "libclang_rt.fuzzer-x86_64.a"
SLOWEST_S = 10  # an input that takes longer is a finding
HERE = Path(__file__).resolve().parent


def _has_runtime() -> bool:
    if shutil.which("clang") is None:
        return False
    argv = ["clang", f"-print-file-name={RUNTIME}"]
    return os.path.isabs(subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


def _frame(kind: int, payload: bytes, *, flags: int = 0, container: int = 1, tag: int = 0) -> bytes:
    return wire.HEADER.pack(len(payload), kind, flags, container, 0, tag) + payload


def _conversations() -> list[bytes]:
    hello = _frame(wire.HELLO, struct.pack("<4sHH", wire.MAGIC, wire.VERSION, wire.ROLE_CLIENT), container=0)
    joined = _frame(wire.PLAN, b"first", flags=wire.MORE, tag=7) + _frame(wire.PLAN, b"second", tag=7)
    data = _frame(wire.DATA, b"x" * 100, flags=wire.STDOUT) + _frame(wire.CLOSE, b"", flags=wire.STDOUT)
    long = _frame(wire.DATA, bytes(wire.PAYLOAD_MAX), flags=wire.STDERR)
    said = hello + joined + data + _frame(wire.RESULT, struct.pack("<iI", 2, 3) + b"why", tag=9)
    return [
        bytes([mode, pace]) + talk
        for mode in range(4)
        for pace in (0, 40, 255)
        for talk in (said, hello + long, joined + data)
    ]


def _plans() -> list[bytes]:
    examples = [
        ops.mount("s", "/t", "tmpfs"), ops.bind("/s", "/t"), ops.mknod("/n", 0o20666), ops.symlink("/l", "t"), ops.pivot(), ops.ids(1, 2, (3, 4)),
        ops.caps(1, 2, 3, 4), ops.seccomp(0, b"12345678"), ops.env(("A=b", "C=")), ops.find("x"), ops.streams(1, joined=True), ops.wait(), ops.exec_(("x", "y")),
    ]  # fmt: skip
    machine = [ops.mkdir("/d"), ops.write("/w", "t"), ops.device_filter("/c", b"12345678"), ops.link_up("lo")]
    plans = [
        ops.Plan(0x20000, tuple(examples)),
        ops.Plan(0x6C020080, (ops.wait(), ops.exec_(("x",))), boottime_offset_ns=-1),
    ]
    return [*(b"\1" + plan.encode() for plan in plans), b"\0" + ops.Plan(0, tuple(machine)).encode(), b"\0"]


@pytest.mark.parametrize(("name", "part", "seeds"), [("framing", "common", _conversations), ("plan", "agent", _plans)])
def test_no_input_does_harm(tmp_path: Path, name: str, part: str, seeds: Callable[[], list[bytes]]) -> None:
    if not _has_runtime():
        pytest.skip("no clang with libFuzzer: tools/setup test installs clang and libclang-rt-dev")
    program, corpus = tmp_path / f"fuzz_{name}", tmp_path / "corpus"
    subprocess.run(build.fuzz_command(HERE / f"fuzz_{name}.c", program, program=part), check=True)
    corpus.mkdir()
    given = seeds()
    for number, seed in enumerate(given):
        (corpus / f"seed{number}").write_bytes(seed)
    limits = [f"-max_total_time={SECONDS}", f"-timeout={SLOWEST_S}", "-rss_limit_mb=1024", "-max_len=70000"]
    argv = [program, corpus, *limits, "-print_final_stats=1", f"-artifact_prefix={tmp_path}/found-"]
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    found = {path.name: path.read_bytes()[:2000] for path in tmp_path.glob("found-*")}
    assert (done.returncode, found) == (0, {}), done.stdout[-4000:]
    units = re.search(r"stat::number_of_executed_units: (\d+)", done.stdout)
    assert units is not None
    assert int(units[1]) > 100 * SECONDS, "it hardly ran"
    assert len(list(corpus.iterdir())) > len(given), "it found nothing new to try"
