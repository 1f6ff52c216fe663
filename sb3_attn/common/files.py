"""Atomic file replacement."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_on_success(path: str | os.PathLike, suffix: str) -> Iterator[Path]:
    """
    Yield the path of a temporary file, which replaces ``path`` if the block succeeds and is removed if it fails.

    So there is no moment at which neither the old file nor the new one is complete.

    :param path: the file to replace or create; missing folders are created
    :param suffix: appended, as SB3 does, if the path has none; empty for never
    :return: the path to write to
    """
    target = Path(path)
    if suffix and not target.suffix:
        target = Path(f"{target}.{suffix}")
    target = Path(os.path.realpath(target))  # a link stays a link: the file that it points to is replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since os.replace is atomic only within one file system. With a suffix, or SB3 would append one.
    temporary = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
