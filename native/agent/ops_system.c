/* Operations on namespaces, limits and other state of the process that has no path. */
#include <linux/keyctl.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "cleanup.h"
#include "plan.h"

int op_hostname(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *name = next_string(arguments);

	(void)context;
	return check(sethostname(name, strlen(name)));
}

int op_domainname(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *name = next_string(arguments);

	(void)context;
	return check(setdomainname(name, strlen(name)));
}

int link_up(const char *name)
{
	struct ifreq request = {0};
	cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (strlen(name) >= sizeof(request.ifr_name))
		return -ENAMETOOLONG;
	memcpy(request.ifr_name, name, strlen(name));
	if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
		return -errno;
	if (request.ifr_flags & IFF_UP)
		return 0;
	request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
	return check(ioctl(fd, SIOCSIFFLAGS, &request));
}

int op_link_up(struct plan_context *context, struct plan_arguments *arguments)
{
	(void)context;
	return link_up(next_string(arguments));
}

int op_rlimit(struct plan_context *context, struct plan_arguments *arguments)
{
	unsigned resource = (unsigned)next_number(arguments);
	struct rlimit limit;

	(void)context;
	limit.rlim_cur = next_number(arguments);
	limit.rlim_max = next_number(arguments);
	return check(prlimit(0, (__rlimit_resource_t)resource, &limit, NULL));
}

int op_keyring(struct plan_context *context, struct plan_arguments *arguments)
{
	const char *name = next_string(arguments);

	(void)context;
	if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) >= 0)
		return 0;
	return errno == ENOSYS ? 0 : -errno; /* a kernel without CONFIG_KEYS has no keyring to share either */
}

int op_umask(struct plan_context *context, struct plan_arguments *arguments)
{
	umask((mode_t)next_number(arguments));
	context->umask_chosen = true;
	return 0;
}
