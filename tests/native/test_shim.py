"""The real shim, driven as the CLI drives it; QEMU is a program that sleeps, and the test speaks for the agent."""

import errno
import os
import resource
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from shim_rig import wait_for

from rundctl.errors import GuestError
from rundctl.guest import wire

DEADLINE_S = 120.0  # for what must come, on a busy machine
EXIT_7 = 7 << 8


def test_handshake_and_addressing(launch):
    shim = launch()
    tag = shim.channel.post(wire.PLAN, b"p" * 100_000, container=1)
    hello = shim.agent.expect(wire.HELLO)
    assert hello.payload == struct.pack("<4sHH", b"RUND", wire.VERSION, wire.ROLE_SHIM)
    request = shim.agent.expect(wire.PLAN)
    assert request.payload == b"p" * 100_000
    assert (request.container, request.process) == (1, 0)
    shim.agent.hello()
    shim.agent.result(request, error=errno.ENOENT, index=3, detail=b"/proc")
    result = shim.channel.wait(tag, DEADLINE_S)
    assert (result.error, result.index, result.detail) == (errno.ENOENT, 3, "/proc")


def test_shim_is_mute_until_the_first_request(launch):
    shim = launch()
    os.kill(shim.pid, signal.SIGWINCH)
    assert shim.agent.is_mute(0.1)


@pytest.mark.parametrize(
    ("status", "code"), [(0, 0), (EXIT_7, 7), (255 << 8, 255), (signal.SIGTERM, 143), (signal.SIGSEGV | 0x80, 139)]
)
def test_exit_code_of_the_container(launch, status, code):
    shim = launch().running()
    shim.agent.exited(status)
    assert shim.wait() == code
    record = shim.record()
    assert (record["code"], record["reason"], record["status"]) == (str(code), "container", str(status))
    assert int(record["time_ns"]) > 10**18


def test_started_mark_is_there_before_the_result(launch):
    shim = launch().planned().commit()
    tag = shim.channel.post(wire.START, container=1)
    request = shim.agent.expect(wire.START)
    assert not (shim.state / "started").exists()
    shim.agent.result(request)
    assert shim.channel.wait(tag, DEADLINE_S).error == 0
    assert (shim.state / "started").exists()


def test_what_could_not_be_marked_is_not_started(launch):
    shim = launch().planned().commit()
    (shim.state / "started.new").mkdir()  # no file can be made there
    result = shim.channel.wait(shim.channel.post(wire.START, container=1), DEADLINE_S)
    assert (result.error, result.detail) == (errno.EISDIR, "mark it as started")
    assert shim.agent.is_mute(0.1)
    (shim.state / "started.new").rmdir()
    tag = shim.channel.post(wire.START, container=1)
    shim.agent.result(shim.agent.expect(wire.START))
    assert shim.channel.wait(tag, DEADLINE_S).error == 0
    assert (shim.state / "started").is_file()


def test_failed_start_leaves_no_mark(launch):
    shim = launch().planned().commit()
    tag = shim.channel.post(wire.START, container=1)
    request = shim.agent.expect(wire.START)
    shim.agent.result(request, error=errno.ENOEXEC)
    shim.agent.exited(127 << 8)
    assert shim.channel.wait(tag, DEADLINE_S).error == errno.ENOEXEC
    assert shim.wait() == 127
    assert not (shim.state / "started").exists()


def test_signals_are_forwarded_as_notifications(launch):
    shim = launch().running()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE, signal.SIGWINCH, signal.SIGRTMIN + 3):
        os.kill(shim.pid, number)
        frame = shim.agent.expect(wire.SIGNAL)
        assert (frame.tag, frame.container, struct.unpack("<II", frame.payload)) == (0, 1, (number, 0))


def test_signal_request_reports_the_guests_errno(launch):
    shim = launch().running()
    client = shim.client()
    tag = client.post(wire.SIGNAL, struct.pack("<II", 15, 0), container=1)
    shim.agent.result(shim.agent.expect(wire.SIGNAL), error=errno.ESRCH)
    assert client.wait(tag, DEADLINE_S).error == errno.ESRCH


def test_term_before_the_plan_ends_the_vm(launch):
    shim = launch()
    os.kill(shim.pid, signal.SIGTERM)
    assert shim.wait() == 143
    assert shim.record()["reason"] == "stopped"


def test_creator_gone_before_commit_ends_the_vm(launch):
    shim = launch().planned()
    qemu = os.pidfd_open(shim.qemu_pid())
    shim.channel.close()
    assert shim.wait() == 255
    assert shim.record()["reason"] == "creator"
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(qemu, 0)
    os.close(qemu)


def test_commit_that_arrives_with_the_hangup_counts(launch):
    shim = launch().planned()
    shim.channel.post(wire.COMMIT)
    shim.channel.close()
    assert shim.is_alive(0.2)
    shim.agent.exited(0)
    assert shim.wait() == 0


def test_only_the_creator_commits_and_only_what_is_set_up(launch):
    shim = launch()
    assert shim.channel.wait(shim.channel.post(wire.COMMIT), DEADLINE_S).error == errno.EPERM
    client = shim.client()
    assert client.wait(client.post(wire.COMMIT), DEADLINE_S).error == errno.EPERM


def test_killed_qemu_is_137(launch):
    shim = launch().running()
    os.kill(shim.qemu_pid(), signal.SIGKILL)
    assert shim.wait() == 137
    assert (shim.record()["reason"], shim.record()["detail"]) == ("qemu", "qemu was killed by signal 9")


def test_qemu_killed_by_what_it_maps_is_explained(launch):
    shim = launch().running()
    os.kill(shim.qemu_pid(), signal.SIGBUS)
    assert shim.wait() == 255
    record = shim.record()
    assert record["reason"] == "qemu"
    assert record["detail"].startswith("qemu was killed by signal 7: a file that it maps")
    assert record["detail"].endswith("; see rundctl image verify")


def test_qemu_may_open_as_much_as_the_hard_limit_lets(launch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        shim = launch()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(shim.qemu_pid(), resource.RLIMIT_NOFILE) == (hard, hard)


def test_qemu_that_ends_before_commit_is_told_to_the_creator(launch):
    shim = launch(qemu=("/bin/sh", "-c", "exit 3"))
    with pytest.raises(GuestError, match="qemu exited with status 3"):
        shim.channel.wait(1, DEADLINE_S)
    assert shim.wait() == 255


def test_program_that_cannot_be_executed(launch):
    shim = launch(qemu=("/does/not/exist",))
    with pytest.raises(GuestError, match="qemu exited with status 127"):
        shim.channel.wait(1, DEADLINE_S)
    assert shim.wait() == 255
    assert "/does/not/exist: No such file or directory" in shim.log.read_text()


def test_exited_before_qemus_death_is_honoured(launch):
    shim = launch().running()
    os.kill(shim.pid, signal.SIGSTOP)  # both are there when it looks again
    shim.agent.output(b"last words")
    shim.agent.exited(EXIT_7)
    os.kill(shim.qemu_pid(), signal.SIGKILL)
    os.kill(shim.pid, signal.SIGCONT)
    assert shim.wait() == 7
    assert shim.record()["reason"] == "container"


def test_stop_ends_at_once(launch):
    shim = launch().running()
    client = shim.client()
    assert client.wait(client.post(wire.STOP), DEADLINE_S).error == 0
    assert shim.wait() == 137
    assert shim.record()["reason"] == "stopped"


def test_several_clients_get_their_own_results(launch):
    shim = launch().running()
    clients = [shim.client() for _ in range(5)]
    tags = [client.post(wire.SIGNAL, struct.pack("<II", 10 + i, 0), container=1) for i, client in enumerate(clients)]
    requests = [shim.agent.expect(wire.SIGNAL) for _ in clients]
    assert len({request.tag for request in requests}) == len(clients)
    for request in reversed(requests):
        shim.agent.result(request, error=struct.unpack("<II", request.payload)[0])
    assert [client.wait(tag, DEADLINE_S).error for client, tag in zip(clients, tags, strict=True)] == [
        10,
        11,
        12,
        13,
        14,
    ]


def test_client_that_dies_within_a_message_leaves_nothing_in_the_agents_channel(launch):
    shim = launch().running()
    dying = shim.client()
    dying._send(
        wire.HEADER.pack(1000, wire.PLAN, wire.MORE, 1, 0, 9)
        + b"x" * 1000
        + wire.HEADER.pack(1000, wire.PLAN, 0, 1, 0, 9)
        + b"x" * 10
    )
    dying.close()
    client = shim.client()
    client.post(wire.SIGNAL, struct.pack("<II", 1, 0), container=1)
    assert shim.agent.expect(wire.SIGNAL).container == 1


def test_result_for_a_vanished_client_is_dropped(launch):
    shim = launch().running()
    gone = shim.client()
    gone.post(wire.SIGNAL, struct.pack("<II", 1, 0), container=1)
    request = shim.agent.expect(wire.SIGNAL)
    gone.close()
    client = shim.client()
    tag = client.post(wire.SIGNAL, struct.pack("<II", 2, 0), container=1)
    other = shim.agent.expect(wire.SIGNAL)
    shim.agent.result(request)
    shim.agent.result(other, error=errno.EPERM)
    assert client.wait(tag, DEADLINE_S).error == errno.EPERM


HELLO = wire.HEADER.pack(8, wire.HELLO, 0, 0, 0, 0) + struct.pack("<4sHH", b"RUND", wire.VERSION, wire.ROLE_CLIENT)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        wire.HEADER.pack(0, wire.STOP, 0, 0, 0, 1),
        wire.HEADER.pack(8, wire.HELLO, 0, 0, 0, 0) + struct.pack("<4sHH", b"RUND", 99, 1),
        HELLO + HELLO,
        HELLO + wire.HEADER.pack(0xFFFFFFFF, wire.PLAN, 0, 1, 0, 1),
        HELLO + wire.HEADER.pack(1, wire.DATA, 1, 1, 0, 0) + b"x",
        HELLO + wire.HEADER.pack(0, wire.PLAN, wire.MORE, 1, 0, 1) + wire.HEADER.pack(0, wire.START, 0, 1, 0, 2),
        HELLO
        + (wire.HEADER.pack(32768, wire.PLAN, wire.MORE, 1, 0, 1) + bytes(32768)) * (wire.MESSAGE_MAX // 32768 + 1),
    ],
    ids=["http", "no-hello", "other-version", "two-hellos", "huge-frame", "data", "torn-message", "huge-message"],
)
def test_garbage_drops_only_its_client(launch, garbage):
    shim = launch().running()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.settimeout(DEADLINE_S)
        raw.connect(str(shim.state / "control.sock"))
        try:
            raw.sendall(garbage)
            while raw.recv(4096):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
    client = shim.client()
    tag = client.post(wire.SIGNAL, struct.pack("<II", 1, 0), container=1)
    shim.agent.result(shim.agent.expect(wire.SIGNAL))
    assert client.wait(tag, DEADLINE_S).error == 0


def test_unknown_request_is_refused_and_an_ignorable_notification_is_ignored(launch):
    shim = launch().running()
    client = shim.client()
    client.notify(0x90, b"whatever")
    assert client.wait(client.post(0x7F), DEADLINE_S).error == errno.EOPNOTSUPP
    assert client.wait(client.post(0x90), DEADLINE_S).error == errno.EOPNOTSUPP


def test_client_that_reads_nothing_is_dropped(launch):
    shim = launch().running()
    client = shim.client()
    with pytest.raises(GuestError):
        for _ in range(100_000):
            client._socket.settimeout(DEADLINE_S)
            client.post(0x7F)
    assert shim.is_alive(0)


def frames(*items):
    return b"".join(wire.HEADER.pack(len(p), t, f, c, n, tag) + p for t, f, c, n, tag, p in items)


@pytest.mark.parametrize(
    "lie",
    [
        b"\xff" * 64,
        frames((wire.HELLO, 0, 0, 0, 0, struct.pack("<4sHH", b"RUND", 1, 3))),
        frames((wire.DATA, 0, 1, 0, 0, b"on stdin")),
        frames((wire.DATA, 3, 1, 0, 0, b"on no stream")),
        frames((wire.DATA, 1, 2, 0, 0, b"another container")),
        frames((wire.DATA, 1, 1, 5, 0, b"another process")),
        frames((wire.DATA, 1 | wire.MORE, 1, 0, 0, b"chunked")),
        frames((wire.CLOSE, 1, 1, 0, 0, b""), (wire.DATA, 1, 1, 0, 0, b"after its end")),
        frames((wire.CREDIT, 0, 1, 0, 0, struct.pack("<I", 1))),
        frames((wire.CREDIT, 0, 1, 0, 0, b"12345")),
        frames((wire.CREDIT, 1, 1, 0, 0, struct.pack("<I", 1))),
        frames((wire.RESULT, 0, 1, 0, 77, bytes(8))),
        frames((wire.RESULT, 0, 1, 0, 1, b"")),
        frames((wire.EXITED, 0, 1, 0, 0, b"")),
        frames((wire.PLAN, 0, 1, 0, 3, b"")),
        frames((wire.RESULT, 0, 0, 0, 0, struct.pack("<iI", errno.EPROTO, 0) + b"no\ncode=0\xff")),
    ],
    ids=[
        "noise",
        "two-hellos",
        "data-stdin",
        "data-stream-3",
        "data-container",
        "data-process",
        "data-more",
        "data-after-close",
        "credit-unsent",
        "credit-size",
        "credit-stdout",
        "result-unasked",
        "result-short",
        "exited-short",
        "request",
        "complaint",
    ],
)
def test_an_agent_that_lies_ends_the_vm(launch, lie):
    shim = launch().running()
    shim.agent.raw(lie)
    assert shim.wait() == 255
    record = shim.record()
    assert record["reason"] == "agent"
    assert record["code"] == "255"


def test_agents_unknown_but_ignorable_message_is_ignored(launch):
    shim = launch().running()
    shim.agent.send(0x80, b"from the future")
    shim.agent.exited(0)
    assert shim.wait() == 0


def test_agents_channel_closing_ends_the_vm(launch):
    shim = launch().running()
    shim.agent.socket.close()
    assert shim.wait() == 255
    assert shim.record()["reason"] == "agent"


def test_qmp_is_not_read_before_commit_and_drained_after(launch):
    shim = launch().planned()
    block = b"e" * 65536
    shim.qmp.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += shim.qmp.send(block)
    shim.commit()
    shim.qmp.setblocking(True)
    shim.qmp.settimeout(DEADLINE_S)
    shim.qmp.sendall(block * 8)
    assert sent > 0


def test_launch_says_which_option_is_wrong(sanitized):
    done = subprocess.run(
        [sanitized["shim"], "launch", "--agent", "x", "--", "/bin/true"], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, b"shim: x\n")
    done = subprocess.run([sanitized["shim"]], capture_output=True, check=False)
    assert done.returncode == 2


def test_the_cgroups_lock_is_taken_ahead_of_kvm_at_the_start_and_at_the_end(launch, tmp_path):
    procs = tmp_path / "cgroup.procs"  # the kernel's takes each "0" for a process that attaches itself
    with procs.open("a") as attach:
        shim = launch(options=("--attach", str(attach.fileno())), keep=(attach.fileno(),))
    wait_for(lambda: procs.read_text() == "00")
    shim.channel.close()
    shim.wait()
    assert procs.read_text().startswith("00")
    assert set(procs.read_text()) == {"0"}


def test_a_lock_that_is_not_to_be_had_keeps_nobody_from_a_start(launch, tmp_path):
    (tmp_path / "cgroup.procs").touch()
    with (tmp_path / "cgroup.procs").open() as attach:  # open for reading: EBADF
        shim = launch(options=("--attach", str(attach.fileno())), keep=(attach.fileno(),))
    shim.running()
    shim.agent.exited(EXIT_7)
    assert shim.wait() == 7


def test_launcher_joins_its_cgroups_and_tells_how_long_it_took(launch):
    cgroup = Path(f"/sys/fs/cgroup/pids/rundctl-test-{os.getpid()}")
    if not cgroup.parent.is_dir():
        pytest.skip("no pids hierarchy of cgroup v1")
    cgroup.mkdir()
    try:
        with (cgroup / "cgroup.procs").open("w") as procs:
            shim = launch(options=("--cgroup", str(procs.fileno())), keep=(procs.fileno(),))
        assert str(shim.pid) in (cgroup / "cgroup.procs").read_text().split()
        join_us, clone_us = shim.took_us
        assert 0 < join_us < DEADLINE_S * 1e6
        assert 0 < clone_us < DEADLINE_S * 1e6
        shim.channel.close()
        shim.wait()
    finally:
        cgroup.rmdir()


def test_cgroup_that_cannot_be_joined_is_told_to_the_creator(launch, tmp_path):
    target = tmp_path / "not-a-cgroup"
    target.write_bytes(b"")
    with target.open("rb") as wrong:
        shim = launch(wait=False, options=("--cgroup", str(wrong.fileno())), keep=(wrong.fileno(),))
    with pytest.raises(GuestError, match="launch: join cgroup: Bad file descriptor"):
        shim.channel.wait_notice(wire.PID, DEADLINE_S)
    assert shim.launcher.wait(DEADLINE_S) == 1
