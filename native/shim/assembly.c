/* What QEMU, and a helper beside it, see of the host's files: a mount namespace of their own, and in it what they are to serve. */
#include "assembly.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "copy.h"
#include "options.h"
#include "place.h"
#include "procfs.h"

#define VOLUMES_FLAGS (MS_NOSUID | MS_NODEV | MS_NOEXEC)

/* The sources' copies, and the container's own directory: a place that is surely there, for what only this process is to see. */
struct assembly {
	char path[PATH_MAX];
	struct copy *copies;
	size_t count;
	struct mounts mounts;
};

static int assembly_begin(struct assembly *assembly, const struct options *options, size_t most)
{
	*assembly = (struct assembly){.copies = calloc(most + 1, sizeof(*assembly->copies))};
	return assembly->copies ? path_of(options->state, assembly->path) : -ENOMEM;
}

static int assembly_end(struct assembly *assembly, int result)
{
	for (size_t i = 0; i < assembly->count; i++)
		copy_free(&assembly->copies[i]);
	free(assembly->copies);
	mounts_free(&assembly->mounts);
	return result;
}

static int collect(struct assembly *assembly, int source, bool recursive, bool read_only)
{
	return copy_collect(&assembly->copies[assembly->count++], &assembly->mounts, source, recursive, read_only);
}

/* A source's descriptor makes room for its copy's, but for the one whose number QEMU was told. */
static int collect_volumes(struct assembly *assembly, const struct options *options)
{
	int error = 0;

	for (size_t i = 0; i < options->volume_count && !error; i++) {
		const struct volume *volume = &options->volumes[i];

		error = collect(assembly, volume->fd, volume->recursive, volume->read_only);
		if (volume->fd != options->volumes_fd)
			close(volume->fd);
	}
	return error;
}

/* Slave of the host's namespace, so that this copy pins no mount that the host wants to be rid of. */
int namespace_enter(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		return -errno;
	/* Nor does a working directory: the caller's was the bundle. */
	if (chdir("/") < 0)
		return -errno;
	return 0;
}

/* After it nothing comes in any more: the copies are private, so what the host mounts from now on does not appear in them. */
static int enter(struct assembly *assembly)
{
	int error = namespace_enter();

	return error ? error : procfs_cover(assembly->copies, assembly->count, assembly->path);
}

static int open_directory(const char *path)
{
	int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return directory < 0 ? -errno : directory;
}

/* A directory named by a number below the tmpfs, as a descriptor. */
static int numbered(int tmpfs, size_t number)
{
	char name[24];

	(void)snprintf(name, sizeof(name), "%zu", number);
	if (mkdirat(tmpfs, name, 0700) < 0)
		return -errno;
	int directory = openat(tmpfs, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return directory < 0 ? -errno : directory;
}

/* Lays one source's copy as NUMBER/NAME below the tmpfs: of a bind, mountinfo tells the source's name, which some programs look at. */
static int lay_volume(int tmpfs, size_t number, const struct volume *volume, struct copy *copy)
{
	cleanup_close int file = -1;
	cleanup_close int directory = numbered(tmpfs, number);

	if (directory < 0)
		return directory;
	if (volume->is_file) {
		file = openat(directory, volume->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (file < 0)
			return -errno;
	} else if (mkdirat(directory, volume->name, 0700) < 0) {
		return -errno;
	}
	return copy_lay(copy, directory, volume->name);
}

static int lay_volumes(const struct assembly *assembly, const struct options *options, struct copy *copies)
{
	cleanup_close int directory = -1;
	int error = 0;

	if (mount("volumes", assembly->path, "tmpfs", VOLUMES_FLAGS, "mode=0755,size=64k") < 0)
		return -errno;
	directory = open_directory(assembly->path);
	if (directory < 0)
		return directory;
	for (size_t i = 0; i < options->volume_count && !error; i++)
		error = lay_volume(directory, i, &options->volumes[i], &copies[i]);
	/* The names are ours: a guest makes none beside them. */
	if (!error && mount(NULL, assembly->path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | VOLUMES_FLAGS, NULL) < 0)
		error = -errno;
	return error ? error : take_fd(&directory);
}

int volumes_assemble(const struct options *options)
{
	struct assembly assembly;
	int error = assembly_begin(&assembly, options, options->volume_count);

	if (!error)
		error = collect_volumes(&assembly, options);
	if (!error)
		error = enter(&assembly);
	return assembly_end(&assembly, error ? error : lay_volumes(&assembly, options, assembly.copies));
}

int directory_show(const struct options *options, int fd, bool read_only)
{
	struct assembly assembly;
	int error = assembly_begin(&assembly, options, 1);

	if (!error)
		error = collect(&assembly, fd, true, read_only);
	if (!error)
		error = enter(&assembly);
	return assembly_end(&assembly, error ? error : copy_lay(assembly.copies, AT_FDCWD, assembly.path));
}

/* Leaves the descriptor open under that number alone. */
static int renumber(int fd, int number)
{
	cleanup_close int old = fd;

	if (old < 0)
		return old;
	return dup2(old, number) < 0 ? -errno : 0;
}

static int export_directory(struct assembly *assembly, const struct options *options, struct copy *copy)
{
	int error = copy_lay(copy, AT_FDCWD, assembly->path);

	return error ? error : renumber(open_directory(assembly->path), options->exported);
}

int exports_assemble(const struct options *options)
{
	bool volumes = options->volumes_fd >= 0, exported = options->exported >= 0;
	struct assembly assembly;
	int error = assembly_begin(&assembly, options, options->volume_count + 1);

	if (!error && volumes)
		error = collect_volumes(&assembly, options);
	if (!error && exported)
		error = collect(&assembly, options->exported, true, options->exported_read_only);
	if (!error)
		error = enter(&assembly);
	if (!error && volumes)
		error = renumber(lay_volumes(&assembly, options, assembly.copies), options->volumes_fd);
	if (!error && exported)
		error = export_directory(&assembly, options, &assembly.copies[assembly.count - 1]);
	return assembly_end(&assembly, error);
}
