"""Writing to stdout, the only way verbs do it: the reader that has gone away is not an error worth words."""

from __future__ import annotations

import sys

from rundctl.errors import HostError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_GAP = 3  # spaces between columns
_NARROWEST = 12


class OutputClosed(Exception):  # noqa: N818 (no error: `rundctl list | head -1` is in order)
    """Whoever read our stdout has closed it."""


def write(text: str) -> None:
    """Write and flush; OutputClosed if nobody reads, HostError if the file behind stdout takes no more."""
    if sys.stdout is None:
        raise HostError("write to stdout: it is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        raise HostError(f"write to stdout: {(error.strerror or str(error)).lower()}") from error


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells as lines, each column as wide as its widest cell but never narrow: the look of runc's tables. Cells are made printable."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(_NARROWEST, *(len(row[column]) + _GAP for row in rows)) for column in range(len(rows[0]))]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)
