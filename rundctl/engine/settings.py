"""Settings of the host's administrator: ``/etc/rundctl/config.toml`` and ``RUNDCTL_HOME``.

They say where things are and how large a VM is, never what a container is: that is its bundle's business.
"""

from __future__ import annotations

from rundctl.errors import ConfigError
from rundctl.host import patience as host_patience
from rundctl.lean import os
from rundctl.oci.options import ROOTFS_MODES, TRANSPORTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_PATH = "/etc/rundctl/config.toml"
HOME = "/var/lib/rundctl"
_LIMITS = {
    "memory_mib": (64, 1 << 20),
    "vcpus": (1, 255),
    "upper_mib": (64, 16 << 20),
    "guest_overhead_mib": (0, 4096),
    "vmm_overhead_mib": (8, 4096),
    "images_max_mib": (0, 1 << 30),
    "translations_mib": (1, 2048),
    "pool_size": (1, 10000),
    "patience": (1, host_patience.MOST),
}
_PATHS = ("home", "kernel_modules", "virtiofsd")
_CHOICES = {
    "accelerator": ("auto", "kvm", "tcg"),
    "template": ("on", "off"),
    "rootfs": ROOTFS_MODES,
    "lower": TRANSPORTS,
    "pool_refill": ("delete", "off"),
}


class Settings:
    """Every setting with its default.

    home            kernels, templates and caches             memory_mib, vcpus, upper_mib   size of a VM
    kernel          name of a fetched kernel, or path of a vmlinux or bzImage; "": the default, which `kernel fetch`, `build` and `use` set
    kernel_modules  directory (lib/modules/VERSION) of a kernel given as a path; "": all it needs is built in
    qemu            path of the program, name of a lean one, or "system"; "": the lean one once built, else the host's
    accelerator     auto, kvm, tcg
    patience        how many times longer than usual all is waited for, on a host that is so much slower; RUNDCTL_PATIENCE comes first (`host.patience`)
    guest_overhead_mib  what a VM gets beside its container's memory limit: the guest kernel's own share
    vmm_overhead_mib    what a VM may take of the host beside its memory and translated code, where its container has a memory limit (docs/cgroups.md)
    template        on, off: whether VMs are cloned or booted
    rootfs          volatile, persistent: whether what a container writes to its root file system dies with it or goes into the bundle's;
                    auto: persistent where somebody may read it afterwards (`rootfs.choice.reader_of`)
    lower           auto, virtiofs, erofs, 9p, blk: how the shared layer of a rootfs reaches the guest (docs/rootfs.md)
    virtiofsd       path of the server that virtio-fs needs; "": the host's
    translations_mib  what each emulated VM may keep of translated code: a start fills 14, and with less than a program uses again and again
                    it is many times slower (docs/performance.md); nothing with KVM
    pool_size       free slots that `pool fill` gives a cgroup pool, unless told otherwise (docs/cgroups.md)
    pool_refill     delete, off: whether a pool is filled up in the background of `delete`, or only by `pool fill`
    images_max_mib  what all EROFS images of root file systems may take on disk; 0: none are made. The default has room for some hundred
                    base images of 50 to 100 MB, or for ten large ones, and is little beside the layers that they are copies of
    """

    __slots__ = (
        "accelerator",
        "guest_overhead_mib",
        "home",
        "images_max_mib",
        "kernel",
        "kernel_modules",
        "lower",
        "memory_mib",
        "patience",
        "pool_refill",
        "pool_size",
        "qemu",
        "rootfs",
        "template",
        "translations_mib",
        "upper_mib",
        "vcpus",
        "virtiofsd",
        "vmm_overhead_mib",
    )

    def __init__(self) -> None:
        self.home = HOME
        self.memory_mib = 128
        self.vcpus = 1
        self.upper_mib = 2048
        self.guest_overhead_mib = 64
        self.vmm_overhead_mib = 32
        self.kernel = ""
        self.kernel_modules = ""
        self.qemu = ""
        self.accelerator = "auto"
        self.template = "on"
        self.rootfs = "auto"
        self.lower = "auto"
        self.virtiofsd = ""
        self.translations_mib = 32
        self.images_max_mib = 10240
        self.patience = 1
        self.pool_size = 8
        self.pool_refill = "delete"

    def set(self, key: str, value: object, where: str) -> None:
        """Set one, after a check. ConfigError naming the key, and ``where`` it was found."""
        if key not in self.__slots__:
            raise ConfigError(f"{where}: {key}: no such setting", hint=f"known: {', '.join(sorted(self.__slots__))}")
        setattr(self, key, _checked(key, value, where))


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Defaults, then the file (``RUNDCTL_CONFIG``, else the usual one, which may be missing), then ``RUNDCTL_HOME``; of our environment, if none is given."""
    variable = os.getenv if environment is None else environment.get
    settings = Settings()
    asked = variable("RUNDCTL_CONFIG", "")
    path = asked or CONFIG_PATH
    for key, value in _read(path, must_exist=bool(asked)).items():
        settings.set(key, value, path)
    home = variable("RUNDCTL_HOME", "")
    if home:
        settings.set("home", home, "RUNDCTL_HOME")
    return settings


def patience(environment: Mapping[str, str] | None = None) -> int:
    """The file's factor for deadlines, for verbs that need no other setting: 1 where the file says nothing of it, or cannot be read.

    Those verbs must work whatever is wrong with the file, and tomllib is loaded only where the word is in it.
    """
    variable = os.getenv if environment is None else environment.get
    path = variable("RUNDCTL_CONFIG", "") or CONFIG_PATH
    try:
        with open(path, "rb") as file:
            says_it = b"patience" in file.read()
        return load(environment).patience if says_it else 1
    except (OSError, ConfigError):
        return 1


def _read(path: str, *, must_exist: bool) -> dict[str, object]:
    if not must_exist and not os.path.exists(path):
        return {}
    import tomllib  # 5 ms, paid only by those who have such a file

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _checked(key: str, value: object, where: str) -> str | int:
    if key in _LIMITS:
        low, high = _LIMITS[key]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ConfigError(f"{where}: {key}: expected an integer from {low} to {high}, got {value!r}")
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key}: expected a string, got {value!r}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ConfigError(f"{where}: {key}: expected one of {', '.join(_CHOICES[key])}, got {value!r}")
    if key in _PATHS and value and not value.startswith("/"):
        raise ConfigError(f"{where}: {key}: expected an absolute path, got {value!r}")
    return value
