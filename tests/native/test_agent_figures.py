"""What the agent tells of a container: its figures.c on made-up directories, with sanitizers, and the requests through the real agent."""

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rundctl.guest import wire

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import build
from agent_rig import ENVIRONMENT, Bundle, Rig

DEADLINE_S = 120.0  # for what must come, on a busy machine
SLEEP_STAT = b"7 (sleep) S 1 7 7 0 -1 4194304 82 0 0 0 1 2 0 0 20 0 1 0 4711 1150976 123"


@pytest.fixture(scope="session")
def probe(tmp_path_factory):
    target = tmp_path_factory.mktemp("figures") / "probe"
    native = build.NATIVE
    files = [Path(__file__).with_name("figures_probe.c"), native / "agent/figures.c"]
    includes = [f"-I{native / name}" for name in ("agent", "common", "include")]
    subprocess.run(
        ["cc", *build.LANGUAGE, *build.WARNINGS, *build.SANITIZE, *includes, "-o", target, *files], check=True
    )
    return target


@pytest.fixture
def figures(probe):
    def ask(*words, payload=b""):
        done = subprocess.run(
            [probe, *map(str, words)],
            input=payload,
            capture_output=True,
            env=ENVIRONMENT,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        size = int(done.stderr)
        return done.stdout if size > 0 else size

    return ask


# READ


def files_of(answer):
    error, count = struct.unpack_from("<iI", answer)
    assert error == 0
    offset, found = 8, []
    for _ in range(count):
        status, size = struct.unpack_from("<iI", answer, offset)
        offset += 8
        found.append(errno.errorcode[status] if status else answer[offset : offset + size])
        offset += size
    assert offset == len(answer)
    return found


def names(*wanted):
    return b"".join(name.encode() + b"\0" for name in wanted)


def test_files_in_order_and_those_that_are_not_there(figures, tmp_path):
    (tmp_path / "cpu.stat").write_bytes(b"usage_usec 1\n")
    (tmp_path / "memory.current").write_bytes(b"5\n")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    wanted = names("memory.current", "none", "cpu.stat", "empty", "directory", "link", "fifo")
    found = files_of(figures("read", tmp_path, payload=wanted))
    assert found == [b"5\n", "ENOENT", b"usage_usec 1\n", b"", "EISDIR", "ELOOP", b""]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "x" * 65])
def test_what_is_no_plain_name_is_refused(figures, tmp_path, name):
    assert figures("read", tmp_path, payload=names("cpu.stat", name)) == -errno.EINVAL


def test_malformed_requests(figures, tmp_path):
    assert figures("read", tmp_path) == -errno.EPROTO
    assert figures("read", tmp_path, payload=b"cpu.stat") == -errno.EPROTO
    assert figures("read", tmp_path, payload=names(*["a"] * (wire.FILES_MAX + 1))) == -errno.EINVAL
    assert figures("read", tmp_path / "none", payload=names("a")) == -errno.ENOENT


def test_an_answer_never_exceeds_a_frame(figures, tmp_path):
    for number in range(wire.FILES_MAX):
        (tmp_path / f"f{number}").write_bytes(b"x" * 1000)
    (tmp_path / "huge").write_bytes(b"x" * 100_000)
    answer = figures("read", tmp_path, payload=names(*(f"f{number}" for number in range(wire.FILES_MAX))))
    assert len(answer) <= wire.PAYLOAD_MAX
    found = files_of(answer)
    assert found[:30] == [b"x" * 1000] * 30
    assert found[-1] == "EFBIG"
    assert files_of(figures("read", tmp_path, payload=names("huge", "f1"))) == ["EFBIG", b"x" * 1000]
    everywhere = figures("read", tmp_path, payload=names(*["huge"] * wire.FILES_MAX))
    assert files_of(everywhere) == ["EFBIG"] * wire.FILES_MAX


# PROCESSES


def add(
    proc,
    pid,
    *,
    cgroup=b"0::/c1\n",
    stat=SLEEP_STAT,
    status=b"Name:\tsleep\nUid:\t0\t0\t0\t0\nNSpid:\t7\t1\n",
    cmdline=b"sleep\0",
):
    directory = proc / str(pid)
    directory.mkdir()
    for name, content in (("cgroup", cgroup), ("stat", stat), ("status", status), ("cmdline", cmdline)):
        if content is not None:
            (directory / name).write_bytes(content)


def page(answer):
    error, count, following, uptime_ns = struct.unpack_from("<iIQQ", answer)
    assert (error, uptime_ns > 0) == (0, True)
    offset, found = 24, []
    for _ in range(count):
        record = []
        for _ in range(3):
            (size,) = struct.unpack_from("<I", answer, offset)
            record.append(answer[offset + 4 : offset + 4 + size])
            offset += 4 + size
        found.append(tuple(record))
    assert offset == len(answer)
    return found, following


def test_members_and_those_below_are_told_and_no_others(figures, tmp_path):
    add(tmp_path, 7)
    add(tmp_path, 8, cgroup=b"0::/c1/deeper\n", cmdline=b"a\0b\0")
    add(tmp_path, 9, cgroup=b"3:name=x:/\n1:cpu:/c1\n0::/c1\n")
    for pid, cgroup in enumerate(
        (b"0::/c2\n", b"0::/c11\n", b"0::/\n", b"", b"1:x:0::/c1\n", b"x" * 9000, None), start=20
    ):
        add(tmp_path, pid, cgroup=cgroup)
    (tmp_path / "uptime").write_text("1 1\n")
    (tmp_path / "self").symlink_to("7")
    found, following = page(figures("processes", tmp_path, 1, payload=bytes(8)))
    assert sorted(found) == sorted(
        [
            (SLEEP_STAT, b"Uid:\t0\t0\t0\t0\nNSpid:\t7\t1\n", arguments)
            for arguments in (b"sleep\0", b"a\0b\0", b"sleep\0")
        ]
    )
    assert following == 0


def test_hostile_and_vanishing_processes(figures, tmp_path):
    add(
        tmp_path,
        1,
        stat=b"x" * 5000,
        status=b"Groups:\t" + b"1 " * 50_000 + b"\nUid:\t5\t5\t5\t5\nNSpid:" + b"\t1" * 33 + b"\n",
        cmdline=bytes(range(256)) * 10,
    )
    add(tmp_path, 2, stat=None)
    add(tmp_path, 3, stat=b"")
    add(tmp_path, 4, status=None, cmdline=None)
    add(tmp_path, 5, status=b"Uid:\t" * 5000 + b"\n" + b"Uid:\t1\n" * 500)
    found, _ = page(figures("processes", tmp_path, 1, payload=bytes(8)))
    by_arguments = {record[2]: record for record in found}
    long = by_arguments[(bytes(range(256)) * 10)[:512]]
    assert long[0] == b"x" * 1024
    assert long[1] == b"Uid:\t5\t5\t5\t5\nNSpid:" + b"\t1" * 33 + b"\n"
    assert by_arguments[b""] == (SLEEP_STAT, b"", b"")
    assert len(by_arguments[b"sleep\0"][1]) <= 512
    assert len(found) == 3


def test_many_come_in_pages_and_each_once(figures, tmp_path):
    pids = range(1, 1201)
    for pid in pids:
        add(tmp_path, pid, stat=b"%d " % pid + SLEEP_STAT, cmdline=b"x" * 400)
    seen, following = [], 0
    for _ in pids:
        found, following = page(figures("processes", tmp_path, 1, payload=struct.pack("<Q", following)))
        assert found
        seen += [int(record[0].split()[0]) for record in found]
        if not following:
            break
    assert sorted(seen) == list(pids)


def test_malformed_place(figures, tmp_path):
    assert figures("processes", tmp_path, 1, payload=b"1234567") == -errno.EPROTO
    add(tmp_path, 7)
    for place in (1, 2**31, 2**63, 2**64 - 1):
        answer = figures("processes", tmp_path, 1, payload=struct.pack("<Q", place))
        assert isinstance(answer, int) or len(page(answer)[0]) <= 1


# Through the agent


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_requests_through_the_agent(sanitized, tmp_path):
    with Rig(sanitized["agent"]) as rig:
        bundle = Bundle(tmp_path)
        for kind, payload in ((wire.READ, names("cpu.stat")), (wire.PROCESSES, bytes(8))):
            assert rig.ask(kind, payload, container=1).error == errno.ESRCH
            assert rig.ask(kind, payload, container=0).error == errno.ESRCH
        assert rig.create(bundle.plan("sleep", "100")).error == 0
        assert (
            rig.ask(wire.READ, names("cpu.stat"), container=1).error == errno.ENOENT
        )  # an agent on a host has no cgroup
        assert rig.ask(wire.READ, names("../cgroup.procs"), container=1).error == errno.EINVAL
        assert rig.ask(wire.READ, b"", container=1).error == errno.EPROTO
        assert rig.ask(wire.READ, names("cpu.stat"), container=1, process=5).error == errno.ESRCH
        listed = rig.ask(wire.PROCESSES, bytes(8), container=1)
        assert (listed.error, listed.index, len(listed.data)) == (0, 0, 16)
        assert rig.ask(wire.PROCESSES, b"", container=1).error == errno.EPROTO


def test_a_clock_that_is_none_is_a_violation(sanitized):
    """A right one would set this host's."""
    for payload, container in ((bytes(8), 0), (bytes(16), 1)):
        with Rig(sanitized["agent"]) as rig:
            rig.channel.notify(wire.CLOCK, payload, container=container)
            with pytest.raises(Exception, match="bad clock"):
                rig.ask(wire.START, container=1)
