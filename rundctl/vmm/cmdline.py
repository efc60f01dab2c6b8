"""The guest kernel's command line: each word, why it is there, and what its removal costs."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Word = tuple[str, str, str]

WORDS: tuple[Word, ...] = (
    (
        "console=ttyS0",
        "the kernel's words reach the builder's log and --debug's console.log",
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
)
QUIET: Word = (
    "quiet",
    "a cold boot shows warnings and worse",
    "a serial port write for each byte of the boot messages",
)
VERBOSE: Word = (
    "loglevel=7",
    "the template's builder reads in the log when the clocks have settled",
    "it cannot know, and waits longer",
)


def cmdline(*, verbose: bool) -> str:
    """The words as QEMU's ``-append`` wants them."""
    return " ".join(word for word, _, _ in (*WORDS, VERBOSE if verbose else QUIET))
