"""
Measuring in turn: each side once in every round, so that changes in the load of the machine affect all alike.

Reported are medians over the rounds, and as a ratio the median of the ratios within each round.
"""

import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch as th

Key = TypeVar("Key")


def in_turn(sides: Mapping[Key, Callable[[], float]], rounds: int, warm_up: int = 0) -> dict[Key, list[float]]:
    """Measure all sides in every round, after ``warm_up`` rounds that do not count, in which caches fill."""
    measured: dict[Key, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, side in sides.items():
            value = side()
            if number >= warm_up:
                measured[name].append(value)
    return measured


def cpu_milliseconds(function: Callable[[], object]) -> Callable[[], float]:
    """
    Make a side that calls a function and returns the milliseconds of CPU time that it took.

    On one thread CPU time equals elapsed time, except that other processes do not add to it.
    """

    def side() -> float:
        start = time.process_time()
        function()
        return 1000 * (time.process_time() - start)

    return side


def allocated_bytes(make: Callable[[], object]) -> int:
    """Memory that an object takes once it is made, untouched pages included."""
    tracemalloc.start()
    made = make()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return size


def peak_memory(make: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """
    Peak memory in MiB of a new process that makes a function and calls it twice, on one thread; Linux only.

    Python and torch are included.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=th.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(_peak_memory, make, *arguments).result()


def _peak_memory(make: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    function = make(*arguments)
    for _ in range(2):
        function()
    # Not `getrusage`, whose maximum includes that of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def medians(measured: Mapping[Key, Sequence[float]]) -> dict[Key, float]:
    """The median of each side."""
    return {name: median(numbers) for name, numbers in measured.items()}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios within each round."""
    return median(x / y for x, y in zip(numerators, denominators, strict=True))
