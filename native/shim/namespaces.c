#include "namespaces.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "options.h"

/* Engines join what they find below /proc/PID/ns, and change it: a network plugin that was given the host's namespace puts its interfaces and routes
 * there. The process is in the container's cgroup by now, so that is the root of its cgroup namespace. `lo` stays down: nobody here talks to anybody. */
int namespaces_enter(const struct options *options)
{
	if (unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP) < 0)
		return -errno;
	if (sethostname(options->hostname, strlen(options->hostname)) < 0)
		return -errno;
	return setdomainname(options->domainname, strlen(options->domainname)) < 0 ? -errno : 0;
}
