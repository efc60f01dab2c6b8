"""Whether two descriptors are one open file: kcmp(2). Cold: ctypes takes milliseconds to load."""

from __future__ import annotations

import ctypes
import os

_SYS_KCMP = 312  # x86-64
_KCMP_FILE = 0
_libc = ctypes.CDLL(None, use_errno=True)


def are_one(first: int, second: int) -> bool:
    """Whether both have one offset, because one was made from the other. OSError where the kernel does not tell (kcmp(2): ENOSYS, EPERM)."""
    pid = os.getpid()
    answer = int(_libc.syscall(_SYS_KCMP, pid, pid, _KCMP_FILE, ctypes.c_ulong(first), ctypes.c_ulong(second)))
    if answer < 0:
        raise OSError(ctypes.get_errno(), "kcmp")
    return answer == 0
