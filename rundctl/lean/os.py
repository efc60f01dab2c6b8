"""The operating system's interface. To the module in C the standard one adds abstract classes, an environment and paths: a fifth of an interpreter's start.

What is not here comes from the standard module, which is loaded for it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import *  # noqa: F403 (whatever is asked for)
    from os import _exit, getenv, makedirs, path
else:
    import posix
    import sys
    from posix import *  # noqa: F403
    from posix import _exit, mkdir

    from rundctl.lean import path

    del environ  # noqa: F821 (here it is of bytes)
    SEEK_SET, SEEK_CUR, SEEK_END = 0, 1, 2
    devnull = "/dev/null"
    _ENCODING = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()

    def __getattr__(name):
        import os

        return getattr(os, name)

    def fsencode(name):
        """A path's bytes."""
        return name.encode(*_ENCODING) if isinstance(name, str) else __getattr__("fsencode")(name)

    def fsdecode(name):
        """A path as text."""
        return name.decode(*_ENCODING) if isinstance(name, bytes) else __getattr__("fsdecode")(name)

    def getenv(name, default=None):
        """A variable of the environment that we were started with, or of the standard module's, which may have been changed since."""
        if "os" in sys.modules:
            return sys.modules["os"].environ.get(name, default)
        value = posix.environ.get(fsencode(name))
        return default if value is None else fsdecode(value)

    def makedirs(name, mode=0o777, exist_ok=False):
        """Make a directory, and those above it."""
        try:
            mkdir(name, mode)
        except FileNotFoundError:
            __getattr__("makedirs")(name, mode, exist_ok)
        except OSError:
            if not exist_ok or not path.isdir(name):
                raise


__all__ = ["_exit", "getenv", "makedirs", "path"]
