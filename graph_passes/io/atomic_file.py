"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vsfix.graph_passes.errors import InputError, OutputExistsError

from .temporary_files import replaced_permissions, temporary_file, temporary_folder

_NEW, _REPLACED = "new", "replaced"


def require_writable(path: Path, *, force: bool) -> None:
    """Fails early when `path` can't become an output, before any work is spent on it.

    Args:
        path: the output file.
        force: an existing file may be replaced.

    Raises:
        OutputExistsError: the file exists and `force` is not given.
        InputError: the path is a folder, a pipe or a device, or its folder is missing or read-only.
    """
    try:
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file")
        if _is_no_place_for_a_file(path):
            raise InputError(
                f"{path}: is a pipe, a socket or a device, which a file can't take the place of; name a file"
            )
        if os.path.lexists(path) and not force:
            raise OutputExistsError(f"{path}: exists already; pass --force to replace it")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"{path}: nothing can be written into the folder {path.parent}; name another")
    except OSError as error:  # a name that is too long, say
        raise InputError(f"{path}: can't be written ({error.strerror or error})") from error


def _is_no_place_for_a_file(path: Path) -> bool:
    """Whether a pipe or a device stands there, or a link to what is open, as /dev/stdout, which may well be a file."""
    if path.is_symlink() and path.readlink().is_relative_to("/proc"):
        return True
    if path.parent.resolve() in (Path("/dev"), Path("/dev/fd").resolve()):
        return True
    return path.exists() and not path.is_file()


@contextmanager
def atomic_path(path: Path, *, force: bool) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on success it is synced and renamed to `path`.

    On any error the temporary file is removed and the old file at `path` is unchanged. A link is replaced
    by the file; what it leads to stays.

    Raises:
        OutputExistsError, InputError: as `require_writable`; also when the file system refuses the write.
    """
    require_writable(path, force=force)
    try:
        with temporary_file(path) as temporary:
            yield temporary
            _publish(temporary, path, force=force)
    except OSError as error:
        raise InputError(f"{path}: can't write ({error.strerror or error})") from error


@contextmanager
def atomic_paths(paths: Sequence[Path], *, force: bool) -> Iterator[tuple[Path, ...]]:
    """Several files of one folder that appear together; yields a temporary path, of the same file name, for each.

    The last path is the one that refers to the others: the old one goes first, the new one comes last. Whenever the
    machine stops, the last path names either files that belong together or nothing. On an error before the new files
    are whole all the old ones are unchanged.

    Args:
        paths: the outputs, all in one folder.
        force: existing files may be replaced.

    Raises:
        OutputExistsError, InputError: as `require_writable`; also when the file system refuses the write.
    """
    for path in paths:
        require_writable(path, force=force)
    last = paths[-1]
    try:
        with temporary_folder(last, last.parent) as folder:
            temporary = tuple(folder / path.name for path in paths)
            yield temporary
            for new in temporary:
                _finish(new)
            for path in paths:  # what another process has written meanwhile
                require_writable(path, force=force)
            _exchange(temporary, paths)
    except OSError as error:
        raise InputError(f"{last}: can't write ({error.strerror or error})") from error


@contextmanager
def atomic_folder(path: Path, *, force: bool, scratch: Path) -> Iterator[Path]:
    """Yields a folder to be filled; on success it is synced and renamed to `path`, in place of the old one.

    On any error the folder is removed, and the old one at `path` is unchanged.

    Args:
        path: the output; its own folder is made where it is missing.
        force: an existing folder may be replaced, with everything in it.
        scratch: where the new one is made: on the same file system, and not where other programs look for folders.

    Raises:
        OutputExistsError: the folder exists and `force` is not given.
        InputError: a file stands there; also when the file system refuses the write.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; name a folder")
    if path.exists() and not force:
        raise OutputExistsError(f"{path}: exists already; pass --force to replace it with everything in it")
    try:
        with temporary_folder(path, scratch) as temporary:
            new = temporary / _NEW
            new.mkdir()
            yield new
            for folder, _, files in os.walk(new):
                for file in files:
                    _finish(Path(folder, file))
                _sync_folder(Path(folder))
            _replace_folder(new, path)
    except OSError as error:
        raise InputError(f"{path}: can't write ({error.strerror or error})") from error


def _replace_folder(new: Path, path: Path) -> None:
    """Puts a folder in the place of another; after an error the old one is back."""
    made = not path.parent.exists()
    if made:
        path.parent.mkdir()
    old = new.with_name(_REPLACED)
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        if made and not path.exists():
            path.parent.rmdir()
        raise
    _sync_folder(path.parent)


def _exchange(temporary: Sequence[Path], paths: Sequence[Path]) -> None:
    """Puts the new files, which are on the disk, in the place of the old ones; the last is away meanwhile."""
    for new, path in zip(temporary, paths, strict=True):
        _keep_permissions(new, path)
    paths[-1].unlink(missing_ok=True)
    for new, path in zip(temporary, paths, strict=True):
        new.replace(path)
    _sync_folder(paths[-1].parent)


def _publish(temporary: Path, path: Path, *, force: bool) -> None:
    """Finishes `temporary` and renames it to `path`; without `force` only where nothing stands by now."""
    _finish(temporary)
    _keep_permissions(temporary, path)
    if force:
        temporary.replace(path)
    else:
        _place_first(temporary, path)
    _sync_folder(path.parent)


def _place_first(temporary: Path, path: Path) -> None:
    """Gives a file the name `path`, unless another process had it first."""
    try:
        path.hardlink_to(temporary)
    except OSError:  # the name is taken, or there are no hard links here
        require_writable(path, force=False)
        temporary.replace(path)


def _keep_permissions(temporary: Path, path: Path) -> None:
    """Gives a file those of the file that it takes the place of: what was closed to others stays closed."""
    permissions = replaced_permissions(path)
    if permissions is not None:
        temporary.chmod(permissions)


def _finish(temporary: Path) -> None:
    """Flushes a file to the disk."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Flushes the names in a folder to the disk, where the folder may be read and its file system does such a thing."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)
