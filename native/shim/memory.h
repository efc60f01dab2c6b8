/* A guest's own copy of its template's memory. */
#ifndef RUNDCTL_SHIM_MEMORY_H
#define RUNDCTL_SHIM_MEMORY_H

/* What is in one file and is not zero is in the other, too; -errno. */
int memory_copy(int from, int to);

#endif
