"""The processes that one process has started, as Linux's /proc shows them."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """
    A process.

    :param parent: id of the process that started it
    :param command: its command line, which Ray's workers change to say what they are doing
    :param cpu_seconds: processor time that it has used so far
    """

    parent: int
    command: str
    cpu_seconds: float

    @property
    def is_actor(self) -> bool:
        """Whether it is one of R2D2's actors on Ray."""
        return self.command.startswith("ray::RemoteActor")


def family(pid: int) -> dict[int, Process]:
    """
    A process, those that it started, those that these started, and so on, by their ids.

    :param pid: id of the process
    """
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            # After the name, which is in brackets: state, parent, ..., ticks in the program, ticks in the kernel
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            command = (folder / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
            processes[int(folder.name)] = Process(int(fields[1]), command, sum(map(int, fields[11:13])) / TICKS_PER_SECOND)
    found, pids = {}, [pid]
    while pids:
        pid = pids.pop()
        found[pid] = processes[pid]
        pids += [child for child, process in processes.items() if process.parent == pid]
    return found
