"""The guest kernel's command line: each word, why it is there, and what its removal costs."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Word = tuple[str, str, str]

WORDS: tuple[Word, ...] = (
    (
        "console=ttyS0",
        "the kernel's words reach the template builder, which quotes the last ones if it fails",
        "a guest that panics while booting is silent",
    ),
    (
        "panic=-1",
        "a panic reboots at once, and with -no-reboot that ends QEMU",
        "a panicked guest hangs until its deadline instead of being reported",
    ),
    (
        "reboot=t",
        "reboot by triple fault, the one way every accelerator has and that needs no device",
        "the kernel tries ACPI, the keyboard controller and the BIOS first",
    ),
    (
        "swiotlb=noforce",
        "no bounce buffers: nothing here is limited to 32-bit DMA",
        "maxmem beyond 4 GiB makes the kernel set aside tens of MiB of a 128 MiB guest",
    ),
    (
        "tsc=reliable",
        "the time stamp counter is virtual and cannot drift from the other clocks",
        "every idle clone wakes twice a second for the clocksource watchdog, which a busy host can trick into distrusting it",
    ),
    (
        "no_timer_check",
        "the timer interrupt is emulated: no need to test its wiring",
        "on a loaded host, under emulation, the test times out and the kernel panics",
    ),
    (
        "rcupdate.rcu_expedited=1",
        "mounting, unmounting and removing namespaces do not wait for an RCU grace period",
        "several milliseconds for each of them, in every container's start",
    ),
    (
        "sysctl.vm.overcommit_memory=1",
        "what a program maps and never touches may be larger than its VM, as on a host with much memory; it is held by what it touches",
        "one mapping of more than the VM has is refused (ENOMEM), where runc's container goes on, or is killed at its limit",
    ),
    # An idle clone should not wake: a hundred of them share a core with those that work. Measured in docs/performance.md.
    (
        "nowatchdog",
        "a guest that hangs is its host's to notice: by its channel",
        "a timer and a switch to the stopper thread every 4 s, and a perf event that the emulator does not have",
    ),
    (
        "psi=0",
        "pressure stall information is the host's business, where the container's cgroup is",
        "the averages are computed every 2 s",
    ),
    (
        "deferred_probe_timeout=0",
        "no driver will come that a device could still wait for",
        "a timer that was set in the template expires in every clone 10 s after its start",
    ),
    (
        "sysctl.vm.compaction_proactiveness=0",
        "memory is compacted when somebody needs it, not ahead of that",
        "kcompactd wakes twice a second",
    ),
    (
        "sysctl.vm.stat_interval=3600",
        "counters of a few processors need not be folded every second",
        "a worker runs every second",
    ),
    (
        "sysctl.net.ipv4.neigh.default.interval_probe_time_ms=3600000",
        "no neighbour is marked as managed, so there is nothing to probe",
        "a worker runs every 5 s",
    ),
    (
        "sysctl.net.ipv6.neigh.default.interval_probe_time_ms=3600000",
        "the same for IPv6",
        "another worker every 5 s",
    ),
)
QUIET: Word = (
    "quiet",
    "a cold boot shows warnings and worse",
    "a serial port write for each byte of the boot messages",
)
VERBOSE: Word = (
    "loglevel=7",
    "the builder shows the last lines of a guest that did not boot",
    "one that hangs before its agent runs leaves no trace",
)


EMULATED_AND_SHARED: Word = (
    "init_on_alloc=1",
    "the guest itself writes to each page before a virtiofsd fills it: the emulator sees that, and drops what it translated of the page's last contents",
    "programs that are read by virtio-fs crash, for they run as what was in their memory before: the emulator does not see a virtiofsd's writes",
)


KNOWN_RATE: Word = (
    "tsc_early_khz={}",
    "the rate of the time stamp counter, as a guest was found to have it right on this host: the emulator passes the host's through",
    "each boot measures it, and on a busy host wrongly: a clock that is then too fast by any factor (KVM tells its guests)",
)


def cmdline(*, verbose: bool, emulated_and_shared: bool = False, tsc_khz: int = 0) -> str:
    """The words as QEMU's ``-append`` wants them.

    ``emulated_and_shared``: without KVM, and another process writes to the guest's memory. ``tsc_khz``: if it is known and nobody tells the guest.
    """
    words = [word for word, _, _ in WORDS]
    if emulated_and_shared:
        words.append(EMULATED_AND_SHARED[0])
    if tsc_khz:
        words.append(KNOWN_RATE[0].format(tsc_khz))
    return " ".join([*words, (VERBOSE if verbose else QUIET)[0]])
