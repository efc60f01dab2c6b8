"""What goes with which transport of a root file system: the one table behind `rootfs.choice`, the table in docs/rootfs.md, and the tests.

``python -m rundctl.engine.rootfs.combinations docs/rootfs.md`` writes the table into that file.
"""

from __future__ import annotations

NONE = "none"  # no volumes
# What a kernel must be able to (`guest.kernel.Kernel.able`), for the table: `choose` asks the kernel itself, and a test these two.
KERNELS = {"Debian's": frozenset(("9p",)), "lean": frozenset(("9p", "erofs", "pmem", "virtiofs"))}
_BEGIN, _END = "<!-- combinations: begin -->", "<!-- combinations: end -->"
_COST_OF_VOLUMES = {"9p": "1.4 MiB", "virtiofs": "another virtiofsd's 1.4 MiB"}
_AS_ROOT = "9p"  # files get the owners that the guest names, and only root can do that


class Combination:
    """A transport, and what of the machine goes with it.

    transport   as annotation and setting call it
    device      that it comes by, `MachineShape.root_device`
    live        what an upper directory of the host comes by that is laid on it, "" without one; it is one more volume
    volumes     what bind mounts come by beside it
    memory      of a clone: "cow" is private over the template's, "copy" a copy that another process can map
    needs       what the guest's kernel must be able to
    read_only   why it cannot be the persistent root, "" if it can
    cold        whether a VM with it can boot instead of being cloned
    cost        of a clone beside what every one costs
    """

    __slots__ = ("cold", "cost", "device", "live", "memory", "needs", "read_only", "transport", "volumes")

    def __init__(  # noqa: PLR0913  one argument a column, all by name
        self,
        transport: str,
        device: str,
        *,
        cost: str,
        needs: tuple[str, ...] = (),
        live: str = "",
        volumes: str = "9p",
        memory: str = "cow",
        read_only: str = "",
        cold: bool = True,
    ) -> None:
        self.transport = transport
        self.device = device
        self.live = live
        self.volumes = volumes
        self.memory = memory
        self.needs = frozenset(needs)
        self.read_only = read_only
        self.cold = cold
        self.cost = cost

    def missing(self, able: frozenset[str]) -> list[str]:
        """What a kernel lacks for it."""
        return sorted(self.needs - able)


TABLE = (
    Combination(
        "9p", "9p", needs=("9p",), cost="1.2 MiB of QEMU's memory; data that is read is in the guest's cache too"
    ),
    Combination(
        "virtiofs",
        "virtiofs",
        needs=("virtiofs",),
        volumes="virtiofs",
        memory="copy",
        cost="26 MiB, for private memory and a virtiofsd; data that is read is in the guest's cache too",
    ),
    Combination(
        "erofs",
        "pmem",
        needs=("erofs", "pmem"),
        read_only="is read-only",
        cost="of the guest's memory 1/64 of the device's size; data that is read is only in the host's cache, once for all",
    ),
    Combination(
        "erofs",
        "blk",
        needs=("erofs", "pmem"),
        read_only="is read-only",
        cost="data that is read is in the guest's cache too",
    ),
    Combination(
        "erofs",
        "pmem",
        needs=("erofs", "pmem", "9p"),
        live="9p",
        read_only="is read-only",
        cost="of the guest's memory 1/64 of the device's size, of QEMU's 1.4 MiB; the image's data are only in the host's cache",
    ),
    Combination(
        "erofs",
        "blk",
        needs=("erofs", "pmem", "9p"),
        live="9p",
        read_only="is read-only",
        cost="1.4 MiB of QEMU's memory; data that is read is in the guest's cache too",
    ),
    Combination(
        "blk",
        "disk",
        read_only="dies with the VM",
        cost="a copy of the whole rootfs before the start; data that is read is in the guest's cache, and in the host's once more for each",
    ),
)


def of(transport: str, device: str = "", *, live: bool = False) -> Combination:
    """The row of a transport, with an upper directory live on it or without; of several the first, unless the device is named. KeyError if there is none."""
    for row in TABLE:
        if row.transport == transport and device in ("", row.device) and bool(row.live) == live:
            return row
    raise KeyError(transport, device, live)


def writable() -> list[str]:
    """Transports by which a rootfs can be persistent."""
    return list(dict.fromkeys(row.transport for row in TABLE if not row.read_only))


def table() -> str:
    """The table as Markdown."""
    lines = [
        "| rootfs by | volumes by | memory | cold boot | persistent | QEMU could run unprivileged | kernels | what it costs a clone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row, volumes) for row in TABLE for volumes in (NONE, row.volumes)]
    return "\n".join(lines) + "\n"


def _line(row: Combination, volumes: str) -> str:
    kernels = ", ".join(name for name, able in KERNELS.items() if not row.missing(able))
    as_root = _AS_ROOT in (row.transport, row.live, volumes)
    cost = row.cost
    if volumes in _COST_OF_VOLUMES:
        cost = "the same" if row.live else f"the same, and {_COST_OF_VOLUMES[volumes]}"
    cells = (
        _title(row),
        volumes,
        row.memory,
        _yes(row.cold),
        _yes(not row.read_only),
        _yes(not as_root),
        kernels,
        cost,
    )
    return f"| {' | '.join(cells)} |"


def _title(row: Combination) -> str:
    several = sum(other.transport == row.transport for other in TABLE) > 1
    title = f"{row.transport} ({row.device})" if several else row.transport
    return f"{title}, on it an upper directory by {row.live}" if row.live else title


def _yes(yes: bool) -> str:  # noqa: FBT001  a cell of the table
    return "yes" if yes else "no"


def document(text: str) -> str:
    """A document with the table in its place, between the two comments. ValueError if it has none."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"no {_BEGIN} ... {_END}")
    return f"{before}{_BEGIN}\n{table()}{_END}{after}"


if __name__ == "__main__":
    import sys
    from pathlib import Path

    target = Path(sys.argv[1])
    target.write_text(document(target.read_text()))
