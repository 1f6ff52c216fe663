"""What an actor's process leaves to the one that takes its place."""

import faulthandler
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class Journal:
    """
    Hangs of one actor, in files on its machine.

    An environment that hangs may hold Python's lock, so nothing in its process can be relied on but the watchdog of
    ``faulthandler``, a thread in C: it writes down where the process stands and ends it. Ray then starts the actor
    again, and that one reads in here what happened.

    :param run: a name that no other run has
    :param actor: number of the actor
    :param timeout: seconds after which a trajectory counts as hanging
    """

    def __init__(self, run: str, actor: int, timeout: float) -> None:
        self._folder = folder = Path(tempfile.gettempdir(), run)
        folder.mkdir(exist_ok=True)
        self._hangs, self._blamed, current_env = (folder / f"{actor}.{kind}" for kind in ("hangs", "blamed", "current"))
        self._timeout = timeout
        #: Number of the environment that is being stepped; survives the process
        self.current_env = np.memmap(current_env, np.int64, mode="r+" if current_env.exists() else "w+", shape=1)

    def remove(self) -> None:
        """Remove what the run has left on this machine."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """End the process if the block takes longer than the timeout."""
        with self._hangs.open("a") as file:
            faulthandler.dump_traceback_later(self._timeout, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()

    def last_hang(self) -> tuple[int, int, str] | None:
        """
        What the process before this one died of, if it hung.

        :return: number of the environment, how often it has hung, where the process stood; ``None`` if it did not hang
        """
        where = self._hangs.read_text() if self._hangs.exists() else ""
        if not where:
            return None
        self._hangs.write_text("")
        env = int(self.current_env[0])
        with self._blamed.open("a") as file:
            file.write(f"{env}\n")
        return env, self._blamed.read_text().split().count(str(env)), where
