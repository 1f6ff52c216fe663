"""Doing in a process of its own what may crash, hang, or has to be killed."""

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds after which something hangs
LONGEST = 60


def fork(function: Callable[[], object]) -> int:
    """
    Call a function in a copy of this process, which ends with it.

    :param function: what to call
    :return: the id of the process, which has to be waited for
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        warnings.simplefilter("ignore")
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(LONGEST)
        function()
    finally:
        os._exit(0)  # no more of the parent's code may run here


def in_fork(function: Callable[[], str]) -> str:
    """
    Call a function in a copy of this process.

    :param function: what to call
    :return: what it returns; the name of the exception that it raises; or how its process ended
    """
    reader, writer = os.pipe()

    def call() -> None:
        try:
            outcome = function()
        except BaseException as error:
            outcome = type(error).__name__
        os.write(writer, outcome.encode())

    pid = fork(call)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        outcome = file.read()
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSIGNALED(status):
        return outcome
    number = signal.Signals(os.WTERMSIG(status))
    return f"hangs for {LONGEST} s" if number == signal.SIGALRM else f"dies by {number.name}"


def kill(function: Callable[[], object], seconds: float) -> None:
    """
    Call a function again and again in a copy of this process, and end that with SIGKILL.

    :param function: what to call
    :param seconds: how long the process lives
    """

    def repeat() -> None:
        while True:
            function()

    pid = fork(repeat)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@contextmanager
def stopped(function: Callable[[], object], until: Callable[[], bool], seconds: float) -> Iterator[None]:
    """
    Call a function again and again in a copy of this process, which stands still in the block, and ends after it.

    :param function: what to call
    :param until: says whether the time starts
    :param seconds: time from then until the process is stopped
    """

    def repeat() -> None:
        while True:
            function()

    pid = fork(repeat)
    while not until():
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
