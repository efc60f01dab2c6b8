/* What no applet of busybox does: `mmap FILE`, `unlinked FILE`, `fsync FILE`, `read FILE` at each line of stdin. One word says how it went. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int complain(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

static int map(const char *path)
{
	int fd = open(path, O_RDWR);
	char *data = fd < 0 ? MAP_FAILED : mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (data == MAP_FAILED)
		return complain("mmap");
	if (data[0] != 'a' || data[8191] != 'a')
		return complain("contents");
	memcpy(data + 4090, "across pages", 12);
	if (msync(data, 8192, MS_SYNC) < 0)
		return complain("msync");
	memcpy(data, "unmapped", 8);
	if (munmap(data, 8192) < 0)
		return complain("munmap");
	puts("ok");
	return 0;
}

static int unlinked(const char *path)
{
	struct stat status;
	char text[4] = "";
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);

	if (fd < 0 || write(fd, "data", 4) != 4)
		return complain("write");
	if (unlink(path) < 0)
		return complain("unlink");
	if (pread(fd, text, 4, 0) != 4 || memcmp(text, "data", 4) != 0 || pwrite(fd, "more", 4, 4) != 4)
		return complain("read and write");
	if (fstat(fd, &status) < 0)
		return complain("fstat");
	puts("ok");
	return 0;
}

static int sync_file(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0640);

	if (fd < 0 || write(fd, "synced", 6) != 6 || fsync(fd) < 0 || fdatasync(fd) < 0)
		return complain("fsync");
	puts("ok");
	return 0;
}

static int follow(const char *path)
{
	char line[16], text[256];
	ssize_t size;
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return complain("open");
	setvbuf(stdout, NULL, _IONBF, 0);
	do {
		size = pread(fd, text, sizeof(text), 0);
		printf("%.*s\n", (int)(size < 0 ? 0 : size), text);
	} while (fgets(line, sizeof(line), stdin));
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	if (!strcmp(argv[1], "mmap"))
		return map(argv[2]);
	if (!strcmp(argv[1], "unlinked"))
		return unlinked(argv[2]);
	if (!strcmp(argv[1], "fsync"))
		return sync_file(argv[2]);
	return follow(argv[2]);
}
