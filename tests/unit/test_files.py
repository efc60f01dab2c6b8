"""Files that are replaced, locked, copied without holes; digests that are remembered; tools that are run."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest

from rundctl.errors import HostError
from rundctl.host import ficlone, files, process
from rundctl.host.pidfd import Process, start_time
from rundctl.lean import os as lean_os

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MIB = 1 << 20


def _sparse(path: Path) -> Path:
    """8 MiB with data at 1 MiB and at the very end."""
    with path.open("wb") as file:
        file.seek(_MIB)
        file.write(b"one" * 5000)
        file.seek(8 * _MIB - 3)
        file.write(b"end")
    return path


def test_replace_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "file"
    files.replace(str(target), b"old")
    with pytest.raises(OSError, match="directory"):
        files.replace(str(tmp_path / "missing/file"), b"new")
    target.with_suffix(".d").mkdir()
    with pytest.raises(OSError, match="directory"):
        files.replace(str(target.with_suffix(".d")), b"new")
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["file", "file.d"]


def test_replace_names_the_file_that_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) knows no name."""

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lean_os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.replace(str(tmp_path / "file"), b"new")
    assert caught.value.filename == str(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_sparse_copy(tmp_path: Path) -> None:
    source = _sparse(tmp_path / "source")
    with source.open("rb") as file:
        copy = files.nameless(str(tmp_path))
        try:
            assert files.copy_sparse(file.fileno(), copy) < _MIB
            assert os.pread(copy, 9 * _MIB, 0) == source.read_bytes()
            assert os.fstat(copy).st_blocks * 512 < _MIB
            assert os.fstat(copy).st_nlink == 0
        finally:
            os.close(copy)


def _without(flag: int, error: int) -> Callable[..., int]:
    """open(2) of a file system that does not know a flag."""
    real = os.open

    def opened(path: str, flags: int, *rest: int) -> int:
        if flags & flag == flag:
            raise OSError(error, os.strerror(error), path)
        return real(path, flags, *rest)

    return opened


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR])
def test_a_nameless_file_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    (tmp_path / f".nameless.{os.getpid()}").write_text("of an earlier process, which was killed")
    monkeypatch.setattr(lean_os, "open", _without(os.O_TMPFILE, error))
    fd = files.nameless(str(tmp_path))
    try:
        assert os.listdir(tmp_path) == []
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_size, status.st_mode & 0o777) == (0, 0, 0o600)
        os.write(fd, b"data")
        with open(f"/proc/self/fd/{fd}", "rb") as again:  # as QEMU and mkfs do
            assert again.read() == b"data"
    finally:
        os.close(fd)


def test_a_directory_that_takes_no_file_has_no_nameless_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        files.nameless(f"{tmp_path}/missing")
    monkeypatch.setattr(lean_os, "open", _without(os.O_TMPFILE, errno.EROFS))
    with pytest.raises(OSError, match="Read-only"):
        files.nameless(str(tmp_path))


def test_holes_that_are_not_told_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _sparse(tmp_path / "source")
    with source.open("rb") as file, (tmp_path / "copy").open("xb+") as copy:
        assert files.hidden_extents(file.fileno()) is None, "here they are told"
        digest = files.content_digest(file.fileno())
        monkeypatch.setattr(files, "data_extents", lambda _, size: iter([(0, size)]))
        extents = files.hidden_extents(file.fileno())
        assert extents == [(_MIB, _MIB + 65536), (8 * _MIB - 65536, 8 * _MIB)]
        assert files.copy_sparse(file.fileno(), copy.fileno(), extents=extents) == 2 * 65536
        assert (tmp_path / "copy").read_bytes() == source.read_bytes()
        assert os.fstat(copy.fileno()).st_blocks * 512 < _MIB
        assert files.content_digest(copy.fileno(), extents) == digest


def test_holes_that_cannot_be_asked_for_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seek(_fd: int, _offset: int, _whence: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    with _sparse(tmp_path / "source").open("rb") as file:
        monkeypatch.setattr(lean_os, "lseek", seek)
        assert list(files.data_extents(file.fileno(), 8 * _MIB)) == [(0, 8 * _MIB)]


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL])
def test_a_copy_where_the_kernel_does_not_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(*_: int) -> int:
        raise OSError(error, os.strerror(error))

    source = _sparse(tmp_path / "source")
    monkeypatch.setattr(lean_os, "copy_file_range", refuse)
    with source.open("rb") as file, (tmp_path / "copy").open("xb") as copy:
        files.copy_sparse(file.fileno(), copy.fileno())
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_clone_says_whether_it_could(tmp_path: Path) -> None:
    """Whatever this file system can do: True means the same contents, False an empty target."""
    source = _sparse(tmp_path / "source")
    with source.open("rb") as file:
        copy = files.nameless(str(tmp_path))
        try:
            cloned = ficlone.clone(file.fileno(), copy)
            assert os.pread(copy, 9 * _MIB, 0) == (source.read_bytes() if cloned else b"")
        finally:
            os.close(copy)


def test_digest_is_of_contents_not_of_holes(tmp_path: Path) -> None:
    sparse = _sparse(tmp_path / "sparse")
    full = tmp_path / "full"
    full.write_bytes(sparse.read_bytes())
    other = tmp_path / "other"
    other.write_bytes(sparse.read_bytes()[:-1] + b"!")
    digests = []
    for path in (sparse, full, other):
        with path.open("rb") as file:
            digests.append(files.content_digest(file.fileno()))
    assert digests[0] == digests[1] != digests[2]


def test_lock_excludes(tmp_path: Path) -> None:
    order = []
    lock = str(tmp_path / "lock")

    def second() -> None:
        with files.Lock(lock):
            order.append("second")

    with files.Lock(lock):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_run() -> None:
    assert process.run(["cat"], what="copy", data=b"in") == b"in"
    with pytest.raises(HostError, match=r"list: ls: .*No such file.*\(look elsewhere\)"):
        process.run(["ls", "/nonexistent"], what="list", hint="look elsewhere")
    with pytest.raises(HostError, match="did not end within"):
        process.run(["sleep", "60"], what="wait", timeout_s=0.05)
    with pytest.raises(HostError, match=r"no-such-tool: is not in.*\(install it\)"):
        process.run(["no-such-tool"], what="try", hint="install it")


def test_child_inherits_what_it_is_given_and_dies_with_the_block() -> None:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    script = f"echo hello >/proc/self/fd/{writer}; exec sleep 1000"
    with process.Child([process.need_tool("sh", ""), "-c", script], [writer], (null, null, null)) as child:
        assert not os.get_inheritable(writer)
        os.close(writer)
        assert os.read(reader, 100) == b"hello\n"
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, 0)
    os.close(reader)
    os.close(null)


def test_replace_follows_no_link(tmp_path: Path) -> None:
    """In a directory that others write to, the temporary name can be guessed."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / f"pid.{os.getpid()}.tmp").symlink_to(victim)
    files.replace(str(tmp_path / "pid"), b"7")
    assert (victim.read_bytes(), (tmp_path / "pid").read_bytes()) == (b"mine", b"7")
    assert not (tmp_path / "pid").is_symlink()


def test_a_thread_is_no_process() -> None:
    """A pid that was reused by one: whoever had it is gone."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert start_time(thread.native_id) is not None
        assert Process.open(thread.native_id) is None
    finally:
        ended.set()
        thread.join()
