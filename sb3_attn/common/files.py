"""Writing files without a moment in which neither the old nor the new one is whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_on_success(path: str | os.PathLike, suffix: str) -> Iterator[Path]:
    """
    Give the path of a temporary file, which takes the place of ``path`` if the block succeeds and vanishes if it fails.

    :param path: the file to replace or create; missing folders are made
    :param suffix: appended, as SB3 does, if the path has none; empty for never
    :return: the path to write to
    """
    target = Path(path)
    if suffix and not target.suffix:
        target = Path(f"{target}.{suffix}")
    target = Path(os.path.realpath(target))  # a link stays one
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a file can only be moved at once within a file system; SB3 wants a suffix to leave alone
    temporary = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
