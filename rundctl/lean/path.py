"""Paths, as `os.path` has them for text. What is not here, and paths that are bytes or objects, go to the standard module, which is loaded for them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os.path import *  # noqa: F403 (whatever is asked for)
else:
    from posix import getcwd, lstat, readlink, stat

    _KIND, _DIRECTORY, _FILE = 0o170000, 0o040000, 0o100000  # of st_mode: inode(7)
    _LINKS = 40  # of one path, beyond which it may be a circle

    def __getattr__(name):
        import posixpath

        return getattr(posixpath, name)

    def join(above, *names):
        """The names one below the other; one that is absolute begins anew."""
        for name in names:
            if name.startswith("/") or not above:
                above = name
            else:
                above += name if above.endswith("/") else f"/{name}"
        return above

    def split(path):
        """What is before the last slash, without slashes at its end unless it has nothing else; and what is after it."""
        head, slash, tail = path.rpartition("/")
        return head.rstrip("/") or head + slash, tail

    def dirname(path):
        """What is above."""
        return split(path)[0]

    def basename(path):
        """The last name."""
        return path.rpartition("/")[2]

    def isabs(path):
        """Whether it begins at the root."""
        return path.startswith("/")

    def _mode(path, look=stat):
        try:
            return look(path).st_mode
        except (OSError, ValueError):
            return 0

    def exists(path):
        """Whether something is there, behind links."""
        return _mode(path) != 0

    def lexists(path):
        """Whether something is there, if only a link."""
        return _mode(path, lstat) != 0

    def isdir(path):
        """Whether a directory is there, behind links."""
        return _mode(path) & _KIND == _DIRECTORY

    def isfile(path):
        """Whether a file is there, behind links."""
        return _mode(path) & _KIND == _FILE

    def normpath(path):
        """Without empty names, dots, and names that two dots take back. Two slashes at the beginning stay, as POSIX has it."""
        root = "//" if path.startswith("//") and not path.startswith("///") else "/" if path.startswith("/") else ""
        names = []
        for name in path.split("/"):
            if name == ".." and (root or (names and names[-1] != "..")):
                del names[-1:]
            elif name not in ("", "."):
                names.append(name)
        return root + "/".join(names) or "."

    def abspath(path):
        """From the root, whatever directory we are in."""
        return normpath(join(getcwd(), path))

    def realpath(path):
        """Where links lead, as far as something is there."""
        left, real, links = join(getcwd(), path).split("/")[::-1], "", 0
        while left:
            name = left.pop()
            if name == "..":
                real = dirname(real)
            elif name not in ("", "."):
                try:
                    target = readlink(join(real or "/", name))
                except OSError:  # nothing, or no link
                    real = join(real or "/", name)
                    continue
                links += 1
                if links > _LINKS:
                    return __getattr__("realpath")(path)
                real = "" if isabs(target) else real
                left += target.split("/")[::-1]
        return real or "/"

    def samestat(one, other):
        """Whether two results of stat(2) are of the same."""
        return (one.st_ino, one.st_dev) == (other.st_ino, other.st_dev)
