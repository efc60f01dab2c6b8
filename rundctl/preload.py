"""Modules from one file, each when it is used first (docs/adr/0008-imports.md).

Before any of a module's own code is read, an import statement costs some 140,000 instructions: finders are asked, directories are looked into, a file is
opened. The commonest verbs import up to a hundred modules of ours, and use two thirds of them. So each has a *pack*: the code of all modules that it
may need, as ``marshal`` writes it. `load` makes a module of each that is still empty. It fills itself when somebody asks it for something.

A pack is a cache as Python's own: it lies beside that, is believed as that is, and any call of root may make it. It is never older than the sources. With
each module are time and size of its source. Where they differ the source is read, and the pack is removed. The file's name and its first bytes tell which
Python it is for. Without a pack modules are imported as always.
"""

from __future__ import annotations

import gc
import marshal
import posix
import sys
from _frozen_importlib_external import MAGIC_NUMBER, PathFinder, SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any

    # Name, source, whether it is a package, mtime in ns and size of the source, code as marshal writes it
    Entry = tuple[str, str, bool, int, int, bytes]
else:
    ModuleType = type(sys)

_CALL = ("rundctl.cli", "rundctl.commands.engine", "rundctl.engine.container.context")
_ACT = (*_CALL, "rundctl.engine.container.lifecycle", "rundctl.engine.cgroups.kinds")
_CREATE = (
    *_ACT,
    "rundctl.engine.container.stages",
    "rundctl.engine.container.create",
    "rundctl.engine.settings",
    "rundctl.oci._generated.config_validator",
    "rundctl.engine.cgroups.paths",
    "rundctl.engine.cgroups.cgroup_pool",
    "rundctl.engine.cgroups.plain",
    "rundctl.host.process",
    "rundctl.vmm.qmp",
)
_DELETE = (
    *_ACT,
    "rundctl.engine.cgroups.refill",
    "rundctl.engine.cgroups.cgroup_pool",
    "rundctl.engine.cgroups.plain",
    "rundctl.engine.container.pid_file",
    "rundctl.engine.container.poststop",
)
# What a verb may need: these, and what they import when they are loaded.
VERBS = {
    "create": (*_CREATE, "rundctl.commands.create"),
    "run": (*_CREATE, *_DELETE, "rundctl.commands.run"),
    "start": (*_ACT, "rundctl.commands.start"),
    "state": (*_CALL, "rundctl.commands.state", "rundctl.engine.container.states"),
    "kill": (*_ACT, "rundctl.commands.kill"),
    "delete": (*_DELETE, "rundctl.commands.delete"),
}
_DIRECTORY = __file__.rpartition("/")[0]
_GARBAGE = (
    100_000  # so many new objects until circles of them are looked for: more than a start makes. Python's own is 700.
)


def load(words: Sequence[str]) -> None:
    """Have at hand what the first word of a command line that is such a verb will need: a guess, by which nothing is lost if it is none."""
    gc.set_threshold(_GARBAGE)
    verb = next((word for word in words if word in VERBS), "")
    if not verb:
        return
    pack = f"{_DIRECTORY}/__pycache__/{verb}.{sys.implementation.cache_tag}.pack"
    entries = _read(pack)
    if not entries and posix.geteuid() == 0 and posix.access(pack.rpartition("/")[0], posix.W_OK):
        _write(pack, _record(VERBS[verb]))
    for entry in entries:
        if entry[0] not in sys.modules:
            _Module(entry, pack)


class _Module(ModuleType):
    """A module that is filled when something is asked of it, and then is as any other."""

    def __init__(self, entry: Entry, pack: str) -> None:
        name, self.__file__, is_package, *_ = entry
        super().__init__(name)
        above, _, last = name.rpartition(".")
        self.__package__ = name if is_package else above
        if is_package:
            self.__path__ = [self.__file__.rpartition("/")[0]]
        self.__entry = entry, pack
        sys.modules[name] = self
        if above:
            setattr(sys.modules[above], last, self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the interpreter asks of every module
            raise AttributeError(name)
        entry, pack = self.__dict__.pop("_Module__entry")
        self.__class__ = ModuleType  # type: ignore[assignment]
        exec(_code(entry, pack), self.__dict__)  # noqa: S102 (as every import)
        return getattr(self, name)


def _code(entry: Entry, pack: str) -> CodeType:
    """A module's code: the pack's, unless the source is another by now."""
    name, file, _, time, size, code = entry
    if _stamp(file) == (time, size):
        return marshal.loads(code)  # type: ignore[no-any-return]  # noqa: S302 (as every import)
    _remove(pack)
    return SourceFileLoader(name, file).get_code(name)  # type: ignore[return-value]


def _stamp(file: str) -> tuple[int, int]:
    """Time and size of a source; none if it is gone."""
    try:
        info = posix.stat(file)
    except OSError:
        return 0, 0
    return info.st_mtime_ns, info.st_size


def _read(pack: str) -> list[Entry]:
    """What is in a pack; nothing if there is none that is whole, of this Python, and of this place."""
    try:
        fd = posix.open(pack, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return []
    try:
        data = posix.read(fd, posix.fstat(fd).st_size)
    finally:
        posix.close(fd)
    if not data.startswith(MAGIC_NUMBER):
        return []
    try:
        directory, entries = marshal.loads(memoryview(data)[len(MAGIC_NUMBER) :])  # noqa: S302 (as every import)
    except (EOFError, ValueError, TypeError):
        return []
    return entries if directory == _DIRECTORY else []


def _write(pack: str, entries: list[Entry]) -> None:
    """Write a pack, in one step; where that cannot be, there is none."""
    temporary = f"{pack}.{posix.getpid()}.tmp"
    try:
        fd = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            file.write(MAGIC_NUMBER + marshal.dumps((_DIRECTORY, entries)))
        posix.rename(temporary, pack)
    except OSError:
        _remove(temporary)


def _remove(file: str) -> None:
    try:
        posix.unlink(file)
    except OSError:  # another call was faster, or we may not
        return


def _record(names: tuple[str, ...]) -> list[Entry]:
    """Import these; all that was loaded by it, each after the package that it is in."""
    recorder = _Recorder()
    sys.meta_path.insert(0, recorder)
    try:
        for name in names:
            __import__(name)
    finally:
        sys.meta_path.remove(recorder)
    return sorted(recorder.done)


class _Recorder:
    """A finder that imports as always, and notes each module."""

    def __init__(self) -> None:
        self.done: list[Entry] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find one of ours."""
        spec = PathFinder.find_spec(name, path, target) if name.startswith("rundctl.") else None
        if spec is not None and spec.origin:
            spec.loader = _Noted(name, spec.origin, self.done)
        return spec


class _Noted(SourceFileLoader):
    """Loads one module, and notes it."""

    def __init__(self, name: str, path: str, done: list[Entry]) -> None:
        super().__init__(name, path)
        self._done = done

    def exec_module(self, module: ModuleType) -> None:
        """Run it. Its source is looked at first: if it becomes another meanwhile, what is noted is not believed."""
        stamp = _stamp(self.path)
        code = self.get_code(self.name)
        assert code is not None
        self._done.append((self.name, self.path, self.is_package(self.name), *stamp, marshal.dumps(code)))
        exec(code, module.__dict__)  # noqa: S102 (as every import)
