"""What can go wrong, as a tree.

::

    RundctlError                  one line for the user, an exit code, perhaps a hint
    ├── UsageError                the command line is wrong
    ├── ConfigError               bundle or config.json is missing, malformed, invalid or asks for what is refused
    ├── StateError                unknown id, id in use, wrong state for the verb
    │   └── DamagedError          what was recorded of the container cannot be read
    ├── HostError                 the host lacks or refuses something: no QEMU, full disk, a syscall failed
    ├── GuestError                the VM or its agent failed, died or did not answer in time
    └── ProcessError              the container's process could not be started (args[0] not found ...)

The engine raises; only ``cli.main`` turns an error into a line on stderr, a JSON line in ``--log`` and an exit code.
runc exits with 1 for all of them, so that is the default.
"""

from __future__ import annotations

import errno


class RundctlError(Exception):
    """Base of all errors meant for the user: operation and object in the message, advice in the hint."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(RundctlError):
    """The command line is wrong: unknown flag, missing argument, impossible value."""


class ConfigError(RundctlError):
    """Bundle or configuration cannot be used as it is."""


class StateError(RundctlError):
    """The container does not exist, exists already, or is in the wrong state for the verb."""


class DamagedError(StateError):
    """What was recorded of the container cannot be read; ``directory`` holds what there is of it."""

    def __init__(self, directory: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.directory = directory


class HostError(RundctlError):
    """The host lacks or refuses something that is needed."""


class GuestError(RundctlError):
    """The VM or its agent failed, died or did not answer in time."""


class ProcessError(RundctlError):
    """The container's process could not be started."""


def printable(text: str) -> str:
    """What others wrote (a guest, QEMU, a hook, an image): ``?`` for all that would move a terminal's cursor, end a line or turn its direction."""
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


def words(error: OSError) -> str:
    """An operating system's error in lower-case words.

    A missing file of *ours* "is missing": podman reads "no such file" and "not found" as "the container's command is not there" and exits with 127.
    """
    if error.errno == errno.ENOENT:
        return "is missing"
    return (error.strerror or str(error)).lower()


def cause(error: OSError) -> str:
    """`words`, behind the file that the error is about if it names one."""
    return f"{error.filename}: {words(error)}" if error.filename else words(error)
