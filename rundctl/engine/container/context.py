"""What all verbs share, and what ``create`` and ``run`` were asked for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rundctl.engine.settings import Settings
    from rundctl.host.memo import Memo
    from rundctl.types import Progress


class Context:
    """What all verbs share.

    Where containers lie (None: the default root), where debug lines, warnings and a build's progress go, how the settings are loaded, and whether systemd
    is to make the cgroups of new containers.
    """

    __slots__ = ("_load", "_memo", "_settings", "debug", "progress", "root", "systemd_cgroup", "warn")

    def __init__(
        self,
        root: str | None,
        debug: Callable[[str], None],
        warn: Callable[[str], None],
        load: Callable[[], Settings],
        progress: Progress,
        *,
        systemd_cgroup: bool = False,
    ) -> None:
        self.root = root
        self.debug = debug
        self.warn = warn
        self.progress = progress
        self.systemd_cgroup = systemd_cgroup
        self._load = load
        self._settings: Settings | None = None
        self._memo: Memo | None = None

    @property
    def settings(self) -> Settings:
        """The settings, loaded when they are first asked for: a container can be looked at and ended whatever is wrong with the file. ConfigError if it is."""
        if self._settings is None:
            self._settings = self._load()
        return self._settings

    @property
    def memo(self) -> Memo:
        """The host's remembered answers, read when they are first asked for: one for the whole call."""
        if self._memo is None:
            from rundctl.host import memo

            self._memo = memo.of_home(self.settings.home)
        return self._memo


class CreateOptions:
    """What ``create`` and ``run`` were asked for."""

    __slots__ = ("bundle", "detach", "id", "keep", "no_new_keyring", "pid_file", "template", "timings")

    def __init__(  # noqa: PLR0913 (one parameter an option of the verb)
        self,
        id: str,  # noqa: A002 (the OCI's own name)
        bundle: str,
        *,
        pid_file: str = "",
        template: bool | None = None,
        timings: Callable[[str], None] | None = None,
        no_new_keyring: bool = False,
        keep: bool = False,
        detach: bool = False,
    ) -> None:
        self.id = id
        self.bundle = bundle
        self.pid_file = pid_file
        self.template = template
        self.timings = timings
        self.no_new_keyring = no_new_keyring
        self.keep = keep
        self.detach = detach
