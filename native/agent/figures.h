/* What the host may read of a container: files of its cgroup, and its processes. Nothing else of the guest, and so much at a time. */
#ifndef RUNDCTL_AGENT_FIGURES_H
#define RUNDCTL_AGENT_FIGURES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire.h"

/* Both fill the payload of a RESULT and return its size, or -errno. */

/* Answers READ: the files of the cgroup `directory` (a descriptor, or -1) that `names` names. */
ssize_t figures_read(int directory, const uint8_t *names, size_t size, uint8_t bytes[WIRE_PAYLOAD_MAX]);
/* Answers PROCESSES: those of the container's cgroup that procfs at `proc` (a descriptor) shows from `payload`'s place on. */
ssize_t figures_processes(int proc, uint16_t container, const uint8_t *payload, size_t size, uint8_t bytes[WIRE_PAYLOAD_MAX]);

#endif
