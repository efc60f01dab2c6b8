"""``create`` step by step, in the order of ARCHITECTURE.md's "life of one create". What a failed step must undo is on one ``ExitStack``."""

from __future__ import annotations

import errno
import time

from rundctl.engine.cgroups import kinds, limits
from rundctl.engine.container import pid_file, poststop, shapes, vm
from rundctl.engine.container.shim_command import ShimCommand
from rundctl.engine.plan import compiler, devices, seccomp, volumes
from rundctl.engine.records import store
from rundctl.engine.rootfs import choice, hybrid_rootfs
from rundctl.engine.rootfs.transport import LOWER
from rundctl.engine.template import inputs, kernel_template
from rundctl.errors import ConfigError, GuestError, HostError, ProcessError, RundctlError
from rundctl.guest import wire
from rundctl.guest.ops import Op, Opcode, Plan
from rundctl.host import cgroup_settings, cgroupfs, interruption, mountinfo, patience, rlimits, stdio
from rundctl.host import devices as host_devices
from rundctl.lean import os
from rundctl.lean.contextlib import ExitStack
from rundctl.oci import bundle as bundles
from rundctl.oci import hooks, identity
from rundctl.oci.state import state_json
from rundctl.types import Accelerator, MemoryMode, Status
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rundctl.engine.cgroups.lease import Lease
    from rundctl.engine.container.context import Context, CreateOptions
    from rundctl.engine.container.stages import Stages
    from rundctl.engine.plan.compiler import CompiledPlan
    from rundctl.engine.plan.volumes import Volumes
    from rundctl.engine.records.store import Container
    from rundctl.engine.rootfs.shares import Share
    from rundctl.engine.rootfs.transport import Rootfs
    from rundctl.engine.template.kernel_template import Saved
    from rundctl.engine.template.store import Template
    from rundctl.oci.bundle import Bundle

_NO_DOMAIN = "(none)"  # as the guest's kernel has it, and every other that was told none
_CLOCK_LATE_S = 0.04  # how much later than it was read a clock may be set; an idle host's guest answers in half of that
_CLOCK_TRIES = 10


def create(ctx: Context, options: CreateOptions, stages: Stages) -> int:
    """Make a container, up to where only ``start`` is missing; returns the shim's pid. On any error nothing of it is left."""
    container_id = identity.container_id(options.id)
    bundle = bundles.load(options.bundle)
    root = store.make_root(ctx.root or store.DEFAULT_ROOT)
    wanted = bundle.spec["linux"].get("cgroupsPath", "")
    path = kinds.path_of(wanted, container_id, store.root_name(root), systemd=ctx.systemd_cgroup)
    store.check_free(root, container_id)
    stages.mark("bundle")
    with ExitStack() as locked, ExitStack() as undo, ExitStack() as sources:
        with interruption.allowed():
            shared = volumes.open_all(sources, bundle)
            asked = limits.parse(bundle.spec["linux"].get("resources", {}))
            rootfs = _choose_rootfs(sources, ctx, bundle, shapes.memory_mib(asked, ctx.settings))
            if rootfs.live:
                shared.add_live(sources, rootfs.live)
            request = shapes.request_for(asked, ctx.settings, rootfs, volumes=bool(shared.descriptors))
            template = kernel_template.find(ctx.settings, ctx.memo, request, warn=ctx.warn) or kernel_template.ensure(
                ctx.settings, ctx.memo, ctx.progress, request, warn=ctx.warn
            )
        stages.mark("template")
        machine = shapes.machine_of(template.shape, ctx.settings)
        lease = kinds.lease(_hierarchies(ctx), path, f"{root}/{container_id}", systemd=ctx.systemd_cgroup)
        undo.callback(_undo, ctx, lease.let_go)
        container = store.claim(locked, root, container_id, _facts(bundle, lease, machine))
        undo.callback(_undo, ctx, _forget, ctx, container)
        undo.callback(_undo, ctx, lambda: kinds.recorded(container.record["cgroups"]).give_back())
        undo.callback(lease.joined)
        lease.make(container.set_cgroups)
        ctx.debug(f"cgroup {path}: {lease.describe()}")
        held = limits.for_vm(asked, machine)
        cgroup_settings.apply(lease.directories, held)
        lease.limited(held)
        stages.mark("cgroup")
        launch = Launch(
            ctx, options, stages, container=container, bundle=bundle, template=template, rootfs=rootfs, shared=shared
        )
        pid = launch.run(undo, sources, lease)
        undo.pop_all()
    return pid


def _hierarchies(ctx: Context) -> list[cgroupfs.Hierarchy]:
    """Where cgroups can be made; where they cannot is told."""
    passed_over: list[str] = []
    found = cgroupfs.hierarchies(passed_over=passed_over)
    for why in passed_over:
        ctx.debug(f"no cgroup is made where {why}")
    return found


def _choose_rootfs(opened: ExitStack, ctx: Context, bundle: Bundle, memory_mib: int) -> Rootfs:
    """By what the root file system comes into a VM of this size."""
    settings = ctx.settings
    chosen = hybrid_rootfs.choose(
        opened, bundle, settings, ctx.memo, memory_mib, lambda: inputs.able(settings, ctx.memo), warn=ctx.warn
    )
    ctx.debug(f"rootfs by {chosen.transport} ({chosen.device}): {chosen.reason}")
    return chosen


def _undo(ctx: Context, step: Callable[..., object], *arguments: object) -> None:
    """Take one step back. That it failed is told, but must not hide why it was taken."""
    try:
        step(*arguments)
    except (RundctlError, OSError) as error:
        ctx.debug(f"undo create: {error}")


def _forget(ctx: Context, container: Container) -> None:
    """As with runc poststop hooks run also if no other did; while the container is locked, so that a ``delete --force`` waits for them."""
    store.remove(container)
    poststop.run(ctx, container, container.record["bundle"])


def _facts(bundle: Bundle, lease: Lease, machine: limits.Machine) -> dict[str, object]:
    """What later verbs need of a bundle, which may be gone by then."""
    spec = bundle.spec
    return {
        "oci_version": spec["ociVersion"],
        "bundle": bundle.path,
        "rootfs": bundle.rootfs,
        "annotations": spec.get("annotations", {}),
        "hooks": {kind: spec.get("hooks", {}).get(kind, []) for kind in ("poststart", "poststop")},
        "argv0": spec["process"]["args"][0],
        "owner_uid": os.geteuid(),
        "cgroups": lease.facts(),
        "machine": machine.facts(),
        "resources": spec["linux"].get("resources", {}),
    }


class Launch:
    """The VM's part of one ``create``."""

    __slots__ = ("bundle", "container", "ctx", "options", "rootfs", "shared", "stages", "template")

    def __init__(  # noqa: PLR0913  all that a create has found out, once
        self,
        ctx: Context,
        options: CreateOptions,
        stages: Stages,
        *,
        container: Container,
        bundle: Bundle,
        template: Template,
        rootfs: Rootfs,
        shared: Volumes,
    ) -> None:
        self.ctx = ctx
        self.options = options
        self.stages = stages
        self.container = container
        self.bundle = bundle
        self.template = template
        self.rootfs = rootfs
        self.shared = shared

    @property
    def _cold(self) -> bool:
        """Whether to boot instead of cloning: the flag, else the annotation, else the setting."""
        for asked in (self.options.template, self.bundle.options.template):
            if asked is not None:
                return not asked
        return self.ctx.settings.template == "off"

    def run(self, undo: ExitStack, sources: ExitStack, lease: Lease) -> int:
        """Spawn, and compile the plan while QEMU starts; then wake the guest, set up the container, commit. ``sources`` are closed when the shim has them."""
        with ExitStack() as opened:
            try:
                machine, saved = self._spawn(opened, lease)
            except GuestError as error:  # it was gone before it was greeted
                raise self._explain(error) from error
            undo.callback(machine.end)
            sources.close()
            is_awake = False
            try:
                compiled = self._compile()
                self.stages.mark("compile")
                self.container.set_shim(machine.wait_pid())
                lease.joined()
                self.stages.mark("shim")
                self.stages.beside(join=machine.join_us, clone=machine.clone_us)
                self._wake(machine, saved)
                is_awake = True
                self._set_up(machine, compiled)
                self._commit(machine, undo)
            except GuestError as error:
                machine.end()  # so that the shim has said all it will say
                told = GuestError(vm.with_last_words(error.message, self.container), hint=error.hint)
                raise (told if is_awake else self._explain(told)) from error
        return machine.pid

    def _explain(self, error: GuestError) -> RundctlError:
        """Why a VM did not wake up, as far as the host is at fault: the caller's chroot, or KVM."""
        if not mountinfo.root_is_mount():
            return HostError(f"{mountinfo.ROOT_IS_NO_MOUNT}: {error.message}", hint=mountinfo.ROOT_HINT)
        if self.template.shape.accelerator is not Accelerator.KVM:
            return error
        from rundctl.engine.template import trial

        return trial.explain(self.ctx.settings, self.ctx.memo, error)

    def _spawn(self, opened: ExitStack, lease: Lease) -> tuple[vm.Vm, Saved | None]:
        """Start launcher, shim and QEMU, with every descriptor they will need; and what is to be restored, None for a VM that boots."""
        sockets = vm.Sockets(opened, self.container)
        shim = ShimCommand(opened)
        hostname, domainname = compiler.uts_names(self.bundle.spec, _hostname(self.container.id))
        shim.add(["--name", self.container.id, *([] if self._cold else ["--small-pages"])])
        if patience.factor() > 1:
            shim.add(["--patience", str(patience.factor())])
        shim.add(["--hostname", hostname, "--domainname", domainname or _NO_DOMAIN])
        self._give_files(shim, sockets)
        _give_cgroups(shim, lease, self.template.shape.accelerator)
        source = -1 if self.rootfs.is_disk else self.rootfs.open(opened)
        served = self._serve(opened, source)
        for share in served:
            shim.add(share.options, share.inherited)
        shim.add(self.shared.arguments, self.shared.descriptors)
        wiring = self._wire(shim, sockets, source, served)
        if wiring.volumes >= 0:
            shim.add(["--volumes-fd", str(wiring.volumes)])
        if wiring.rootfs >= 0:
            shim.add(["--export", f"{wiring.rootfs},{'rw' if wiring.persistent else 'ro'}"])
        argv, saved = self._qemu(shim, wiring)
        servers = [word for share in served for word in share.command]
        return vm.Vm(shim.argv([*servers, *argv]), shim.inherited, sockets), saved

    def _give_files(self, shim: ShimCommand, sockets: vm.Sockets) -> None:
        """What every shim has: its conversations, and its own view of the container."""
        log = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        shim.give("creator", sockets.creator[1].fileno())
        shim.give("agent", sockets.agent[0].fileno())
        shim.give("qmp", sockets.qmp[0].fileno())
        shim.give("control", sockets.control.fileno())
        shim.give("state", shim.held(os.open(self.container.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
        shim.give("rootfs", shim.held(os.open(self.bundle.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
        shim.give("log", shim.held(os.open(self.container.path("qemu.log"), log, 0o600)))
        if self.rootfs.persistent:
            shim.add(["--rootfs-rw"])

    def _wire(self, shim: ShimCommand, sockets: vm.Sockets, source: int, served: tuple[Share, ...]) -> qemu.Wiring:
        """What QEMU's devices are connected to; ``source``: the directory or image that the root file system is."""
        rootfs, template = self.rootfs, self.template
        kernel, initrd = self._boot_files(shim) if self._cold else (-1, -1)
        return qemu.Wiring(
            agent=sockets.agent[1].fileno(), qmp=sockets.qmp[1].fileno(), disk=shim.held(hybrid_rootfs.open_private(rootfs, template)),
            rootfs=-1 if rootfs.device_mib or served else source, image=source if rootfs.device_mib else -1,
            persistent=rootfs.persistent, volumes=-1 if served else self.shared.number, empty=template.empty,
            memory_path=template.memory, memory=self._own_memory(shim), kernel=kernel, initrd=initrd,
            shares=[(share.tag, share.socket) for share in served],
            name=self.container.id, translations_mib=self.ctx.settings.translations_mib,
        )  # fmt: skip

    def _serve(self, opened: ExitStack, source: int) -> tuple[Share, ...]:
        """The servers beside QEMU, where files come by virtio-fs."""
        if self.rootfs.daemon is None:
            return ()
        from rundctl.engine.rootfs import shares

        servers = shares.Servers(opened, self.rootfs.daemon, self.container.directory)
        root = servers.rootfs(qemu.ROOTFS_TAG, source, writable=self.rootfs.persistent)
        if not self.shared.descriptors:
            return (root,)
        return root, servers.volumes(qemu.VOLUMES_TAG, submounts=self.shared.span_file_systems())

    def _own_memory(self, shim: ShimCommand) -> int:
        """A clone that cannot share the template's pages has a file for its own, and the shim is told to fill it; -1 for one that can."""
        if self.template.shape.memory_mode is not MemoryMode.COPY:
            return -1
        memory = shim.held(self.template.make_memory())
        if not self._cold:
            source = shim.held(os.open(self.template.memory, os.O_RDONLY | os.O_CLOEXEC))
            shim.add(["--copy", f"{source},{memory}"], [source])
        return memory

    def _boot_files(self, shim: ShimCommand) -> tuple[int, int]:
        """Kernel and initramfs."""
        from rundctl.engine.template import cold_boot

        kernel = shim.held(os.open(self.template.kernel, os.O_RDONLY | os.O_CLOEXEC))
        return kernel, shim.held(cold_boot.open_initramfs(self.template))

    def _qemu(self, shim: ShimCommand, wiring: qemu.Wiring) -> tuple[list[str], Saved | None]:
        """QEMU's command line, for a clone or for a cold boot, and what is to be restored; the shim keeps what QEMU inherits."""
        saved = None
        if self._cold:
            from rundctl.engine.template import cold_boot

            argv, keep = cold_boot.argv(self.template, wiring)
        else:
            state = shim.held(os.open(self.template.state, os.O_RDONLY | os.O_CLOEXEC))
            argv, keep, saved = kernel_template.clone(self.template, wiring, state)
        for fd in keep:
            shim.give("keep", fd)
        return argv, saved

    def _compile(self) -> CompiledPlan:
        """The container as operations; ``--debug`` prints them."""
        spec = self.bundle.spec
        shared, streams = self.shared, stdio.look()
        rootfs = hybrid_rootfs.join(self.rootfs, volumes=bool(shared.descriptors), live=shared.live)
        compiled = compiler.compile(
            self.bundle,
            compiler.Facts(
                rootfs_ops=tuple(rootfs),
                volumes=shared.guest,
                shm=shared.shm,
                cgroups=frozenset(shared.cgroups),
                devices=frozenset(found[-1] for found in devices.asked(spec) if host_devices.exists(*found)),
                seccomp_bpf=seccomp.compile_filter(spec["linux"]["seccomp"], self.ctx.settings.home, self.ctx.memo)
                if "seccomp" in spec["linux"]
                else None,
                # machine-id(5); not into a rootfs that others have, or will have
                machine_id="" if self.rootfs.persistent else os.getrandom(16).hex() + "\n",
                hostname=_hostname(self.container.id),
                rlimits=rlimits.inherited(),
                nulls=streams.nulls,
                joined=streams.joined,
                keyring="" if self.options.no_new_keyring else f"_ses.{self.container.id}",
            ),
        )
        for line in compiled.warnings:
            self.ctx.warn(line)
        for line in (*compiled.ignored, *compiled.describe()):
            self.ctx.debug(line)
        return compiled

    def _wake(self, machine: vm.Vm, saved: Saved | None) -> None:
        """Restore the template, or wait for a boot; then make this clone another machine than all others."""
        timeout_s = vm.ANSWER_TIMEOUT_S
        if saved is None:
            timeout_s = vm.COLD_TIMEOUT_S
        else:
            machine.restore(*saved)
            self.stages.mark("restore")
        self._identify(machine, timeout_s)
        if not self.template.is_still_there():  # else one's state may have met another's memory, or upper
            raise HostError(f"template {self.template.key} was removed while the container was made", hint="try again")
        if saved is None:
            self.stages.mark("boot")
            from rundctl.engine.template import cold_boot

            setup = cold_boot.guest_setup(self.template)
            _check(machine.request(wire.PLAN, setup.encode(), container=0), setup, "set up the guest")
        self.stages.mark("answer")

    def _identify(self, machine: vm.Vm, timeout_s: float) -> None:
        """Tell the guest who it is, and what time it is until that came through quickly: on a busy host the first answer takes a second."""
        for _ in range(_CLOCK_TRIES):
            told_s = time.monotonic()
            payload = vm.identity(_hostname(self.container.id))
            result = machine.request(wire.IDENTITY, payload, container=0, timeout_s=timeout_s)
            if result.error:
                raise GuestError(f"identify the guest: {result.describe()}")
            late_s = time.monotonic() - told_s
            if late_s <= _CLOCK_LATE_S:
                return
            self.ctx.debug(f"the guest's clock may be {late_s * 1000:.0f} ms late")

    def _set_up(self, machine: vm.Vm, compiled: CompiledPlan) -> None:
        """Hooks of the host, then the plan, up to its WAIT."""
        for kind in ("prestart", "createRuntime"):
            wanted = self.bundle.spec.get("hooks", {}).get(kind)
            if wanted:
                self._run_hooks(kind, wanted, machine)
                self.stages.mark(kind)
        _check(machine.request(wire.PLAN, compiled.encode()), compiled, "create container")
        choice.check_live(self.rootfs)
        self.stages.mark("plan")

    def _run_hooks(self, kind: str, wanted: list[dict[str, Any]], machine: vm.Vm) -> None:
        """Not longer than the VM lives: ``delete --force``, which ends it, waits for our lock."""
        shim = os.pidfd_open(machine.pid)  # our child, which nobody has reaped
        try:
            state = state_json(self.container.record, Status.CREATING, machine.pid)
            hooks.run(kind, wanted, state, self.bundle.path, shim)
        finally:
            os.close(shim)

    def _commit(self, machine: vm.Vm, undo: ExitStack) -> None:
        """From here on the container is: record, pid file, and only then the shim's leave to outlive us."""
        path = self.options.pid_file
        self.container.record["committed"] = True
        if path:
            self.container.record["pid_file"] = os.path.abspath(path)
        self.container.save()
        if path:
            undo.callback(_undo, self.ctx, pid_file.remove, path, machine.pid)
            pid_file.write(path, machine.pid)
        machine.commit()
        self.stages.mark("commit")


def _give_cgroups(shim: ShimCommand, lease: Lease, accelerator: Accelerator) -> None:
    """What it joins, or is born in; and where it learns that the host has killed one of the VM's processes for its memory."""
    v1, v2 = lease.join_descriptors()
    for fd in v1:
        shim.give("cgroup", shim.held(fd))
    if v2 is not None:
        shim.give("cgroup2", shim.held(v2))
    attach = lease.attach_descriptor() if accelerator is Accelerator.KVM else None
    for name, given in (("attach", attach), ("oom-events", cgroup_settings.open_oom_events(lease.directories))):
        if given is not None:
            shim.give(name, shim.held(given))


def _check(result: wire.Result, sent: Plan, what: str) -> None:
    """Raise what went wrong in the guest, in the words of the operation that failed."""
    if not result.error:
        return
    op = sent.ops[result.index] if result.index < len(sent.ops) else None
    words = os.strerror(result.error).lower()
    if op is None or result.error == errno.ECHILD:  # the container was killed, whatever it was doing
        raise GuestError(f"{what}: {result.detail or result.describe()}")
    if op.opcode is Opcode.FIND:
        raise ProcessError(
            f"unable to start container process: {op.describe()}: {_find_words(str(op.arguments[0]), result.error)}"
        )
    detail = f" ({result.detail})" if result.detail else ""
    raise ConfigError(f"{what}: {op.describe()}: {words}{detail}", hint=_hint(op, result.error))


def _hint(op: Op, error: int) -> str:
    if op.opcode is Opcode.MOUNT and op.arguments[1:3] == (LOWER, "erofs"):
        return "rundctl image verify removes damaged images"
    if op.opcode is Opcode.WRITE and error == errno.ENOENT and "/hugetlb." in str(op.arguments[0]):
        return "linux.resources.hugepageLimits: the VM has pages of 2MB, and of 1GB if its processor has them"
    return ""


def _find_words(argv0: str, error: int) -> str:
    """The words runc has for it, by which callers tell 127 from 126."""
    if error == errno.ENOENT:
        return "stat " + argv0 + ": no such file or directory" if "/" in argv0 else "executable file not found in $PATH"
    return os.strerror(error).lower()


def _hostname(container_id: str) -> str:
    return container_id[: compiler.UTS_NAME_MAX]
