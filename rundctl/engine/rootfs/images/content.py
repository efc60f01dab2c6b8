"""Images: an immutable content as one file, made once, found by every start.

As EROFS it is shared by all VMs through the host's page cache; as ext4 every VM gets a copy (`disk`).
``HOME/images/KEY/{image,manifest.json}``: complete or not there at all, and never written to again. Here is what a start needs: to find, to
open, to have made in the background. `rootfs.images.build` makes them, `rootfs.images.store` lists, checks and removes them.
"""

from __future__ import annotations

import fcntl
import time
from _blake2 import blake2b  # the C module itself: hashlib loads OpenSSL, for 5 ms

from rundctl.engine import background
from rundctl.errors import ConfigError, HostError, words
from rundctl.host import files
from rundctl.host import manifest as manifests
from rundctl.lean import os
from rundctl.lean.contextlib import suppress
from rundctl.oci.options import IMMUTABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from rundctl.engine.settings import Settings
    from rundctl.lean.contextlib import ExitStack

FORMAT = 2  # of image and manifest: raise it with every change of what `rootfs.images.build` makes out of a content
IMAGE = "image"
RETRY_S = 3600  # a content that could not be made an image is not tried again in the background so soon
_FAILED = ".failed"  # how what is remembered of a failed build is called, after its key
_KEY_BYTES = 16
_DEVICE_MIN_MIB = 64


class Content:
    """What an image is made of: directories merged as overlayfs merges them, topmost first; or one directory that its user declared immutable.

    The key is a digest over path, inode number and time of change (ctime, ns) of each directory, over the options of the merge and the version
    that the user gave. It stands on the word of others that nothing changes *below* these directories: podman and containerd never touch a layer
    once it is complete, and the annotation `oci.options.IMMUTABLE` is the user's promise. A ctime cannot be set, so a layer that was removed and made again,
    even under the same path and inode number, has another key, and so has a directory in which an entry came, went or was renamed. What would be missed:
    a file changed in place, or anything deeper down. The device number is left out since it may be another after a reboot, and every image
    would be orphaned; path and ctime together tell file systems apart, unless one is a copy of the other, block by block.
    ``room_mib``: None for an EROFS image; else one of ext4, in which so much is free.
    """

    __slots__ = ("directories", "key", "options", "room_mib", "version")

    def __init__(
        self,
        directories: tuple[str, ...],
        options: tuple[str, ...] = (),
        version: str = "",
        room_mib: int | None = None,
    ) -> None:
        """Directories are absolute real paths. HostError if one cannot be examined."""
        self.directories = directories
        self.options = options
        self.version = version
        self.room_mib = room_mib
        self.key = self._digest()

    @classmethod
    def of_directory(cls, path: str, version: str) -> Self:
        """A directory that its user declared immutable, with the annotation's value. HostError if there is none, ConfigError for an empty value."""
        if not version:
            raise ConfigError(f"{IMMUTABLE}: it is empty", hint="give it any text, such as a version or a date")
        return cls((os.path.realpath(path),), (), version)

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """The content that `facts` told of, as it is now. HostError if it is no longer there."""
        return cls(tuple(facts["directories"]), tuple(facts["options"]), facts["version"], facts["room_mib"])

    def with_room(self, room_mib: int) -> Content:
        """The same as an ext4 file system to be written to. HostError if it is no longer there."""
        return Content(self.directories, self.options, self.version, room_mib)

    def facts(self) -> dict[str, object]:
        """All but the key, for JSON."""
        return {
            "directories": self.directories,
            "options": self.options,
            "version": self.version,
            "room_mib": self.room_mib,
        }

    @property
    def is_layered(self) -> bool:
        """Whether it consists of overlayfs' layers, with whiteouts and attributes that only a merge can resolve; even one layer can hold such."""
        return not self.version

    def __str__(self) -> str:
        top, *below = self.directories
        return f"{top} and {len(below)} layers below" if below else top

    def _digest(self) -> str:
        digest = blake2b(digest_size=_KEY_BYTES)
        for text in (str(FORMAT), str(self.room_mib), self.version, str(len(self.options)), *self.options):
            digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        for path in self.directories:
            try:
                status = os.stat(path)
            except OSError as error:
                raise HostError(f"layer {path}: {words(error)}") from error
            digest.update(b"%b\0%d %d\0" % (os.fsencode(path), status.st_ino, status.st_ctime_ns))
        return digest.hexdigest()


class Image:
    """An image that is ready for use. ``fd``: -1 unless it is open (`find_open`)."""

    __slots__ = ("fd", "key", "path", "size_bytes")

    def __init__(self, key: str, path: str, size_bytes: int, fd: int = -1) -> None:
        self.key = key
        self.path = path
        self.size_bytes = size_bytes
        self.fd = fd


def device_mib(size_bytes: int) -> int:
    """Size of the device for an image: a power of two, so that few templates serve all images."""
    mib = _DEVICE_MIN_MIB
    while mib << 20 < size_bytes:
        mib *= 2
    return mib


def root(home: str) -> str:
    """Directory of all images."""
    return f"{home}/images"


def make_root(home: str) -> None:
    """Make it, for root alone: an image holds files that only some users of a container may read. OSError if it cannot be."""
    os.makedirs(root(home), exist_ok=True)
    os.chmod(root(home), 0o700)


def find(home: str, content: Content) -> Image | None:
    """The image of a content, if it is there and untouched since it was made: one small file is read, one stat. Each use is noted, for `prune`."""
    directory = f"{root(home)}/{content.key}"
    manifest = manifests.read(directory, FORMAT)
    if manifest is None or not manifests.is_intact(directory, manifest, (IMAGE,)):
        return None
    with suppress(OSError):  # a read-only home: then nothing is removed by age there either
        os.utime(f"{directory}/{manifests.NAME}")
    return Image(content.key, f"{directory}/{IMAGE}", manifest["files"][IMAGE]["size"])


def find_open(undo: ExitStack, home: str, content: Content) -> Image | None:
    """As `find`, and open for reading until ``undo``: nobody can take it from its finder any more.

    While its descriptor or an inherited copy is open the image counts as in use. HostError if it is there and cannot be opened.
    """
    image = find(home, content)
    if image is None:
        return None
    try:
        fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_SH)  # at most `rootfs.images.store` has it, for as long as it takes to ask
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"open {image.path}: {words(error)}") from error
    return Image(image.key, image.path, image.size_bytes, fd)


def start_background(settings: Settings, content: Content) -> str:
    """Have the image built by a process of its own, and say in a few words what comes of it. Raises nothing: a start goes on without the image.

    That process is nobody's child, in a session of its own, with the lowest priority for CPU and disk, and holds none of our descriptors.
    """
    try:
        make_root(settings.home)
        failed = _failed_lately(settings.home, content)
        if failed:
            return f"no image is built: the last attempt failed: {failed}"
        lock = files.lock_directory(workspace(settings.home, content.key), wait=False)
        if lock is None:
            return f"image {content.key} is being built already"
        try:
            _spawn(settings, content, lock)
        finally:
            os.close(lock)
    except (HostError, OSError) as error:
        return f"no image is built: {error}"
    return f"image {content.key} is being built"


def failure_path(home: str, key: str) -> str:
    """Where a failed build is remembered: its reason, and by the file's age when it was."""
    return f"{root(home)}/.{key}{_FAILED}"


def forget_failures(home: str) -> None:
    """Remove what is remembered of failures that keep nobody from trying again: their contents may never come back."""
    for name in os.listdir(root(home)):
        path = f"{root(home)}/{name}"
        if name.endswith(_FAILED) and not _is_late(path):
            files.unlink(path)


def workspace(home: str, key: str) -> str:
    """Directory in which an image is built; its builder holds a lock on it."""
    return f"{root(home)}/.{key}.tmp"


def _failed_lately(home: str, content: Content) -> str:
    path = failure_path(home, content.key)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip() if _is_late(path) else ""
    except FileNotFoundError:
        return ""


def _is_late(path: str) -> bool:
    """Whether a failure was a short time ago. The clock may have been set back."""
    try:
        return abs(time.time() - os.stat(path).st_mtime) <= RETRY_S
    except FileNotFoundError:
        return False


_PROGRAM = """
from rundctl.engine.rootfs.images import build
build.run_in_background(job)
"""


def _spawn(settings: Settings, content: Content, lock: int) -> None:
    """It inherits the lock on its workspace, so that of many starts at once only one gets as far as here."""
    job = {
        "home": settings.home,
        "max_mib": settings.images_max_mib,
        "lock": lock,
        "key": content.key,
        **content.facts(),
    }
    background.start(_PROGRAM, job, lock, f"{root(settings.home)}/build.log")
