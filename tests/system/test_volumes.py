"""Bind mounts: what the host has is what the container sees, and the reverse, at once; nothing leads out of them, and no mount stays behind.

One container a transport has all kinds of them, and a shell that does what the tests say. runc is held to the same expectations; where a VM
cannot do as runc does, the test says so.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path

import pytest

from . import host_mounts
from .conftest import DEADLINE_S, JsonDict, eventually
from .runtimes import RUNC, VOLUME_TRANSPORTS, Runtime, bind, exchange, nothing_is_left, running, runtime_of

pytestmark = pytest.mark.vm
END = "-- done"
SIZE = 3_000_001  # bytes; several messages of any transport


class Guest:
    """A container's shell, and the host's directories behind its volumes."""

    def __init__(self, container: str, run: subprocess.Popen[bytes], host: Path) -> None:
        self.container = container
        self.run = run
        self.host = host
        self.other = self  # another container with the same /rw

    def __call__(self, command: str, code: int = 0) -> str:
        """Run a command; its output and errors."""
        assert self.run.stdin is not None
        assert self.run.stdout is not None
        # In a subshell of its own, so that nothing that goes wrong ends the conversation.
        self.run.stdin.write(f"( {command}\n) 2>&1 </dev/null; code=$?; echo; echo '{END}' $code\n".encode())
        self.run.stdin.flush()
        lines = []
        for line in self.run.stdout:
            if line.startswith(END.encode()):
                said = b"".join(lines).decode(errors="surrogateescape").removesuffix("\n")
                assert int(line.split()[-1]) == code, (command, said)
                return said
            lines.append(line)
        raise AssertionError(f"the container ended amid {command!r}: {lines!r}")

    @property
    def is_vm(self) -> bool:
        return self.container != RUNC


def _fill(host: Path, stack: ExitStack) -> None:
    """Sources, and a mount inside two of them."""
    for name in ("rw", "ro", "target", "nested/inside", "plain/inside", "nested-ro/inside", "owned"):
        (host / name).mkdir(parents=True)
    for name in ("nested", "plain", "nested-ro"):
        (host / name / "below").write_text("below\n")
        (host / name / "inside/covered").write_text("covered\n")
        subprocess.run(["mount", "-t", "tmpfs", "volume", host / name / "inside"], check=True)
        stack.callback(subprocess.run, ["umount", host / name / "inside"], check=True)
        (host / name / "inside/mounted").write_text("mounted\n")
    (host / "nested/locked").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "volume", host / "nested/locked"], check=True)
    stack.callback(subprocess.run, ["umount", host / "nested/locked"], check=True)
    (host / "owned").chmod(0o777)
    for name in ("single", "single-ro", "replaced", "of-a-link"):
        (host / name).write_text("one\n")
    (host / "ro/file").write_text("read me\n")
    (host / "link").symlink_to("target")
    (host / "link-to-file").symlink_to("of-a-link")
    (host / "secret").write_text("the host's\n")
    (host / "rw/absolute").symlink_to("/etc/passwd")
    (host / "rw/secret").symlink_to(host / "secret")
    (host / "rw/dots").symlink_to("../" * 20 + "etc/passwd")
    (host / "rw/up").symlink_to("../secret")


def _mounts(host: Path) -> list[JsonDict]:
    return [
        bind(host / "rw", "/rw", "bind", "rw", "private"),
        bind(host / "ro", "/ro", "bind", "ro"),
        bind(host / "rw", "/rw-as-ro", "bind", "ro", "slave"),
        bind(host / "nested", "/nested", "rbind", "rprivate"),
        bind(host / "plain", "/plain", "bind", "rslave"),
        bind(host / "nested-ro", "/nested-rro", "rbind", "rro"),
        bind(host / "nested-ro", "/nested-ro", "rbind", "ro"),
        bind(host / "single", "/etc/single", "bind"),
        bind(host / "single-ro", "/single-ro", "bind", "ro"),
        bind(host / "replaced", "/replaced", "bind"),
        bind(host / "link", "/of-link", "bind"),
        bind(host / "link-to-file", "/file-of-link", "bind"),
        bind(host / "owned", "/owned", "bind", "unbindable"),
        bind(host / "target", "/link-in-image/here", "bind"),
        bind(Path("/"), "/host", "bind", "ro"),
    ]


@pytest.fixture(scope="module")
def image(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Busybox, and a link that a destination leads through."""
    copy = tmp_path_factory.mktemp("volumes") / "rootfs"
    subprocess.run(["cp", "-a", rootfs, copy], check=True)
    (copy / "link-in-image").symlink_to("/var/../../../tmp")
    return copy


@contextmanager
def _guest(runtime: Runtime, container: str, name: str, host: Path, mounts: list[JsonDict]) -> Iterator[Guest]:
    def change(config: JsonDict) -> None:
        config["mounts"] += mounts

    with running(runtime, name, ["/bin/sh"], change) as run:
        yield Guest(container, run, host)
        assert run.stdin is not None
        run.stdin.close()
        assert run.wait(DEADLINE_S) == 0


@pytest.fixture(scope="module", params=(*VOLUME_TRANSPORTS, RUNC))
def guest(
    request: pytest.FixtureRequest, template: str, image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    """A container with all volumes, and another one with the first of them. Afterwards the host has the mounts it had."""
    directory = tmp_path_factory.mktemp(request.param)
    host = directory / "host"
    with host_mounts.unchanged(directory), ExitStack() as stack:
        _fill(host, stack)
        runtime = runtime_of(request.param, image, directory)
        with (
            _guest(runtime, request.param, "all", host, _mounts(host)) as guest,
            _guest(runtime, request.param, "other", host, _mounts(host)[:1]) as guest.other,
        ):
            yield guest
    if request.param != RUNC:
        nothing_is_left(directory)


@pytest.mark.parametrize(
    ("place", "name"),
    [("/rw", "rw"), ("/of-link", "target"), ("/etc/single", "single"), ("/file-of-link", "of-a-link")],
)
def test_mountinfo_tells_the_name_of_the_source(guest: Guest, place: str, name: str) -> None:
    (line,) = guest(f"grep ' {place} ' /proc/self/mountinfo").splitlines()
    # Where virtiofsd tells file systems apart, a directory is a mount of its own, seen from its root.
    names = {name, ""} if guest.container == "virtiofs" else {name}
    assert Path(line.split()[3]).name in names


def test_read_only_and_not(guest: Guest) -> None:
    assert guest("cat /ro/file") == "read me\n"
    for command in (
        "echo x > /ro/new",
        "echo x >> /ro/file",
        "rm /ro/file",
        "mkdir /rw-as-ro/d",
        "echo x > /single-ro",
    ):
        assert "Read-only file system" in guest(command, 1)
    assert guest("echo from the guest > /rw/made; cat /rw-as-ro/made") == "from the guest\n"
    assert (guest.host / "rw/made").read_text() == "from the guest\n"
    assert (guest.host / "ro/file").read_text() == "read me\n"


def test_read_only_cannot_be_undone_on_the_host(guest: Guest) -> None:
    """By root with CAP_SYS_ADMIN, in its own mount namespace."""
    guest("mount -o remount,bind,rw /rw-as-ro; echo x > /rw-as-ro/undone; true")
    if guest.is_vm:  # runc's own mount is what is made writable
        assert not (guest.host / "rw/undone").exists()


def test_rbind_shows_mounts_and_bind_does_not(guest: Guest) -> None:
    assert guest("ls /nested /nested/inside") == "/nested:\nbelow\ninside\nlocked\n\n/nested/inside:\nmounted\n"
    assert guest("ls /plain /plain/inside") == "/plain:\nbelow\ninside\n\n/plain/inside:\ncovered\n"
    guest("echo x > /nested/inside/new")
    assert (guest.host / "nested/inside/new").read_text() == "x\n"
    assert guest("cat /nested/inside/../below; cd /nested/inside && cat ../below") == "below\n" * 2
    assert "Read-only file system" in guest("echo x > /nested/locked/new", 1)  # what the host has so stays so
    assert "Read-only file system" in guest("echo x > /nested-rro/inside/new", 1)
    # Of runc's mounts `ro` concerns the first; in a VM all of a volume is one mount.
    assert "Read-only file system" in guest("echo x > /nested-ro/new", 1)
    guest("echo x > /nested-ro/inside/new", int(guest.is_vm))


def test_a_mount_over_a_link_stays_in_the_root(guest: Guest) -> None:
    (guest.host / "target/file").write_text("through the link\n")
    assert guest("cat /tmp/here/file /link-in-image/here/file") == "through the link\n" * 2
    assert guest("cat /of-link/file") == "through the link\n"  # the source was one, too
    assert guest("cat /file-of-link") == "one\n"


def test_what_the_host_does_is_seen(guest: Guest) -> None:
    """At once, whatever the guest has looked at before."""
    path = guest.host / "rw/host"
    assert "No such file" in guest("cat /rw/host", 1)
    path.write_text("first\n")
    assert guest("cat /rw/host; stat -c %s /rw/host") == "first\n6\n"
    path.write_text("other\n")  # the same size
    assert guest("cat /rw/host") == "other\n"
    with path.open("a") as file:
        file.write("appended\n")
    assert guest("cat /rw/host; stat -c %s /rw/host") == "other\nappended\n15\n"
    os.truncate(path, 3)
    assert guest("cat /rw/host; stat -c %s /rw/host") == "oth3\n"
    path.chmod(0o604)
    os.chown(path, 70000, 5)
    os.utime(path, (1, 1_000_000_000))
    assert guest("stat -c '%a %u %g %Y' /rw/host") == "604 70000 5 1000000000\n"
    path.rename(path.with_name("renamed"))
    assert guest("test ! -e /rw/host && cat /rw/renamed") == "oth"
    (path.with_name("new")).write_text("new inode\n")
    path.with_name("new").rename(path.with_name("renamed"))
    assert guest("cat /rw/renamed") == "new inode\n"
    path.with_name("renamed").unlink()
    assert guest("ls /rw | grep -c renamed", 1) == "0\n"
    (guest.host / "rw/tree/deep").mkdir(parents=True)
    assert guest("ls /rw/tree") == "deep\n"
    (guest.host / "rw/tree/deep").rmdir()
    assert guest("ls /rw/tree") == ""
    (guest.host / "rw/tree").rmdir()
    (guest.host / "rw/tree").write_text("a file now\n")
    assert guest("cat /rw/tree") == "a file now\n"


def test_what_the_guest_does_is_seen(guest: Guest) -> None:
    path = guest.host / "rw/guest"
    guest("echo first > /rw/guest")
    assert path.read_text() == "first\n"
    guest("echo more >> /rw/guest")
    assert path.read_text() == "first\nmore\n"
    guest("truncate -s 3 /rw/guest; chmod 4710 /rw/guest; touch -d @1000000000 /rw/guest")
    assert path.read_text() == "fir"
    assert (path.stat().st_mode & 0o7777, path.stat().st_mtime) == (0o4710, 1_000_000_000)
    guest("mv /rw/guest /rw/guest2; ln /rw/guest2 /rw/guest3; ln -s guest2 /rw/guest4; mkdir /rw/guest5")
    assert not path.exists()
    assert (guest.host / "rw/guest2").samefile(guest.host / "rw/guest3")
    assert os.readlink(guest.host / "rw/guest4") == "guest2"
    assert (guest.host / "rw/guest5").is_dir()
    guest("rmdir /rw/guest5; rm /rw/guest[2-4]")
    assert not list((guest.host / "rw").glob("guest*"))
    guest("echo a > /rw/a; echo b > /rw/b; mv /rw/a /rw/b")
    assert (guest.host / "rw/b").read_text() == "a\n"


def test_both_write_to_one_file_in_turn(guest: Guest) -> None:
    path = guest.host / "rw/log"
    for turn in range(5):
        with path.open("a") as file:
            file.write(f"host {turn}\n")
        guest(f"echo guest {turn} >> /rw/log")
    expected = "".join(f"host {turn}\nguest {turn}\n" for turn in range(5))
    assert path.read_text() == expected
    assert guest("cat /rw/log") == expected


def test_large_files_arrive_whole(guest: Guest) -> None:
    data = random.Random(1).randbytes(SIZE)
    (guest.host / "rw/large").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    assert guest("sha256sum < /rw/large").split()[0] == digest
    guest("cp /rw/large /rw/copied; dd if=/dev/null of=/rw/copied bs=1 conv=notrunc,fsync")
    assert hashlib.sha256((guest.host / "rw/copied").read_bytes()).hexdigest() == digest


def test_what_is_open_outlives_its_name(guest: Guest) -> None:
    """Also by what others do on the host."""
    (guest.host / "rw/open").write_text("still here\n")
    assert guest("exec 3< /rw/open; rm /rw/open; cat <&3") == "still here\n"
    assert not (guest.host / "rw/open").exists()
    guest("exec 3>> /rw/moving; mv /rw/moving /rw/moved; echo to the moved one >&3")
    assert (guest.host / "rw/moved").read_text() == "to the moved one\n"


def test_a_single_file(guest: Guest) -> None:
    single = guest.host / "single"
    assert guest("cat /etc/single; echo two >> /etc/single") == "one\n"
    assert single.read_text() == "one\ntwo\n"
    single.write_text("by the host\n")
    assert guest("cat /etc/single") == "by the host\n"
    assert "busy" in guest("echo x > /etc/x; mv /etc/x /etc/single", 1).lower()
    assert "busy" in guest("rm /etc/single", 1).lower()
    assert single.read_text() == "by the host\n"


def test_a_single_file_that_is_replaced(guest: Guest) -> None:
    """The file is bound, not its name: as with runc, the container keeps the old one, and writes to nobody's new one."""
    replaced = guest.host / "replaced"
    replaced.with_name("new").write_text("new\n")
    replaced.with_name("new").rename(replaced)
    assert guest("cat /replaced; echo more >> /replaced; cat /replaced") == "one\none\nmore\n"
    assert replaced.read_text() == "new\n"
    replaced.unlink()
    assert guest("cat /replaced") == "one\nmore\n"


def test_owners(guest: Guest) -> None:
    """Root's files are root's on the host, a user's are the user's."""
    guest("echo > /owned/roots; mkdir /owned/roots-directory; chown 70000:70001 /owned/roots-directory")
    guest("""su user -c 'echo > /owned/users; mkdir /owned/users-directory; ln -s x /owned/users-link'""")
    owners = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in (guest.host / "owned").iterdir()}
    users = dict.fromkeys(("users", "users-directory", "users-link"), (1000, 1000))
    assert owners == {"roots": (0, 0), "roots-directory": (70000, 70001), **users}
    (guest.host / "owned/for-root").write_text("root's\n")
    (guest.host / "owned/for-root").chmod(0o600)
    assert "Permission denied" in guest("su user -c 'cat /owned/for-root'", 1)
    assert guest("stat -c '%u %g' /owned/users; cat /owned/for-root") == "1000 1000\nroot's\n"


def test_acls_hold(guest: Guest) -> None:
    """An ACL of the host lets one user of the container read, and goes with what is copied."""
    path = guest.host / "owned/acl"
    path.write_text("for user 1000\n")
    acl = bytes.fromhex("0200000001000600ffffffff02000400e803000004000000ffffffff10000400ffffffff20000000ffffffff")
    os.setxattr(path, "system.posix_acl_access", acl)
    if guest.container == "virtiofs":  # volumes of several file systems: docs/rootfs.md
        assert "Permission denied" in guest("su user -c 'cat /owned/acl'", 1)
        return
    assert guest("su user -c 'cat /owned/acl'") == "for user 1000\n"
    assert "Permission denied" in guest("su user -c 'echo > /owned/acl'", 1)


def test_links_lead_into_the_guest(guest: Guest) -> None:
    own = guest("cat /etc/passwd")
    assert "user:x:1000" in own
    assert own != Path("/etc/passwd").read_text()
    assert guest("cat /rw/absolute") == own
    assert guest("cat /rw/dots") == own
    for name in ("secret", "up"):
        assert "No such file" in guest(f"cat /rw/{name}", 1)
    guest(f"ln -s {guest.host}/secret /rw/by-guest; ln -s ../secret /rw/by-guest2")
    assert "No such file" in guest("cat /rw/by-guest", 1)
    assert "No such file" in guest("cat /rw/by-guest2", 1)
    assert guest("ls -ai / | head -1") == guest("cd /rw/..; ls -ai | head -1")


def test_hard_links(guest: Guest) -> None:
    """One to a file outside is that file, as with runc: the host has put it there. The guest makes none from one volume into another."""
    outside = guest.host / "outside-hard"
    outside.write_text("the host's\n")
    os.link(outside, guest.host / "rw/hard")
    assert guest("cat /rw/hard; echo more >> /rw/hard") == "the host's\n"
    assert outside.read_text() == "the host's\nmore\n"
    for command in ("ln /ro/file /rw/mine", "ln /rw-as-ro/hard /rw/mine", "ln /rw/hard /owned/mine"):
        assert "cross-device link" in guest(command, 1).lower()
    assert "Read-only file system" in guest("ln /ro/file /ro/mine", 1)
    assert not [path for name in ("rw", "ro", "owned") for path in (guest.host / name).glob("mine")]


def _swappable(guest: Guest, name: str) -> tuple[Path, Path, Path]:
    """A directory in /rw, a link that is to take its place, and where outside it leads: for whoever follows it on the host."""
    directory, link, outside = (guest.host / path for path in (f"rw/{name}", f"rw/{name}-link", f"{name}-outside"))
    for place in (outside, directory):
        (place / "sub").mkdir(parents=True)
        (place / "sub/file").write_text(f"{place.name}\n")
    link.symlink_to(f"../{outside.name}")
    return directory, link, outside


def test_a_directory_that_becomes_a_link_while_walked(guest: Guest) -> None:
    """Again and again: the guest finds the directory, or a link that leads nowhere in its own root."""
    directory, link, _ = _swappable(guest, "walked")
    stop = threading.Event()
    seen: set[str] = set()

    def swap() -> None:
        while not stop.is_set():
            exchange(directory, link)

    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        try:
            while not {"walked"} < seen:  # a busy host may not swap during a whole round
                said = guest("for i in $(seq 100); do cat /rw/walked/sub/file; done; cat /rw/walked/sub/none", 1)
                seen |= set(said.splitlines()[:-1])
        finally:
            stop.set()
        swapping.result()
    assert {line for line in seen if not line.startswith("cat: ")} == {"walked"}


def test_a_directory_that_becomes_a_link_while_held(guest: Guest) -> None:
    """By whoever is in it: what it reads and writes by names from there is not what the link leads to."""
    directory, link, outside = _swappable(guest, "held")
    script = "touch ready; while [ ! -e /rw/go ]; do sleep 0.1; done; cat sub/file file; echo x > new; echo x > sub/file; rm sub/file"
    guest(f"(cd /rw/held && ({script}); echo >> /rw/held-out) > /rw/held-out 2>&1 &")
    eventually((directory / "ready").exists, "the guest is there")
    exchange(directory, link)
    (guest.host / "rw/go").touch()
    eventually(lambda: (guest.host / "rw/held-out").read_text().endswith("\n\n"), "it is done")
    assert "held-outside" not in (guest.host / "rw/held-out").read_text()
    assert [str(path.relative_to(outside)) for path in sorted(outside.rglob("*"))] == ["sub", "sub/file"]
    assert (outside / "sub/file").read_text() == "held-outside\n"


def test_the_hosts_root(guest: Guest) -> None:
    """Bound by `bind`, it is the root file system alone, and read-only; none of the host's other mounts is below it."""
    assert guest("cat /host/etc/os-release") == Path("/etc/os-release").read_text()
    assert guest("ls /host/proc /host/sys | grep -v ^/host | grep .", 1) == ""
    assert "Read-only file system" in guest("echo x > /host/tmp/x", 1)


def test_special_files_of_the_host(guest: Guest) -> None:
    """They are there. Who is at the other end of the host's FIFO or socket is on another kernel, in a VM."""
    os.mkfifo(guest.host / "rw/fifo")
    os.mknod(guest.host / "rw/null", 0o20666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening, chdir(guest.host / "rw"):
        listening.bind("socket")
    kinds = "fifo 0 0\nsocket 0 0\ncharacter special file 1 3\n"
    assert guest("stat -c '%F %t %T' /rw/fifo /rw/socket /rw/null") == kinds
    assert guest("(echo through > /rw/fifo &) ; cat /rw/fifo") == "through\n"
    assert guest("echo x > /rw/null; stat -c %s /rw/null") == "0\n"


def test_special_files_of_the_guest(guest: Guest) -> None:
    """QEMU before 9.2 made, opened and removed them again (its "9pfs: fix regression regarding CVE-2023-2861")."""
    said = guest("mkfifo /rw/made-fifo; mknod /rw/made-null c 1 3; mkfifo /rw/made-fifo; true")
    made = [(guest.host / "rw/made-fifo").is_fifo(), (guest.host / "rw/made-null").is_char_device()]
    if "No such device or address" in said:
        assert guest.container == "9p"
        assert made == [False, False]
    else:
        assert made == [True, True]
        assert "File exists" in said


def test_extended_attributes(guest: Guest) -> None:
    """Attributes are kept when the guest writes; busybox cannot show them."""
    (guest.host / "rw/attributes").write_text("")
    os.setxattr(guest.host / "rw/attributes", "user.kept", b"kept")
    guest("echo more >> /rw/attributes; chmod 600 /rw/attributes")
    assert os.getxattr(guest.host / "rw/attributes", "user.kept") == b"kept"


def test_two_containers_share_a_volume(guest: Guest) -> None:
    guest("echo one > /rw/shared")
    assert guest.other("cat /rw/shared; echo two >> /rw/shared") == "one\n"
    assert guest("cat /rw/shared; mv /rw/shared /rw/renamed") == "one\ntwo\n"
    assert guest.other("ls /rw/shared", 1).endswith("No such file or directory\n")
    assert guest.other("cat /rw/renamed; rm /rw/renamed") == "one\ntwo\n"
    guest("test ! -e /rw/renamed")
