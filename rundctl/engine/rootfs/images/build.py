"""Make the image of a content. Cold: in the background of a start, or by `rundctl image build`.

It is exact, or there is none: a rootfs that lacks an attribute or a file fails strangely and late. So the tree is looked through before and after it
is read, what an image cannot hold is refused, and the number of inodes in the image must be that of the tree. What writes it: `rootfs.images.formats`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rundctl.engine import background
from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images import store
from rundctl.engine.rootfs.images.content import IMAGE, Content
from rundctl.engine.rootfs.images.formats import SPACE_HINT, Erofs, Ext4
from rundctl.engine.rootfs.images.scan import Tree
from rundctl.errors import HostError, RundctlError, words
from rundctl.host import files, mountinfo, mounts, workspace
from rundctl.host import manifest as manifests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rundctl.engine.rootfs.images.content import Image
    from rundctl.types import Progress


def build(
    home: str,
    content: Content,
    progress: Progress,
    *,
    max_mib: int,
    warn: Progress | None = None,
    lock: int | None = None,
) -> Image:
    """The image of a content, made unless it is there; who comes second waits and finds it.

    HostError says what is in the way; then nothing is left. ``max_mib``: no larger images, and of all others the least recently used go.
    ``warn`` is told, if it takes long, that another process makes it. ``lock``: of the workspace, for callers that have it already; it is closed.
    """
    try:
        images.make_root(home)
        workspace.sweep(images.root(home))
        place = images.workspace(home, content.key)
        with workspace.Workspace(place, "makes this image", progress, warn, lock) as directory:
            found = images.find(home, content)
            if found is not None:
                return found
            found = _Builder(home, content, directory, progress).make(max_mib)
        store.evict(home, max_mib, keep=content.key)
        files.unlink(images.failure_path(home, content.key))
    except OSError as error:
        raise HostError(f"{_what(content)}: {error.filename or home}: {words(error)}", hint=_hint(error)) from error
    return found


def run_in_background(job: dict[str, Any]) -> None:
    """What `rootfs.images.content.start_background` starts, with the log as stderr: build, say what came of it, remember a failure."""
    lock = background.keep_only(job)
    os.umask(0o077)
    started = time.monotonic()
    try:
        build(job["home"], Content.from_facts(job), lambda _: None, max_mib=job["max_mib"], lock=lock)
        said = f"built in {time.monotonic() - started:.1f} s"
    except RundctlError as error:
        said = str(error)
        images.forget_failures(job["home"])
        files.replace(images.failure_path(job["home"], job["key"]), os.fsencode(said), 0o600, durable=False)
    sys.stderr.write(f"{time.strftime('%FT%T%z')} {job['key']} {said}\n")


class _Builder:
    """One build, in a locked and empty directory."""

    def __init__(self, home: str, content: Content, directory: str, progress: Progress) -> None:
        self._home = home
        self._content = content
        self._directory = directory
        self._image = f"{directory}/{IMAGE}"
        self._progress = progress
        self._format: Erofs | Ext4 = Erofs() if content.room_mib is None else Ext4(content.room_mib)

    def make(self, max_mib: int) -> Image:
        started = time.monotonic()
        with self._view() as source:
            self._progress(f"reading {self._content}")
            tree = Tree(source)
            self._check_size(tree, max_mib)
            self._progress(f"writing an image of {self._format.needed_bytes(tree) >> 20} MiB")
            self._format.write(source, self._image, tree, _what(self._content))
            if Tree(source).digest != tree.digest or Content.from_facts(self._content.facts()).key != self._content.key:
                raise HostError(f"{_what(self._content)}: it changed while it was read")
        self._finish(tree, time.monotonic() - started)
        return self._move_into_place()

    @contextmanager
    def _view(self) -> Iterator[str]:
        """Path where the content is seen as a container would see it, all layers merged."""
        if not self._content.is_layered:
            directory = self._content.directories[0]
            inside = mountinfo.below(directory, mountinfo.read())
            if inside is not None:
                raise HostError(f"{_what(self._content)}: something is mounted inside of it, at {inside}")
            yield directory
            return
        merged, layers = f"{self._directory}/merged", f"{self._directory}/layers"
        os.mkdir(merged)
        os.mkdir(layers)
        # Short names: mount(2) takes 4096 bytes of options, and layers may have colons and commas in theirs.
        for number, directory in enumerate(self._content.directories):
            os.symlink(directory, f"{layers}/{number}")
        os.mkdir(f"{layers}/{len(self._content.directories)}")  # an overlay without an upper must have two layers
        with mounts.PrivateMounts():
            os.chdir(layers)
            names = ":".join(str(number) for number in range(len(self._content.directories) + 1))
            options = ",".join((f"lowerdir={names}", *self._content.options))
            mounts.mount("overlay", merged, "overlay", mounts.MS_RDONLY, options)
            yield merged

    def _check_size(self, tree: Tree, max_mib: int) -> None:
        needed = self._format.needed_bytes(tree)
        if needed > max_mib << 20:
            raise HostError(
                f"{_what(self._content)}: it takes {needed >> 20} MiB, and images_max_mib is {max_mib}",
                hint="raise it in the settings",
            )
        status = os.statvfs(self._directory)
        free = status.f_bavail * status.f_frsize
        if needed > free:
            raise HostError(
                f"{_what(self._content)}: {free >> 20} MiB are free in {images.root(self._home)}, {needed >> 20} needed",
                hint=SPACE_HINT,
            )

    def _finish(self, tree: Tree, seconds: float) -> None:
        self._progress("syncing the image")
        fd = os.open(self._image, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o400)
            os.fsync(fd)
            described = {
                "size": os.fstat(fd).st_size,
                "digest": files.content_digest(fd),
                "identity": manifests.file_identity(self._image),
            }
        finally:
            os.close(fd)
        manifest = {
            "format": images.FORMAT,
            "key": self._content.key,
            "content": self._content.facts(),
            "inodes": tree.inodes,
            "built_ns": time.time_ns(),
            "build_s": round(seconds, 3),
            "files": {IMAGE: described},
        }
        files.replace(f"{self._directory}/{manifests.NAME}", json.dumps(manifest, indent=1).encode())

    def _move_into_place(self) -> Image:
        for name in ("merged", "layers"):
            shutil.rmtree(f"{self._directory}/{name}", ignore_errors=True)
        files.sync_directory(self._directory)
        root = images.root(self._home)
        shutil.rmtree(f"{root}/{self._content.key}", ignore_errors=True)  # one that was damaged
        os.rename(self._directory, f"{root}/{self._content.key}")
        files.sync_directory(root)
        found = images.find(self._home, self._content)
        if found is None:
            raise HostError(f"{_what(self._content)}: the image changed as soon as it was there")
        return found


def _what(content: Content) -> str:
    return f"build the image of {content}"


def _hint(error: OSError) -> str:
    import errno

    return SPACE_HINT if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
