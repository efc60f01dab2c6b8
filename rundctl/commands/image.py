"""``rundctl image``: list, build, prune and verify the images of root file systems."""

from __future__ import annotations

import json

from rundctl.commands.declare import Argument, Flag, Options, Verb
from rundctl.commands.output import columns, write
from rundctl.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.rootfs.images.content import Content
    from rundctl.engine.rootfs.images.store import Entry


def list_(options: Options) -> int:
    """One line an image."""
    from rundctl.engine import settings
    from rundctl.engine.rootfs.images import store

    found = store.entries(settings.load().home)
    if options.on("json"):
        write(json.dumps([entry.facts() for entry in found], indent=2) + "\n")
    else:
        write(columns([("KEY", "FOR", "SIZE", "STATE", "CONTENT"), *(_row(entry) for entry in found)]))
    return 0


def build(options: Options) -> int:
    """Build a rootfs's image unless it is there; its key is printed."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import settings
    from rundctl.engine.rootfs.images import build as images

    content = _content(options.text("ROOTFS"), options.text("immutable"))
    chosen = settings.load()
    if options.text("lower") == "blk":
        content = content.with_room(chosen.upper_mib)
    with Progress() as progress:
        image = images.build(chosen.home, content, progress.say, max_mib=chosen.images_max_mib)
    write(f"{image.key}\n")
    return 0


def prune(options: Options) -> int:
    """Remove what nothing can use, and what is over the limit given; the keys are printed."""
    from rundctl.engine import settings
    from rundctl.engine.rootfs.images import store

    limit = options.number("max-size") if options.text("max-size") else None
    removed = store.prune(settings.load().home, max_mib=limit, everything=options.on("all"))
    write("".join(f"{key}\n" for key in removed))
    return 0


def verify(options: Options) -> int:
    """Compare all images with their digests and remove the damaged; their keys are printed, and the status is 1 if there are any."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import settings
    from rundctl.engine.rootfs.images import store

    del options
    with Progress() as progress:
        damaged = store.verify(settings.load().home, progress.say)
    write("".join(f"{key}\n" for key in damaged))
    return 1 if damaged else 0


def _content(rootfs: str, version: str) -> Content:
    from rundctl.engine.rootfs.images import overlay
    from rundctl.engine.rootfs.images.content import Content
    from rundctl.oci.options import IMMUTABLE

    if version:
        return Content.of_directory(rootfs, version)
    parts, reason = overlay.of_rootfs(rootfs)
    if parts is None:
        raise ConfigError(
            f"build an image of {rootfs}: {reason}",
            hint=f"--immutable declares that a directory does not change, as {IMMUTABLE} does",
        )
    return Content(parts.lowers, parts.merging)


def _row(entry: Entry) -> tuple[str, ...]:
    top, *below = entry.directories or ["?"]
    content = f"{top} +{len(below)}" if below else top
    return (
        entry.key,
        entry.transport,
        f"{entry.size_mib} MiB",
        f"{entry.state}, in use" if entry.in_use else entry.state,
        content,
    )


VERB = Verb(
    "image",
    "List, build, prune and verify the images of root file systems.",
    verbs=(
        Verb("image list", "List the images.", list_, flags=(Flag("--json", "Print the list as JSON."),)),
        Verb(
            "image build",
            "Build the image of a rootfs unless it is there, and print its key.",
            build,
            arguments=(Argument("ROOTFS", "A mounted overlay, or with --immutable any directory."),),
            flags=(
                Flag("--immutable", "Declare that the directory does not change, in this version.", value="VERSION"),
                Flag(
                    "--lower", "The transport that it is for.", value="NAME", default="erofs", choices=("erofs", "blk")
                ),
            ),
        ),
        Verb(
            "image prune",
            "Remove images that nothing can use, and print their keys.",
            prune,
            flags=(
                Flag("--all", "Remove the others as well.", short="-a"),
                Flag(
                    "--max-size",
                    "Remove also the least recently used, until all take no more than so many MiB.",
                    value="MIB",
                ),
            ),
        ),
        Verb("image verify", "Read all images, remove the damaged ones, and print their keys.", verify),
    ),
)
