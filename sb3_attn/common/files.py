"""Atomic, durable file replacement."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

#: Errors of a full disk, a file that would be too large, and an exhausted quota
DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


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
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    temporary, descriptor = _create_temporary(target)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        if os.name == "posix":  # elsewhere folders cannot be opened
            _sync(target.parent)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        written, free = temporary.stat().st_size, shutil.disk_usage(target.parent).free
        what = f"{error.strerror}: {written} bytes of it were written, {free} are free; a file of that name is as it was"
        raise OSError(error.errno, what, str(target)) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _create_temporary(target: Path) -> tuple[Path, int]:
    """A new file in the folder of the target, with its mode, and a descriptor that locks it as long as it is open."""
    while True:
        # In the same folder, since os.replace is atomic only within one file system. With a suffix, or SB3 would append one.
        # The name cannot be foreseen, and O_EXCL neither opens a file that exists nor follows a link.
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(8)}.partial")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)  # less the user's umask
        if target.exists():
            os.chmod(descriptor if os.chmod in os.supports_fd else temporary, target.stat().st_mode & 0o777)
        if fcntl is None:
            return temporary, descriptor
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink > 0:
            return temporary, descriptor
        os.close(descriptor)  # another process swept it between its creation and the lock


def _sweep(target: Path) -> None:
    """Remove the temporaries of this target whose writers do not live any more."""
    if fcntl is None:
        return
    for temporary in target.parent.glob(f"{escape(target.name)}.*.partial"):
        with suppress(OSError):  # it is gone, or someone else's, or its writer holds the lock
            descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _sync(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
