/* KVM attaches a kernel thread of its own to the cgroups of whoever makes a VM, and detaches it when the VM is gone (kvm_vm_worker_thread, Linux before 6.13).
 * For that the kernel takes a lock of all processes. Who takes it first after a quiet time waits for an RCU grace period, 8 to 16 ms; who comes within one
 * after that does not. So a process with no other purpose takes it, and waits, while QEMU starts, or ends. */
#include "attach.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

/* It is in that cgroup already, so that nothing moves. What it inherits would tell nobody any more that its holder is gone. */
static void attach_self(int procs) __attribute__((noreturn));
static void attach_self(int procs)
{
	if (procs > 0)
		(void)syscall(SYS_close_range, 0, (unsigned int)procs - 1, 0);
	(void)syscall(SYS_close_range, (unsigned int)procs + 1, ~0U, 0);
	/* The second time, which waits for nothing, has the kernel keep the lock quick for one grace period more (rcu_sync). */
	for (int i = 0; i < 2; i++)
		if (write(procs, "0", 1) != 1)
			_exit(1);
	_exit(0);
}

void attach_ahead(int procs)
{
	pid_t pid = procs < 0 ? -1 : fork();

	if (pid == 0)
		attach_self(procs);
	/* On a host with one processor it is to wait before others work, not after. */
	if (pid > 0)
		(void)sched_yield();
}
