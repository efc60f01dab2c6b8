"""Writing to stdout, the only way verbs do it: the reader that has gone away is not an error worth words."""

from __future__ import annotations

import sys

from rundctl.errors import HostError


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
