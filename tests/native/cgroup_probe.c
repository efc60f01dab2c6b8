/* cgroup.c on directories that a test has made: `cgroup_probe signal DIRECTORY NUMBER` and `cgroup_probe remove`, with errnos on
 * stdout; `cgroup_probe make`: of making a container's cgroup in what is at /sys/fs/cgroup, with three free descriptors, one, none. */
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "cgroup.h"

int __real_statfs(const char *path, struct statfs *status);
int __wrap_statfs(const char *path, struct statfs *status);

int __wrap_statfs(const char *path, struct statfs *status)
{
	int result = __real_statfs(path, status);

	status->f_type = CGROUP2_SUPER_MAGIC;
	return result;
}

static int make_with(rlim_t descriptors)
{
	struct rlimit before, now;

	getrlimit(RLIMIT_NOFILE, &before);
	now = (struct rlimit){descriptors, before.rlim_max};
	setrlimit(RLIMIT_NOFILE, &now);
	int fd = cgroup_make(1);
	setrlimit(RLIMIT_NOFILE, &before);
	return fd < 0 ? -fd : close(fd);
}

int main(int argc, char **argv)
{
	rlim_t first = (rlim_t)dup(STDIN_FILENO);

	close((int)first);
	cgroup_enable();
	if (argc == 4) {
		int directory = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		printf("%d\n", -cgroup_signal(directory, atoi(argv[3])));
		close(directory);
	} else if (strcmp(argv[1], "make") == 0) {
		int enough = make_with(first + 3), one = make_with(first + 1), none = make_with(first);
		printf("%d %d %d\n", enough, one, none);
	} else {
		cgroup_remove(1, cgroup_make(1));
	}
	return 0;
}
