"""A ``SubprocVecEnv`` whose failures have names, and which always closes."""

import math
import multiprocessing as mp
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker

#: Seconds for all environments to close, before their processes are killed
CLOSE_TIMEOUT = 10.0


class WatchedSubprocVecEnv(SubprocVecEnv):
    """
    SB3's ``SubprocVecEnv``, for environments that may fail.

    An exception in an environment is raised here too, with its traceback and the environment's number. So is an error if its
    process dies, or does not answer in time. ``close`` ends all processes, whatever state they are in. They ignore what Ctrl-C
    and a terminal that closes send to all processes of a program, so it is for this one to end them.

    :param env_fns: functions that create the environments, each in a process of its own
    :param start_method: as for ``SubprocVecEnv``
    :param timeout: seconds to wait for any answer of an environment, the first of which it gives when it has been created;
        its process is killed then. ``None`` means for ever
    :raises ValueError: if ``timeout`` is not positive and finite, or there is no environment
    :raises RuntimeError: from here on, if an environment raises an exception
    :raises ConnectionError: if its process dies
    :raises TimeoutError: if it does not answer
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        start_method: str | None = None,
        timeout: float | None = None,
    ) -> None:
        if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout={timeout} must be positive and finite, or None to wait for ever.")
        if not env_fns:
            raise ValueError("env_fns has no environment; give one function for each.")
        self.waiting = self.closed = False
        if start_method is None:
            start_method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        context: Any = mp.get_context(start_method)
        self.processes, self.remotes = [], []
        try:
            for index, env_fn in enumerate(env_fns):
                # One pipe after the other: a forked process keeps the pipes open that are there, so that a death went unseen
                connection, of_worker = context.Pipe()
                process = context.Process(target=_work, args=(of_worker, connection, CloudpickleWrapper(env_fn)), daemon=True)
                process.start()
                of_worker.close()
                self.processes.append(process)
                self.remotes.append(_Remote(connection, process, index, timeout))
            self.remotes[0].send(("get_spaces", None))
            VecEnv.__init__(self, len(env_fns), *self.remotes[0].recv())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for remote in self.remotes:
            remote.send(("close", None))
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for remote in self.remotes:
            remote.close(deadline)


class _Failure(NamedTuple):
    """The answer of an environment that raised an exception; in words, since not every exception can be pickled."""

    error: str
    traceback: str


def _work(remote: Connection, parent_remote: Connection, env_fn: CloudpickleWrapper) -> None:
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        _worker(remote, parent_remote, env_fn)
    except Exception as error:
        with suppress(OSError):  # nobody may be listening any more
            remote.send(_Failure(repr(error), traceback.format_exc()))
        raise


class _Remote:
    """
    The end of an environment's pipe that ``SubprocVecEnv`` sends to and receives from.

    :param connection: the pipe
    :param process: the process of the environment
    :param index: number of the environment
    :param timeout: as for ``WatchedSubprocVecEnv``
    """

    def __init__(self, connection: Connection, process: BaseProcess, index: int, timeout: float | None) -> None:
        self.connection, self.process, self.index, self.timeout = connection, process, index, timeout

    def send(self, command: tuple[str, Any]) -> None:
        with suppress(ConnectionError):  # the process has died, which the answer will tell
            self.connection.send(command)

    def recv(self) -> Any:
        try:
            if self.timeout is not None and not self.connection.poll(self.timeout):
                self.process.kill()
                raise TimeoutError(
                    f"environment {self.index} gave no answer for timeout={self.timeout} seconds, so its process was killed; "
                    "correct it, or raise timeout, and create the environments again."
                )
            answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join(timeout=1)
            raise ConnectionError(
                f"the process of environment {self.index} has ended with exit code {self.process.exitcode}; correct the "
                "environment, or give it more memory if it was killed for want of it, and create the environments again."
            ) from error
        if isinstance(answer, _Failure):
            raise RuntimeError(
                f"environment {self.index} raised {answer.error}, and its process has ended; correct it, and create the "
                f"environments again.\n\n{answer.traceback}"
            )
        return answer

    def close(self, deadline: float) -> None:
        # Answers that nobody waited for are read until the pipe ends; a process that cannot send them does not end
        with suppress(EOFError, OSError):
            while self.connection.poll(max(deadline - time.monotonic(), 0)):
                self.connection.recv_bytes()
        self.process.join(max(deadline - time.monotonic(), 0))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
