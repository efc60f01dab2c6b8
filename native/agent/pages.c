#include "pages.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "cleanup.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* linux/mman.h, since 5.14 */
#endif

/* Larger ones are reservations of address space (a sanitizer's), not to be filled. */
#define MAPPING_MAX ((uintptr_t)4 << 20)

static void close_file(FILE **file)
{
	if (*file)
		(void)fclose(*file);
}

void pages_own(void)
{
	__attribute__((cleanup(close_file))) FILE *maps = fopen("/proc/self/maps", "re");
	char line[256]; /* names of mappings are last, and of no interest */
	uintptr_t start;
	uintptr_t end;
	char flags[5];

	while (maps && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &start, &end, flags) == 3 && flags[1] == 'w' && flags[3] == 'p' && end - start <= MAPPING_MAX)
			(void)madvise((void *)start, end - start, MADV_POPULATE_WRITE);
}
