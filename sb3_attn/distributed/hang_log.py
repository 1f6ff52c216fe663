"""A log of hanging environments, which an actor's process leaves for its successor."""

import faulthandler
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class HangLog:
    """
    Hangs of one actor, in files on its machine.

    A hanging environment may hold Python's lock, so nothing in its process can be relied on except the watchdog of
    ``faulthandler``, a thread in C: it writes the traceback to a file and ends the process. Ray then restarts the actor,
    which reads here what happened.

    :param run: name of the run, unique
    :param actor: number of the actor
    :param timeout: seconds after which a trajectory counts as hanging
    """

    def __init__(self, run: str, actor: int, timeout: float) -> None:
        self._folder = folder = Path(tempfile.gettempdir(), run)
        folder.mkdir(exist_ok=True)
        # The traceback of the last hang, and one line for each hang so far: the number of the environment
        self._traceback, self._history, current_env = (folder / f"{actor}.{kind}" for kind in ("traceback", "history", "env"))
        self._timeout = timeout
        #: Number of the environment that is being stepped; memory-mapped, so that it outlives the process
        self.current_env = np.memmap(current_env, np.int64, mode="r+" if current_env.exists() else "w+", shape=1)

    def remove(self) -> None:
        """Remove the files of the whole run on this machine."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """
        End the process if the block takes longer than the timeout.

        :return: a context manager
        """
        with self._traceback.open("a") as file:
            faulthandler.dump_traceback_later(self._timeout, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()

    def last_hang(self) -> tuple[int, int, str] | None:
        """
        Count the hang that ended the previous process, if one did.

        :return: number of the environment, how often it has hung, and the traceback; ``None`` if the process did not hang
        """
        traceback = self._traceback.read_text() if self._traceback.exists() else ""
        if not traceback:
            return None
        self._traceback.write_text("")
        env = int(self.current_env[0])
        with self._history.open("a") as file:
            file.write(f"{env}\n")
        return env, self._history.read_text().split().count(str(env)), traceback
