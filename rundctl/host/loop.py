"""Loop devices (loop(4), linux/loop.h): a file as a block device that is gone with its last user."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct

from rundctl.errors import HostError, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

_CONTROL = "/dev/loop-control"
_CONFIGURE = 0x4C0A  # Linux 5.8
_GET_STATUS64 = 0x4C05
_GET_FREE = 0x4C82
_AUTOCLEAR = 4
_DIRECT_IO = 16
_SECTOR = 512  # bytes
# struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt_type, encrypt_key_size, flags; file_name, crypt_name, encrypt_key; init
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64x")  # struct loop_config: fd, block size, info
_NAME_MAX = 63  # bytes of the file's name that the kernel keeps
_DEVICE = re.compile(r"loop[0-9]+")
_TRIES = 16  # lost races for a free device


class Loop:
    """The device of a file, for a ``with`` block; a mount that was made meanwhile keeps it beyond that.

    A file is never behind two devices of ours: two mounts of one file system would destroy it. HostError if there is no device to be had.
    """

    __slots__ = ("_fd", "_file", "path")

    def __init__(self, file: str) -> None:
        self._file = file
        self._fd = -1
        self.path = ""

    def __enter__(self) -> Self:
        image = os.open(self._file, os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(_TRIES):
                self.path = find(self._file) or _free()
                self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
                if _info(self._fd)[0] == _identity(os.fstat(image)) or self._configure(image):
                    return self
                os.close(self._fd)
        except FileNotFoundError as error:
            raise HostError(
                f"no loop device for {self._file}: {error.filename} is missing", hint="modprobe loop"
            ) from error
        finally:
            os.close(image)
        raise HostError(f"no loop device for {self._file}: others took {_TRIES} of them first")

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _configure(self, image: int) -> bool:
        """Put the file behind the device; False if somebody else was faster."""
        for flags in (_AUTOCLEAR | _DIRECT_IO, _AUTOCLEAR):  # direct: else each page is cached twice
            name = os.fsencode(self._file)[:_NAME_MAX]
            info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
            try:
                fcntl.ioctl(self._fd, _CONFIGURE, _CONFIG.pack(image, _SECTOR, info))
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return False
                if error.errno != errno.EINVAL or not flags & _DIRECT_IO:
                    raise HostError(f"{self.path}: {self._file}: {words(error)}") from error
            else:
                return True
        return False


def find(file: str) -> str | None:
    """Path of the device that has this file behind it; None if there is none."""
    wanted = _identity(os.stat(file))
    return next((path for path in _devices() if _status(path)[0] == wanted), None)


def number(path: str) -> int:
    """The device number (``st_dev`` of what is mounted from it). OSError if the device is gone."""
    return os.stat(path).st_rdev  # with loop.max_part the minor is not the number in its name


def is_direct(path: str) -> bool:
    """Whether a device reads and writes its file past the host's page cache."""
    return bool(_status(path)[1] & _DIRECT_IO)


def _devices() -> Iterator[str]:
    try:
        names = sorted(os.listdir("/sys/block"))
    except FileNotFoundError:
        return
    for name in names:
        if _DEVICE.fullmatch(name) and os.path.exists(f"/sys/block/{name}/loop"):
            yield f"/dev/{name}"


def _free() -> str:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
    except OSError as error:
        raise HostError(f"{_CONTROL}: no free loop device: {words(error)}") from error
    finally:
        os.close(control)


def _status(path: str) -> tuple[tuple[int, int] | None, int]:
    """(identity of the file behind a device or None, flags)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # gone meanwhile
        return None, 0
    try:
        return _info(fd)
    finally:
        os.close(fd)


def _info(fd: int) -> tuple[tuple[int, int] | None, int]:
    try:
        fields = _INFO.unpack(fcntl.ioctl(fd, _GET_STATUS64, bytes(_INFO.size)))
    except OSError:  # ENXIO: no file behind it
        return None, 0
    return (fields[0], fields[1]), fields[8]


def _identity(status: os.stat_result) -> tuple[int, int]:
    """Device and inode as the kernel tells them of a loop device's file (new_encode_dev, linux/kdev_t.h)."""
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12, status.st_ino
