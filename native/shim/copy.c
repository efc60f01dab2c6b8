/* What a guest is to see of the host's mounts, copied so that no procfs can be among it: each mount is copied alone, never with what is mounted below, and
 * only by a descriptor whose file system was looked at. What the table of mounts misses, or names wrongly because a directory is just being renamed, is
 * missing in the copy; nothing else follows from that. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "shim.h"

static int collect_at(struct copy *copy, struct mounts *mounts, const char *path);

int open_beneath(int directory, const char *path)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC,
			       .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
	int fd = (int)syscall(SYS_openat2, directory, path, &how, sizeof(how));

	return fd < 0 ? -errno : fd;
}

/* Where we do not get to, nobody who serves the guest does: nothing need be shown or hidden there. But for want of memory or descriptors nothing may be left
 * out, since it may hide something. */
static bool is_shortage(int error)
{
	return error == -EMFILE || error == -ENFILE || error == -ENOMEM;
}

/* Finds the piece that a path leads through last. From there on less can be renamed; in a procfs, nothing. */
static void find_parent(const struct copy *copy, struct piece *piece)
{
	piece->rest = piece->path;
	for (size_t i = 1; i < copy->count; i++) {
		const char *inside = path_below(piece->path, copy->pieces[i].path);

		if (inside && inside > piece->rest) {
			piece->parent = i;
			piece->rest = inside;
		}
	}
}

/* What of a procfs a descriptor shows, as a path from its root on; NULL if the table does not tell, or if it has only processes (subset=pid). */
static char *part_of(struct mounts *mounts, int fd, unsigned long long number)
{
	const struct mounted *mounted = mounts_read(mounts) < 0 ? NULL : mounts_find(mounts, number);
	char path[PATH_MAX], *part;
	const char *inside;
	bool is_whole;

	if (!mounted || path_of(fd, path) < 0)
		return NULL;
	inside = strcmp(path, mounted->target) == 0 ? "" : path_below(path, mounted->target);
	if (!inside)
		return NULL;
	is_whole = !*inside && strcmp(mounted->root, "/") == 0;
	if (is_whole && faccessat(fd, "stat", F_OK, AT_SYMLINK_NOFOLLOW) < 0)
		return NULL;
	return asprintf(&part, ".%s%s%s", is_whole ? "" : mounted->root, *inside ? "/" : "", inside) < 0 ? NULL : part;
}

/* A detached mount: the copy of what is in a place, or nothing where that is a procfs. Nor is anything shown of a namespace, which would live on and could come
 * to hold itself, or of what cannot be copied: an unbindable mount, or one whose server is gone, so that nobody can say what it is. */
static int copy_of(const struct copy *copy, struct mounts *mounts, struct piece *piece)
{
	struct statfs status;
	int tree = fstatfs(piece->place, &status) < 0 ? -errno : 0;

	piece->read_only = copy->read_only;
	if (tree == 0 && status.f_type == PROC_SUPER_MAGIC) {
		piece->part = part_of(mounts, piece->place, piece->number);
		piece->read_only |= (status.f_flags & ST_RDONLY) != 0;
		return mount_nothing(piece->place);
	}
	if (tree == 0 && status.f_type == NSFS_MAGIC)
		return mount_nothing(piece->place);
	if (tree == 0)
		tree = mount_copy(piece->place, copy->read_only);
	return tree >= 0 || is_shortage(tree) || copy->count == 0 ? tree : mount_nothing(piece->place);
}

/* Notes the mount's number, and tells whether the place is its root. */
static bool look(struct piece *piece)
{
	struct statx status;

	/* Both are told unasked. Asked for anything, another user's FUSE refuses to answer root. */
	if (statx(piece->place, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &status) < 0)
		return false;
	piece->number = status.stx_mask & STATX_MNT_ID ? status.stx_mnt_id : 0;
	return status.stx_attributes & STATX_ATTR_MOUNT_ROOT;
}

static bool is_collected(const struct copy *copy, unsigned long long number)
{
	for (size_t i = 0; i < copy->count; i++)
		if (copy->pieces[i].number == number)
			return true;
	return false;
}

/* What runtimes mount on the files of a procfs to hide and protect them is found without the table, which might miss it. */
static int collect_masks(struct copy *copy, struct mounts *mounts, const char *procfs, int place)
{
	cleanup_close int fd = openat(place, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_closedir DIR *listing = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	int error = 0;

	if (!listing)
		return -errno;
	(void)take_fd(&fd);
	/* Processes come last. */
	while (!error && (entry = readdir(listing)) && !isdigit((unsigned char)entry->d_name[0])) {
		cleanup_free char *path = NULL;

		if (asprintf(&path, "%s%s%s", procfs, *procfs ? "/" : "", entry->d_name) < 0)
			return -ENOMEM;
		error = entry->d_name[0] == '.' ? 0 : collect_at(copy, mounts, path);
	}
	return error;
}

static void piece_free(struct piece *piece)
{
	close_fd(&piece->place);
	close_fd(&piece->tree);
	free(piece->path);
	free(piece->part);
}

static int append(struct copy *copy, const struct piece *piece)
{
	struct piece *grown = realloc(copy->pieces, (copy->count + 1) * sizeof(*grown));

	if (!grown)
		return -ENOMEM;
	copy->pieces = grown;
	grown[copy->count++] = *piece;
	return 0;
}

/* Takes over what the piece has. Only the source need be no mount's root; another place that is none was unmounted or renamed since, and a mount that is
 * there already has others below it at the same path. */
static int collect(struct copy *copy, struct mounts *mounts, struct piece piece)
{
	bool is_root = look(&piece);
	int error = 0;

	piece.tree = -1;
	if (copy->count == 0 || (is_root && !is_collected(copy, piece.number)))
		error = piece.tree = copy_of(copy, mounts, &piece);
	if (piece.tree >= 0)
		error = append(copy, &piece);
	if (piece.tree < 0 || error < 0) {
		piece_free(&piece);
		return error;
	}
	if (!copy->recursive || !piece.part || strcmp(piece.part, ".") != 0)
		return 0;
	return collect_masks(copy, mounts, piece.path, piece.place);
}

static int collect_at(struct copy *copy, struct mounts *mounts, const char *path)
{
	struct piece piece = {.path = strdup(path)};

	if (!piece.path)
		return -ENOMEM;
	find_parent(copy, &piece);
	piece.place = open_beneath(copy->pieces[piece.parent].place, piece.rest);
	if (piece.place >= 0)
		return collect(copy, mounts, piece);
	free(piece.path);
	return is_shortage(piece.place) ? piece.place : 0;
}

static int collect_below(struct copy *copy, struct mounts *mounts, int source)
{
	char path[PATH_MAX];
	int error = path_of(source, path);

	if (!error)
		error = mounts_read(mounts);
	for (size_t i = 0; i < mounts->count && !error; i++) {
		const char *inside = path_below(mounts->list[i].target, path);

		if (inside)
			error = collect_at(copy, mounts, inside);
	}
	return error;
}

int copy_collect(struct copy *copy, struct mounts *mounts, int source, bool recursive, bool read_only)
{
	struct piece piece = {.path = strdup(""), .place = fcntl(source, F_DUPFD_CLOEXEC, 0)};
	int error = !piece.path ? -ENOMEM : piece.place < 0 ? -errno : 0;

	*copy = (struct copy){.recursive = recursive, .read_only = read_only};
	if (!error)
		error = collect(copy, mounts, piece);
	if (!error && recursive)
		error = collect_below(copy, mounts, source);
	for (size_t i = 0; i < copy->count; i++)
		close_fd(&copy->pieces[i].place);
	return error;
}

/* What has no place any more is left out. */
static int lay(const struct copy *copy, struct piece *piece)
{
	const struct piece *parent = &copy->pieces[piece->parent];
	cleanup_close int place = parent->is_laid ? open_beneath(parent->tree, piece->rest) : -ENOENT;

	if (place < 0)
		return is_shortage(place) ? place : 0;
	piece->is_laid = syscall(SYS_move_mount, piece->tree, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) == 0;
	return piece->is_laid || errno == ENOENT ? 0 : -errno;
}

int copy_lay(struct copy *copy, int directory, const char *name)
{
	int error = 0;

	if (syscall(SYS_move_mount, copy->pieces[0].tree, "", directory, name, MOVE_MOUNT_F_EMPTY_PATH) < 0)
		return -errno;
	copy->pieces[0].is_laid = true;
	for (size_t i = 1; i < copy->count && !error; i++)
		error = lay(copy, &copy->pieces[i]);
	return error;
}

void copy_free(struct copy *copy)
{
	for (size_t i = 0; i < copy->count; i++)
		piece_free(&copy->pieces[i]);
	free(copy->pieces);
}
