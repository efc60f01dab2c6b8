"""Where the shim and its QEMU live: namespaces, root, descriptors, volumes, memory."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from shim_rig import wait_for

from rundctl.guest import wire

PROBE = Path(__file__).with_name("guest_probe.py")
PSS_MAX_KIB = 1024
DEADLINE_S = 120.0  # for what must come, on a busy machine


def link(pid, name):
    return os.readlink(f"/proc/{pid}/{name}")


def probe(launch, *, volumes=(), **arguments):
    """Launch with the probe as QEMU; returns the shim and what the probe found."""
    reading, writing = os.pipe()
    number = "1000" if volumes else "none"
    with ExitStack() as opened:
        opened.callback(os.close, reading)
        options = []
        keep = [writing]
        for source, mode, kind in volumes:
            fd = os.open(source, os.O_PATH)
            opened.callback(os.close, fd)
            options += ["--volume", f"{fd},{mode},{kind},{Path(source).name}"]
            keep.append(fd)
        if volumes:
            options += ["--volumes-fd", number]
        options += ["--keep", str(writing)]
        shim = launch(
            qemu=(sys.executable, "-I", "-S", PROBE, writing, number), options=options, keep=keep, **arguments
        )
        os.close(writing)
        with os.fdopen(os.dup(reading), "rb") as report:
            return shim, json.loads(report.readline())


def test_own_namespaces(launch):
    shim, facts = probe(launch)
    shim.planned()
    status = Path(f"/proc/{shim.pid}/status").read_text()
    assert "NSpid:\t" + f"{shim.pid}\t1\n" in status
    for kind, qemus in facts["namespaces"].items():
        ours, shims = link("self", f"ns/{kind}"), link(shim.pid, f"ns/{kind}")
        if kind == "mnt":
            assert len({ours, shims, qemus}) == 3
        elif kind == "pid_for_children":
            assert qemus == link(shim.pid, "ns/pid")
        else:
            assert qemus == shims
            assert (shims == ours) == (kind in ("user", "time", "time_for_children")), kind
    assert facts["names"] == ["guest", "example.org"]


def test_shim_is_the_callers_child_in_its_own_session(launch):
    shim = launch()
    shim.channel.wait_hello(DEADLINE_S)
    assert os.getsid(shim.pid) == shim.pid or os.getsid(shim.pid) == 0
    assert f"PPid:\t{os.getpid()}\n" in Path(f"/proc/{shim.pid}/status").read_text()


def test_root_is_the_rootfs_read_only_and_nothing_else_is_mounted(launch):
    def prepare(directory):
        (directory / "rootfs").mkdir()
        (directory / "rootfs" / "marker").write_text("here")

    shim = launch(prepare=prepare).planned()
    root = Path(f"/proc/{shim.pid}/root")
    assert (root / "marker").read_text() == "here"
    with pytest.raises(OSError, match="Read-only"):
        (root / "new").write_text("x")
    mounts = Path(f"/proc/{shim.pid}/mountinfo").read_text().splitlines()
    assert len(mounts) == 1, mounts
    assert " / ro" in mounts[0]
    assert link(shim.pid, "cwd") == link(shim.pid, "root")


def test_mounts_inside_the_rootfs_are_not_in_the_shims_root(launch, tmp_path):
    def prepare(directory):
        inner = directory / "rootfs" / "proc"
        inner.mkdir(parents=True)
        subprocess.run(["mount", "-t", "proc", "proc", inner], check=True)

    inner = tmp_path / "c0" / "rootfs" / "proc"
    try:
        shim = launch(prepare=prepare).planned()
        assert os.listdir(f"/proc/{shim.pid}/root/proc") == []
    finally:
        subprocess.run(["umount", inner], check=True)


def test_qemu_inherits_only_what_it_was_promised(launch):
    _, facts = probe(launch)
    stdin, stdout, stderr = (facts["descriptors"].pop(fd) for fd in "012")
    (other,) = facts["descriptors"].values()
    assert stdin == "/dev/null"
    assert stdout == stderr != other  # by which the shim hears what it says
    assert stdout.startswith("pipe:")
    assert other.startswith("pipe:")
    assert facts["cwd"] == "/"


def test_shim_holds_no_descriptor_of_the_host_it_does_not_need(launch):
    stray = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(stray, True)
    try:
        shim, _ = probe(launch, keep_too=(stray,))
    finally:
        os.close(stray)
    shim.planned()
    held = [link(shim.pid, f"fd/{fd}") for fd in os.listdir(f"/proc/{shim.pid}/fd")]
    files = [target for target in held if target.startswith("/")]
    assert sorted(files) == sorted(
        ["/dev/null"] * files.count("/dev/null") + [str(shim.state), str(shim.log), str(shim.errors)]
    )
    assert not any("hostname" in target for target in held)


def test_qemu_has_default_signals(launch):
    _, facts = probe(launch)
    assert int(facts["blocked"], 16) == 0
    # The probe, Python, itself ignores SIGPIPE (13) and SIGXFSZ (25); 32 and 33 are the C library's, which lets nobody reset them.
    # A shell's background job, which this suite may be, has its keyboard's signals ignored: SIGINT (2) and SIGQUIT (3). Below nohup: SIGHUP (1).
    ours = [
        number
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
        if signal.getsignal(number) == signal.SIG_IGN
    ]
    allowed = (1 << 12 | 1 << 24 | 1 << 31 | 1 << 32) | sum(1 << (number - 1) for number in ours)
    assert int(facts["ignored"], 16) & ~allowed == 0


def test_qemus_mounts_receive_but_do_not_send(launch):
    _, facts = probe(launch)
    assert all(not any(tag.startswith("shared:") for tag in tags) for tags in facts["propagation"])


def test_volumes_are_assembled_in_order(launch, tmp_path):
    directory = tmp_path / "data"
    inner = directory / "inner"
    inner.mkdir(parents=True)
    (directory / "a").write_text("1")
    file = tmp_path / "file"
    file.write_text("content")
    subprocess.run(["mount", "-t", "tmpfs", "inner", inner], check=True)
    try:
        (inner / "b").write_text("2")
        _, facts = probe(
            launch,
            volumes=[
                (directory, "ro", "tree"),
                (file, "rw", "file"),
                (directory, "rw", "tree"),
                (directory, "rw", "dir"),
            ],
        )
    finally:
        subprocess.run(["umount", inner], check=True)
    assert facts["without_devices"]
    volumes = facts["volumes"]
    assert list(volumes) == ["0", "1", "2", "3"]
    assert volumes["0"] == {
        "name": "data",
        "is_file": False,
        "read_only": True,
        "tree": ["a", "inner", "inner/b"],
        "inner_read_only": [True],
    }
    assert volumes["1"] == {"name": "file", "is_file": True, "read_only": False, "text": "content"}
    assert volumes["2"] == {
        "name": "data",
        "is_file": False,
        "read_only": False,
        "tree": ["a", "inner", "inner/b"],
        "inner_read_only": [False],
    }
    assert volumes["3"]["tree"] == ["a", "inner"]  # `bind` without r: not what is mounted below


def test_a_recursive_volume_has_each_mount_that_can_be_seen_as_it_is(launch, tmp_path):
    """Not what is hidden; nothing of what cannot be copied, has no server any more, or is a namespace; also if what is around one was mounted later than it."""
    source, aside = tmp_path / "a source", tmp_path / "aside"
    for name in ("dead", "stacked", "hidden/below", "flags", "unbindable", "shared", "late"):
        (source / name).mkdir(parents=True)
    for name in ("file", "namespace"):
        (source / name).touch()
    aside.mkdir()
    server = os.open("/dev/fuse", os.O_RDWR)
    with ExitStack() as undo:

        def mount(*words):
            subprocess.run(["mount", *words], pass_fds=[server], check=True)
            if words[-1] != aside:
                undo.callback(subprocess.run, ["umount", words[-1]], check=True)

        def fill(place, *options):
            mount("-t", "tmpfs", *options, "t", source / place)

        for number in range(2):
            fill("stacked")
            (source / "stacked" / str(number)).touch()
        fill("hidden/below")
        fill("hidden")
        fill("flags", "-o", "ro,nosuid,noexec,noatime")
        fill("unbindable", "--make-unbindable")
        fill("shared", "--make-shared")
        mount("-t", "tmpfs", "t", aside)
        (aside / "first").touch()
        fill("late")
        (source / "late/below").mkdir()
        mount("--move", aside, source / "late/below")
        mount("--bind", "/proc/version", source / "file")
        subprocess.run(["unshare", f"--mount={source}/namespace", "true"], check=True)
        undo.callback(subprocess.run, ["umount", source / "namespace"], check=True)
        mount("-i", "-t", "fuse", "-o", f"fd={server},rootmode=40000,user_id=0,group_id=0", "fuse", source / "dead")
        os.close(server)
        shim, facts = probe(launch, volumes=[(source, "rw", "tree")])
        table = Path(f"/proc/{shim.qemu_pid()}/mountinfo").read_text().splitlines()
    assert facts["volumes"]["0"]["tree"] == [
        *("dead", "file", "flags", "hidden", "late", "late/below", "late/below/first", "namespace"),
        *("shared", "stacked", "stacked/1", "unbindable"),
    ]
    fields = [line.split(" - ")[0].split() for line in table if "/0/" in line]
    mounted = (
        "",
        "/dead",
        "/file",
        "/flags",
        "/hidden",
        "/late",
        "/late/below",
        "/namespace",
        "/shared",
        "/stacked",
        "/unbindable",
    )
    assert tuple(sorted(each[4].partition("/state/0/a\\040source")[2] for each in fields)) == mounted
    assert [line.rpartition(" - ")[2].split()[0] for line in table if "/namespace " in line] == ["devtmpfs"]
    assert all(not each[6:] for each in fields)  # nothing propagates
    (flags,) = [set(each[5].split(",")) for each in fields if each[4].endswith("/flags")]
    assert {"ro", "nosuid", "noexec", "noatime"} <= flags


@pytest.fixture
def masked(tmp_path):
    """A source whose a/secret is hidden by a mount, among so many that the table is read in several moments."""
    source = tmp_path / "source"
    (source / "a/secret").mkdir(parents=True)
    (source / "a/secret/key").touch()
    with ExitStack() as undo:

        def fill(place):
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "t", place], check=True)
            undo.callback(subprocess.run, ["umount", place], check=True)

        fill(source / "a/secret")
        for number in range(60):
            fill(source / "room" / str(number))
        yield source


def key_in(launch, source):
    """Whether a guest sees what is hidden; None if there is no guest."""
    try:
        _, facts = probe(launch, volumes=[(source, "rw", "tree")])
    except json.JSONDecodeError:
        return None
    tree = facts["volumes"]["0"]["tree"]
    assert "room/59" in tree
    return any(path.endswith("secret/key") for path in tree)


def test_what_hides_something_is_there_or_no_guest_is_whatever_is_renamed(launch, masked):
    renaming = "import os, sys\nwhile True:\n os.rename('a', 'b')\n os.rename('b', 'a')\n"
    other = subprocess.Popen([sys.executable, "-c", renaming], cwd=masked)
    try:
        assert True not in [key_in(launch, masked) for _ in range(15)]
    finally:
        other.kill()
        other.wait()
        if (masked / "b").exists():
            (masked / "b").rename(masked / "a")


def test_what_hides_something_cannot_be_moved_out_of_reach(launch, masked, tmp_path):
    """To where its path is longer than any that can be opened at once."""
    top = os.open(masked, os.O_RDONLY)
    deepest = os.dup(top)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=deepest)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=deepest)
        os.close(deepest)
        deepest = inner
    os.rename("a", "a", src_dir_fd=top, dst_dir_fd=deepest)
    try:
        assert key_in(launch, masked) is None
        wait_for(lambda: "Device or resource busy" in (tmp_path / "c0/qemu.log").read_text())
    finally:
        os.rename("a", "a", src_dir_fd=deepest, dst_dir_fd=top)
        os.close(deepest)
        os.close(top)


@pytest.mark.usefixtures("own_mounts")
def test_volumes_leave_no_mount_on_the_host(launch, tmp_path):
    before = Path("/proc/self/mountinfo").read_text()
    probe(launch, volumes=[(tmp_path, "rw", "dir")])
    assert Path("/proc/self/mountinfo").read_text() == before


def test_killing_the_shim_kills_qemu(launch):
    shim = launch()
    qemu = os.pidfd_open(shim.qemu_pid())
    os.kill(shim.pid, signal.SIGKILL)
    assert shim.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(qemu, 0)
    os.close(qemu)
    assert not (shim.state / "exit").exists()


def test_oom_score_is_for_both(launch):
    shim = launch(options=("--oom-score-adj", "321"))
    for pid in (shim.pid, shim.qemu_pid()):
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "321\n"


def test_memory_after_a_large_plan_and_much_output(launch, released):
    shim = launch(program=released["shim"])
    tag = shim.channel.post(wire.PLAN, bytes(3 << 20), container=1)
    shim.agent.expect(wire.HELLO)
    request = shim.agent.expect(wire.PLAN)
    shim.agent.hello()
    shim.agent.result(request)
    shim.channel.wait(tag, DEADLINE_S)
    for _ in range(100):
        shim.agent.output(bytes(wire.PAYLOAD_MAX))
        assert shim.agent.expect(wire.CREDIT).payload
    rollup = Path(f"/proc/{shim.pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss < PSS_MAX_KIB, f"{pss} KiB"
