"""The processes that a process has started, from Linux's /proc."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """A process."""

    parent: int  # id of the process that started it
    command: str  # in which Ray's workers state what they are doing
    cpu_seconds: float  # used so far

    @property
    def is_actor(self) -> bool:
        """True for one of R2D2's actors on Ray."""
        return self.command.startswith("ray::RemoteActor")


def process_tree(pid: int) -> dict[int, Process]:
    """A process, its children, their children, and so on, by their ids."""
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
