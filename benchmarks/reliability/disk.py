"""A file system in a file, to see what a disk holds at the moment when the power fails. Needs Linux and root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

N_BYTES = 32 * 2**20


def may_mount() -> bool:
    """Tell whether this process is allowed to mount file systems."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("mkfs.ext4") is not None


@contextmanager
def new_disk(image: Path) -> Iterator[Path]:
    """
    Make a file system, ext4 with its usual settings, and mount it.

    :param image: the file that is the disk
    :return: the folder where it is mounted
    """
    with image.open("wb") as file:
        file.truncate(N_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted(image) as folder:
        yield folder


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """
    Mount a file system; its journal is replayed, as after a power failure.

    :param image: the file that is the disk
    :return: the folder where it is mounted
    """
    folder = image.with_suffix(".mounted")
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
