/* What a guest is to see of the host's mounts, copied so that no procfs can be among it: each mount is copied alone, never with what is mounted below, and
 * only by a descriptor whose file system was looked at. What the table of mounts misses is missing in the copy. What it names and is not there, because a
 * directory is just being renamed, has the table read anew, and in the end no copy made: it may hide something. */
#include "copy.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "mountinfo.h"
#include "place.h"
#include "procfs.h"

/* A rename takes a moment; who renames all the time keeps a start from its end, and hides nothing. */
enum { ROUNDS = 50, PAUSE_US = 2000 };
enum { WHOLE_PROCFS = 1 }; /* the number of its root (PROC_ROOT_INO, linux/proc_ns.h) */
enum { OUT_OF_REACH = 1 };

static int collect_at(struct copy *copy, struct mounts *mounts, const char *path);

/* For want of memory or descriptors nothing may be left out, since it may hide something. */
static bool is_shortage(int error)
{
	return error == -EMFILE || error == -ENFILE || error == -ENOMEM;
}

/* What even root does not get to, so that nobody who serves the guest does: another user's FUSE, or a file system whose server is gone or does not want us. */
static bool is_refusal(int error)
{
	return error == -EACCES || error == -EPERM || error == -EIO || error == -ENOTCONN || error == -ESTALE || error == -ETIMEDOUT;
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

/* What of a procfs a descriptor shows, as a path from its root on; NULL if the table does not tell, or tells of another mount that had this number, or if it
 * has only processes (subset=pid). */
static char *part_of(struct mounts *mounts, const struct piece *piece, bool is_root)
{
	const struct mounted *mounted = mounts_read(mounts) < 0 ? NULL : mounts_find(mounts, piece->number);
	char path[PATH_MAX], *part;
	const char *inside = "";
	struct stat status;
	bool is_whole;

	if (!mounted || fstat(piece->place, &status) < 0)
		return NULL;
	is_whole = status.st_ino == WHOLE_PROCFS;
	if (is_whole != (is_root && strcmp(mounted->root, "/") == 0))
		return NULL;
	if (is_whole && faccessat(piece->place, "stat", F_OK, AT_SYMLINK_NOFOLLOW) < 0)
		return NULL;
	if (!is_root && (path_of(piece->place, path) < 0 || !(inside = path_below(path, mounted->target))))
		return NULL;
	return asprintf(&part, ".%s%s%s", strcmp(mounted->root, "/") == 0 ? "" : mounted->root, *inside ? "/" : "", inside) < 0 ? NULL : part;
}

/* Of a process, which the lid has not. */
static bool is_of_process(const char *part)
{
	return strncmp(part, "./", 2) == 0 && isdigit((unsigned char)part[2]);
}

static int copy_nothing(struct piece *piece)
{
	piece->is_empty = true;
	return mount_nothing(piece->place);
}

/* A detached mount: the copy of what is in a place, or nothing where that is a procfs. Nor is anything shown of a namespace, which would live on and could come
 * to hold itself, or of what cannot be copied: an unbindable mount, or one whose server is gone, so that nobody can say what it is. */
static int copy_of(const struct copy *copy, struct mounts *mounts, struct piece *piece, bool is_root)
{
	struct statfs status;
	int tree = fstatfs(piece->place, &status) < 0 ? -errno : 0;

	piece->read_only = copy->read_only;
	if (tree == 0 && status.f_type == PROC_SUPER_MAGIC) {
		piece->part = part_of(mounts, piece, is_root);
		piece->read_only |= (status.f_flags & ST_RDONLY) != 0;
		return copy_nothing(piece);
	}
	if (tree == 0 && status.f_type == NSFS_MAGIC)
		return copy_nothing(piece);
	if (tree == 0)
		tree = mount_copy(piece->place, copy->read_only);
	return tree >= 0 || is_shortage(tree) || copy->count == 0 ? tree : copy_nothing(piece);
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
static int collect_masks(struct copy *copy, struct mounts *mounts, const char *procfs, int place, bool is_whole)
{
	cleanup_close int fd = openat(place, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_closedir DIR *listing = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	int error = 0;

	if (!listing)
		return errno == ENOTDIR || errno == ENOENT ? 0 : -errno;
	(void)take_fd(&fd);
	while (error >= 0 && (errno = 0, entry = readdir(listing))) {
		cleanup_free char *path = NULL;

		if (is_whole && isdigit((unsigned char)entry->d_name[0]))
			return 0; /* processes come last */
		if (asprintf(&path, "%s%s%s", procfs, *procfs ? "/" : "", entry->d_name) < 0)
			return -ENOMEM;
		error = entry->d_name[0] == '.' ? 0 : collect_at(copy, mounts, path);
	}
	return error < 0 ? error : -errno;
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
		error = piece.tree = copy_of(copy, mounts, &piece, is_root);
	if (piece.tree >= 0)
		error = append(copy, &piece);
	if (piece.tree < 0 || error < 0) {
		piece_free(&piece);
		return error;
	}
	if (!copy->recursive || !piece.part || is_of_process(piece.part))
		return 0;
	return collect_masks(copy, mounts, piece.path, piece.place, strcmp(piece.part, ".") == 0);
}

/* OUT_OF_REACH if we are refused there; what is not there, is not collected. */
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
	return is_shortage(piece.place) ? piece.place : is_refusal(piece.place) ? OUT_OF_REACH : 0;
}

/* -EAGAIN if it should be there and is not: it may be what hides something, so it cannot be left out. */
static int collect_line(struct copy *copy, struct mounts *mounts, const struct mounted *line, const char *path)
{
	const char *inside = path_below(line->target, path);
	int error = inside ? collect_at(copy, mounts, inside) : OUT_OF_REACH;

	if (error)
		return error < 0 ? error : 0;
	return is_collected(copy, line->number) || !mounts_shows(mounts, line, copy->pieces[0].number, path) ? 0 : -EAGAIN;
}

static int collect_below(struct copy *copy, struct mounts *mounts, int source)
{
	char path[PATH_MAX];
	int error = path_of(source, path);

	if (!error)
		error = mounts_read(mounts);
	for (size_t i = 0; i < mounts->count && !error; i++)
		error = collect_line(copy, mounts, &mounts->list[i], path);
	return error;
}

static int collect_all(struct copy *copy, struct mounts *mounts, int source, bool recursive, bool read_only)
{
	struct piece piece = {.path = strdup(""), .place = fcntl(source, F_DUPFD_CLOEXEC, 0)};
	int error = !piece.path ? -ENOMEM : piece.place < 0 ? -errno : 0;

	*copy = (struct copy){.recursive = recursive, .read_only = read_only};
	if (error) {
		free(piece.path);
		close_fd(&piece.place);
		return error;
	}
	error = collect(copy, mounts, piece);
	if (!error && recursive)
		error = collect_below(copy, mounts, source);
	for (size_t i = 0; i < copy->count; i++)
		close_fd(&copy->pieces[i].place);
	return error;
}

int copy_collect(struct copy *copy, struct mounts *mounts, int source, bool recursive, bool read_only)
{
	int error = -EAGAIN;

	for (int round = 0; error == -EAGAIN && round < ROUNDS; round++) {
		if (round) {
			copy_free(copy);
			mounts_free(mounts);
			(void)usleep(PAUSE_US);
		}
		error = collect_all(copy, mounts, source, recursive, read_only);
	}
	return error == -EAGAIN ? -EBUSY : error;
}

static int move(int tree, int parent, const char *path)
{
	cleanup_close int place = open_beneath(parent, path);

	if (place < 0)
		return place;
	return syscall(SYS_move_mount, tree, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0 ? -errno : 0;
}

/* What lies in a mount that shows less than the host's may have no place there; elsewhere it is only renamed, and comes back. */
static int lay(const struct copy *copy, struct piece *piece)
{
	const struct piece *parent = &copy->pieces[piece->parent];
	int error = 0;

	if (!parent->is_laid)
		return 0;
	for (int round = 0; round < ROUNDS; round++) {
		if (round)
			(void)usleep(PAUSE_US);
		error = move(piece->tree, parent->tree, piece->rest);
		piece->is_laid = error == 0;
		if (piece->is_laid || is_shortage(error))
			return error;
		if (parent->is_empty)
			return 0;
	}
	return -EBUSY;
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
	*copy = (struct copy){0};
}
