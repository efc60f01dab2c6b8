/* The agent linked with calls that fail or wait, by the word in FAULT (`-Wl,--wrap`): what no host does when a test asks for it. */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

ssize_t __real_write(int fd, const void *bytes, size_t size);
ssize_t __wrap_write(int fd, const void *bytes, size_t size);
void __real_cgroup_remove(uint16_t container, int cgroup);
void __wrap_cgroup_remove(uint16_t container, int cgroup);

static bool fault(const char *name)
{
	const char *wanted = getenv("FAULT");

	return wanted && strcmp(wanted, name) == 0;
}

/* "memory": the channel takes no more than a page at once, as a virtio port whose kernel has its memory in pieces, and of those
 * every second one only. */
ssize_t __wrap_write(int fd, const void *bytes, size_t size)
{
	static unsigned pages;
	int type;
	socklen_t length = sizeof type;

	if (fault("memory") && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 &&
	    (size > 4096 || ++pages % 2)) {
		errno = ENOMEM;
		return -1;
	}
	return __real_write(fd, bytes, size);
}

/* "removal": as long as it takes, which is until SIGUSR1 comes. */
void __wrap_cgroup_remove(uint16_t container, int cgroup)
{
	sigset_t end;
	int number;

	sigemptyset(&end);
	sigaddset(&end, SIGUSR1);
	if (fault("removal"))
		sigwait(&end, &number);
	__real_cgroup_remove(container, cgroup);
}
