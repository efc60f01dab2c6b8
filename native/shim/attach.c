/* KVM attaches a kernel thread of its own to the cgroups of whoever makes a VM, and detaches it when the VM is gone (kvm_vm_worker_thread, Linux before 6.13).
 * For that the kernel takes a lock of all processes. Who takes it first after a quiet time waits for an RCU grace period, 8 to 16 ms; who comes within one
 * after that does not. So it is taken ahead: while QEMU starts, by a process with no other purpose, and while QEMU ends, by the shim, which waits for that
 * alone. */
#include "attach.h"

#include <sys/syscall.h>
#include <unistd.h>

/* The process is in that cgroup already, so that nothing moves. The second time waits for nothing, and has the kernel keep the lock quick for one grace period
 * more (rcu_sync). */
void attach(int procs)
{
	if (procs < 0)
		return;
	for (int i = 0; i < 2; i++)
		if (write(procs, "0", 1) != 1)
			return;
}

/* What it inherits would tell nobody any more that its holder is gone. */
static void attach_self(int procs) __attribute__((noreturn));
static void attach_self(int procs)
{
	if (procs > 0)
		(void)syscall(SYS_close_range, 0, (unsigned int)procs - 1, 0);
	(void)syscall(SYS_close_range, (unsigned int)procs + 1, ~0U, 0);
	attach(procs);
	_exit(0);
}

void attach_ahead(int procs)
{
	if (procs >= 0 && fork() == 0)
		attach_self(procs);
}
