"""The life of a container: what every verb does. `create` itself, which brings the three ideas together, is in `container.create`."""

from __future__ import annotations

import errno
import time

from rundctl.engine.container import vm
from rundctl.engine.records import store
from rundctl.errors import (
    ConfigError,
    DamagedError,
    GuestError,
    HostError,
    ProcessError,
    RundctlError,
    StateError,
    words,
)
from rundctl.guest import wire
from rundctl.host import interruption, patience
from rundctl.host.pidfd import Process, reap
from rundctl.lean import os, signal
from rundctl.lean.contextlib import ExitStack, contextmanager, suppress
from rundctl.types import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from rundctl.engine.container.context import Context, CreateOptions
    from rundctl.engine.container.stages import Stages
    from rundctl.engine.records.store import Container

KILL_TIMEOUT_S = 2.0  # until a SIGKILL is not the guest's business any more, but the host's
SIGNAL_TIMEOUT_S = 10.0
PAUSE_TIMEOUT_S = 10.0  # QEMU first waits for what its disks have under way
_EXIT_UNKNOWN = 255


def create(ctx: Context, options: CreateOptions) -> None:
    """Make a container, up to the point where ``start`` only has to say so.

    Raises any error of ``rundctl.errors``; then nothing of it is left.
    """
    from rundctl.engine.container import create as launch  # which the other verbs need not pay for
    from rundctl.engine.container.stages import Stages

    stages = Stages()
    with interruption.Held():
        launch.create(ctx, options, stages)
    _report(ctx, options, stages)


def start(ctx: Context, container_id: str) -> None:
    """Run the container's process. StateError in the wrong state, ProcessError if it cannot be executed.

    Interrupted, it has run it or not, as the status tells; with its poststart hooks not at their end the container is ended.
    """
    with interruption.Held():
        _start(store.load(ctx.root, container_id))


def _start(container: Container) -> None:
    with store.locked(container):
        _start_locked(container)
    _poststart(container)


def _has_stopped(container: Container) -> StateError:
    hints = [container.sudden_end(), f"rundctl delete {container.id}"]
    return StateError("cannot start a container that has stopped", hint="; ".join(filter(None, hints)))


def _start_locked(container: Container) -> None:
    status = container.status()
    if status is Status.STOPPED:
        raise _has_stopped(container)
    if status is Status.PAUSED:
        raise StateError("cannot start a container in the paused state", hint=f"rundctl resume {container.id}")
    if not status.can_start:
        raise StateError("cannot start an already running container")
    result = vm.ask(container, wire.START, b"", vm.ANSWER_TIMEOUT_S)
    if result is None or result.error in (errno.ESRCH, errno.ECHILD):  # no errors of execve(2): a signal was faster
        raise _has_stopped(container)
    if result.detail:  # of a failed execve(2) there are no words
        raise GuestError(f"start {container.id}: {result.describe()}")
    if result.error:
        argv0 = container.record["argv0"]
        raise ProcessError(f'exec: "{argv0}": {os.strerror(result.error).lower()}')


def kill(ctx: Context, container_id: str, signo: int, *, everyone: bool = False) -> None:
    """Send a signal to the container's init, or to all its processes. StateError if it does not run.

    SIGKILL works whatever the guest does: without an answer, or an end, within 2 s the shim is killed and the VM with it.
    """
    container = store.load(ctx.root, container_id)
    if not container.status().can_kill:
        if everyone:
            return
        raise container.not_running()
    if signo == 0:  # asks whether it runs, as kill(2)
        return
    if signo == signal.SIGKILL:
        _end(container)
        return
    result = _signal(container, vm.signal_payload(signo, everyone=everyone))
    if result is None or result.error in (errno.ESRCH, errno.ECHILD):
        raise container.not_running()
    if result.error:
        raise GuestError(f"kill {container_id}: {os.strerror(result.error).lower()}")


def _signal(container: Container, payload: bytes) -> wire.Result | None:
    """One that is paused meanwhile gets it later, as what is frozen does with runc: whoever sends it does not wait."""
    try:
        return vm.ask(container, wire.SIGNAL, payload, SIGNAL_TIMEOUT_S)
    except GuestError:
        if container.status() is Status.PAUSED:
            return wire.Result(0, 0)
        raise


def _end(container: Container) -> None:
    """Kill the container and wait for its end; politely at first, so that its last output is flushed.

    One that is paused cannot answer and sends nothing any more: its VM is ended, and what the shim holds of its output is flushed. HostError if the shim
    cannot be killed.
    """
    shim = container.shim()
    if shim is None:
        return
    deadline = time.monotonic() + patience.seconds(KILL_TIMEOUT_S)
    with shim, ExitStack() as undo:
        with suppress(GuestError):
            channel = vm.connect(undo, container, KILL_TIMEOUT_S)
            if container.status() is Status.PAUSED:
                channel.post(wire.STOP)
            else:
                channel.post(wire.SIGNAL, vm.signal_payload(signal.SIGKILL, everyone=True), container=1)
        if not shim.wait(max(0.0, deadline - time.monotonic())):
            shim.kill()
            if not shim.wait(patience.seconds(vm.END_TIMEOUT_S)):
                _thaw(container, shim)


def _thaw(container: Container, shim: Process) -> None:
    """What somebody has frozen by its cgroup of version 1 ends only when it is thawed (freezer-subsystem.rst of the kernel)."""
    from rundctl.engine.cgroups import kinds

    for directory in kinds.recorded(container.record["cgroups"]).directories:
        with suppress(OSError), open(f"{directory}/freezer.state", "w", encoding="utf-8") as state:
            state.write("THAWED")
    if not shim.wait(patience.seconds(vm.END_TIMEOUT_S)):
        raise HostError(
            f"container {container.id}: process {shim.pid} was killed and does not end",
            hint="is a cgroup above it frozen, or does it wait for a disk?",
        )


def pause(ctx: Context, container_id: str) -> None:
    """Stop all that a container does. StateError if it does not run, GuestError if QEMU does not confirm it."""
    container = store.load(ctx.root, container_id)
    with store.locked(container):
        if not container.status().can_pause:
            raise container.not_running()
        _command(container, wire.PAUSE, "pause")


def resume(ctx: Context, container_id: str) -> None:
    """Let a paused container go on. StateError if it is not paused, GuestError if QEMU does not confirm it."""
    container = store.load(ctx.root, container_id)
    with store.locked(container):
        if not container.status().can_resume:
            raise StateError("container not paused")
        _command(container, wire.RESUME, "resume")


def _command(container: Container, kind: int, verb: str) -> None:
    """The mark that makes the status is the shim's, made when QEMU has confirmed, whether anybody waits for it or not."""
    result = vm.ask(container, kind, b"", PAUSE_TIMEOUT_S)
    if result is None:
        raise container.not_running()
    if result.error:
        raise GuestError(f"{verb} {container.id}: {result.describe()}", hint="rundctl kill ID KILL still works")


def delete(ctx: Context, container_id: str, *, force: bool = False, directory: str = ".") -> None:
    """Forget a container and free all it holds. StateError if it runs and ``force`` is not given, or does not exist.

    With ``force`` one that does not exist is fine (containerd deletes twice), and of one whose record is damaged goes what there is. ``directory``: where
    poststop hooks run: with runc in the caller's, but those of ``run`` in the bundle.
    """
    try:
        container = store.load(ctx.root, container_id)
    except DamagedError as error:
        if not force:
            raise
        _delete_damaged(ctx, container_id, error)
        return
    except StateError:
        if force:
            store.sweep(ctx.root)  # its create may have been killed before it had the id
            return
        raise
    status = container.status()
    if not force and not status.can_delete:
        raise StateError(
            f"cannot delete container {container_id} that is not stopped: {status.value}",
            hint="delete --force kills it first",
        )
    with interruption.Held():
        if status is Status.CREATING:
            _end_creator(container)
        _end(container)
        _delete_ended(ctx, container, force=force, directory=directory)


def _delete_damaged(ctx: Context, container_id: str, damage: DamagedError) -> None:
    """Free the id. The shim is asked by its socket to end, for nothing tells its pid."""
    container = store.Container(damage.directory, {"id": container_id})
    with ExitStack() as undo, suppress(GuestError):
        channel = vm.connect(undo, container, KILL_TIMEOUT_S)
        channel.wait(channel.post(wire.STOP))
    with suppress(FileNotFoundError):  # another delete was faster
        store.remove(container)
    ctx.warn(f"{damage.message}: removed; its cgroups may be left, and its poststop hooks have not run")


def _delete_ended(ctx: Context, container: Container, *, force: bool, directory: str) -> None:
    from rundctl.engine.cgroups import kinds, refill  # which start and kill need not pay for
    from rundctl.engine.container import pid_file, poststop

    with ExitStack() as held:
        try:
            held.enter_context(store.locked(container))
        except StateError:
            if not force or os.path.isdir(container.directory):
                raise
            _wait_for_creator(container)  # it failed, and was faster; or another delete was
            return
        _end(container)  # a create may have gone on until it let go of the lock
        unfinished = not container.record.get("committed") or container.exit_record().get("reason") == "creator"
        if unfinished:
            pid_file.remove_unfinished(container.record)
        _tell(ctx, kinds.recorded(container.record["cgroups"]).give_back(unfinished=unfinished))
        store.remove(container)
    poststop.run(ctx, container, directory)
    try:
        _tell(ctx, refill.after(container.record["cgroups"], wanted=lambda: ctx.settings.pool_refill == "delete"))
    except ConfigError as error:
        ctx.warn(f"{error}: the pool of cgroups is not filled up")


def _load_what_delete_needs() -> None:
    """While the container runs, when nobody waits for it."""
    from rundctl.engine.cgroups import kinds, refill  # noqa: F401


def _tell(ctx: Context, outcome: str) -> None:
    if outcome:
        ctx.debug(outcome)


def _wait_for_creator(container: Container) -> None:
    """Until a create in progress has run its poststop hooks."""
    creator = None if container.record.get("committed") else container.creator()
    if creator is not None:
        with creator, interruption.allowed():
            creator.wait(patience.seconds(store.LOCK_TIMEOUT_S))


def _end_creator(container: Container) -> None:
    """End a create in progress: through its shim if there is one already, else itself."""
    if container.record.get("shim"):
        return
    creator = container.creator()
    if creator is not None:
        with creator:
            creator.kill()
            creator.wait(patience.seconds(vm.END_TIMEOUT_S))


def run(ctx: Context, options: CreateOptions) -> int:
    """Create, start and, unless detached, wait and delete. Returns the container's exit code.

    GuestError with that exit code if the VM ended before the container did.
    """
    from rundctl.engine.container import create as launch
    from rundctl.engine.container import pid_file
    from rundctl.engine.container.stages import Stages

    stages = Stages()
    with interruption.Held() as held:
        pid = launch.create(ctx, options, stages)
        if not options.detach:  # before anything can end: a SIGCHLD that nobody keeps is lost
            signal.pthread_sigmask(signal.SIG_BLOCK, {*_forwarded(), signal.SIGCHLD})
        try:
            container = store.load(ctx.root, options.id)
            _start(container)
            stages.mark("start")
        except BaseException:
            with _only_told(ctx, f"delete {options.id}"):
                delete(ctx, options.id, force=True, directory=options.bundle)
                pid_file.remove(options.pid_file, pid)
            raise
        if not options.detach:
            held.hand_over()
    _report(ctx, options, stages)
    if options.detach:
        return 0
    _load_what_delete_needs()
    code = _wait_forwarding(pid)
    sudden = ""
    with _only_told(ctx, f"delete {options.id}"):
        ending = container.exit_record()
        sudden = container.sudden_end(ending)
        if not sudden and ending.get("oom") == "1":  # which no exit code tells
            ctx.warn(f"container {options.id}: {ending['detail']}")
        if not options.keep:
            with interruption.Held():
                _delete_ended(ctx, container, force=False, directory=options.bundle)
    if sudden:
        raise GuestError(f"container {options.id} ended: {sudden}", exit_code=code)
    return code


@contextmanager
def _only_told(ctx: Context, what: str) -> Iterator[None]:
    """As with runc, what fails at the end of ``run`` hides neither the container's exit code nor why it did not start."""
    try:
        yield
    except (RundctlError, OSError) as error:
        ctx.warn(f"{what}: {words(error) if isinstance(error, OSError) else error}")


def _forwarded() -> set[signal.Signals]:
    """All signals, as with runc: also SIGRTMIN+3, by which a systemd in the container is told to halt.

    But not those that our child's end, our own faults and our own writes raise: one that is blocked is queued even if it is ignored.
    """
    own = {signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
    return signal.valid_signals() - own - {signal.SIGKILL, signal.SIGSTOP}


def _wait_forwarding(pid: int) -> int:
    """Pass signals on to the shim, our child, until it ends; returns its exit code."""
    shim = Process.open(pid)
    if shim is None:
        return _EXIT_UNKNOWN
    signals = {*_forwarded(), signal.SIGCHLD}
    with shim:
        while True:
            info = signal.sigwaitinfo(signals)
            if info.si_signo != signal.SIGCHLD:
                shim.kill(info.si_signo)
            elif shim.wait(0):
                code = reap(pid)
                return _EXIT_UNKNOWN if code is None else code


def _poststart(container: Container) -> None:
    """As in runc, a container whose poststart hook fails is ended. HostError with the hook's words."""
    wanted = container.record["hooks"]["poststart"]
    if not wanted:
        return
    from rundctl.engine.container import states
    from rundctl.oci import hooks

    try:
        hooks.run("poststart", wanted, states.of(container), container.record["bundle"])
    except (HostError, KeyboardInterrupt):
        _end(container)
        raise


def _report(ctx: Context, options: CreateOptions, stages: Stages) -> None:
    (options.timings or ctx.debug)(f"timings: {stages.describe()}")
