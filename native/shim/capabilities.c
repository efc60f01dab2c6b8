/* What root may do that serves a guest's files: with them, and nothing beyond them. */
#include "capabilities.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BIT(capability) (1ULL << (capability))

/* Owners and modes as the guest gives them, whatever they are: CAP_FSETID keeps a setuid bit over a write, CAP_SETFCAP is for security.capability.
 * /dev/kvm needs no more than CAP_DAC_OVERRIDE. */
static const uint64_t for_files = BIT(CAP_CHOWN) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_DAC_READ_SEARCH) | BIT(CAP_FOWNER) | BIT(CAP_FSETID) | BIT(CAP_MKNOD) |
				  BIT(CAP_SETFCAP);
/* virtiofsd makes namespaces and a root of its own, raises its limit of open files, takes the guest's users' ids, and then drops what it can. */
static const uint64_t for_helpers = BIT(CAP_SYS_ADMIN) | BIT(CAP_SYS_CHROOT) | BIT(CAP_SYS_RESOURCE) | BIT(CAP_SETUID) | BIT(CAP_SETGID) | BIT(CAP_SETPCAP);

static int drop_inheritable(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &head, sets) < 0)
		return -errno;
	for (size_t i = 0; i < sizeof(sets) / sizeof(*sets); i++)
		sets[i].inheritable = 0;
	/* The ambient ones go with them (capabilities(7)). */
	return syscall(SYS_capset, &head, sets) < 0 ? -errno : 0;
}

/* Root gets at exec what is in the bounding set or inheritable. */
int capabilities_limit(bool helper)
{
	uint64_t kept = for_files | (helper ? for_helpers : 0);

	for (unsigned int number = 0; number < 64; number++) {
		int has = prctl(PR_CAPBSET_READ, number, 0, 0, 0);

		if (has < 0) /* the kernel knows no more */
			break;
		if (has && !(kept & BIT(number)) && prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0)
			return -errno;
	}
	return drop_inheritable();
}
