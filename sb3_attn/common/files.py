"""Atomic, durable file replacement."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

#: Errors of a full disk, a file that would be too large, and an exhausted quota
DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

#: What stands before a checksum at the end of a file
CHECKSUM_MARK = b"\nsha256:"


@contextmanager
def replace_on_success(path: str | os.PathLike, suffix: str) -> Iterator[Path]:
    """
    Yield the path of a temporary file, which replaces ``path`` if the block succeeds and is removed if it fails.

    So there is no moment at which neither the old file nor the new one is complete. When this has ended the file is on the
    disk, even if power fails. It has the mode of the file that it replaces. Temporaries of killed processes are removed.

    :param path: the file to replace or create; missing folders are created
    :param suffix: appended, as SB3 does, if the path has none; empty for never
    :return: the path to write to
    :raises OSError: as writing does; if the disk is full, with the path and the free space
    """
    target = Path(path)
    if suffix and not target.suffix:
        target = Path(f"{target}.{suffix}")
    target = Path(os.path.realpath(target))  # a link stays a link: the file that it points to is replaced
    with _temporary(target, _create_file) as temporary:
        yield temporary


@contextmanager
def replace_folder_on_success(path: str | os.PathLike) -> Iterator[Path]:
    """
    The same for a folder of files. An old one is there until the new one is complete.

    :param path: the folder to replace or create
    :return: the folder to write to
    :raises OSError: as writing does
    """
    with _temporary(Path(path), _create_folder) as temporary:
        yield temporary


def append_checksum(path: Path) -> None:
    """
    Add a checksum to the end of a file, where readers of pickles do not see it.

    :param path: the file
    """
    with open(path, "r+b") as file:
        checksum = _checksum(file, path.stat().st_size)
        file.write(checksum)


def has_wrong_checksum(file: BinaryIO) -> bool:
    """
    Check the checksum at the end of a file.

    :param file: the file, which is at its start afterwards
    :return: whether it does not match the file; ``False`` if there is none, as in files of earlier versions
    """
    n_content = file.seek(0, os.SEEK_END) - len(CHECKSUM_MARK) - 64
    file.seek(max(n_content, 0))
    found = file.read()
    file.seek(0)
    wrong = found.startswith(CHECKSUM_MARK) and found != _checksum(file, n_content)
    file.seek(0)
    return wrong


def _checksum(file: BinaryIO, n_bytes: int) -> bytes:
    """The mark and the SHA-256 of the next bytes of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    while n_bytes > 0 and (block := file.read(min(n_bytes, 2**20))):
        digest.update(block)
        n_bytes -= len(block)
    return CHECKSUM_MARK + digest.hexdigest().encode()


@contextmanager
def _temporary(target: Path, create: Callable[[Path, Path], int]) -> Iterator[Path]:
    """A locked temporary beside the target, which replaces it at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    temporary, descriptor = _create_locked(target, create)
    try:
        yield temporary
        for path in (*(temporary.iterdir() if temporary.is_dir() else ()), temporary):
            _sync(path)
        if temporary.is_dir() and target.exists():  # only an empty folder could be replaced
            old = target.with_name(f"{target.name}.{secrets.token_hex(8)}.partial")
            os.replace(target, old)
            os.replace(temporary, target)
            _remove(old)
        else:
            os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        n_written = sum(path.stat().st_size for path in (temporary.iterdir() if temporary.is_dir() else [temporary]))
        free = shutil.disk_usage(target.parent).free
        what = f"{error.strerror}: {n_written} bytes of it were written, {free} are free; what had this name is unchanged"
        raise OSError(error.errno, what, str(target)) from error
    finally:
        _remove(temporary)
        os.close(descriptor)


def _create_file(temporary: Path, target: Path) -> int:
    # O_EXCL neither opens a file that exists nor follows a link. The mode is less the user's umask
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    if target.exists():
        os.chmod(descriptor if os.chmod in os.supports_fd else temporary, target.stat().st_mode & 0o777)
    return descriptor


def _create_folder(temporary: Path, target: Path) -> int:
    temporary.mkdir()
    return os.open(temporary, os.O_RDONLY)


def _create_locked(target: Path, create: Callable[[Path, Path], int]) -> tuple[Path, int]:
    """A new file or folder beside the target, and a descriptor that locks it as long as it is open."""
    while True:
        # In the same folder, since os.replace is atomic only within one file system. With a suffix, or SB3 would append one.
        # The name cannot be foreseen.
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(8)}.partial")
        descriptor = create(temporary, target)
        if fcntl is None:
            return temporary, descriptor
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)  # another process swept it between its creation and the lock


def _sweep(target: Path) -> None:
    """Remove the temporaries of this target whose writers do not live any more."""
    if fcntl is None:
        return
    for temporary in target.parent.glob(f"{escape(target.name)}.*.partial"):
        with suppress(OSError):  # it is gone, or someone else's, or its writer holds the lock
            descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(temporary)
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name != "posix":  # elsewhere folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
