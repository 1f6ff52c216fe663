"""Environments in processes that raise, die or hang."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env

from sb3_attn.envs import WatchedSubprocVecEnv, subproc_vec_env
from tests.helpers.environments import Counter, Walk, walks
from tests.helpers.models import make_r2d2, make_rdqn

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")


class Failing(Counter):
    """
    Does something at its third step.

    :param action: what
    :param close: what it does when it is closed
    :param large: whether observations fill a pipe
    """

    def __init__(
        self, action: Callable[[], Any] = lambda: None, close: Callable[[], Any] = lambda: None, large: bool = False
    ) -> None:
        super().__init__(length=20, space=spaces.Box(-1, 1, (10**6,), np.float32) if large else None)
        self.action, self.on_close = action, close

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if self.steps == 2:
            self.action()
        return super().step(action)

    def close(self) -> None:
        self.on_close()


def fail() -> None:
    raise ZeroDivisionError("a reason")


def make_envs(*envs: Callable[[], Any], **kwargs: Any) -> WatchedSubprocVecEnv:
    return WatchedSubprocVecEnv(envs, start_method="fork", **kwargs)


def steps(env: WatchedSubprocVecEnv, n_steps: int = 3) -> None:
    env.reset()
    for _ in range(n_steps):
        env.step(np.zeros(env.num_envs, int))


def close_in(env: WatchedSubprocVecEnv, seconds: float) -> None:
    start = time.monotonic()
    env.close()
    env.close()  # again does nothing
    assert time.monotonic() - start < seconds
    assert not any(process.is_alive() for process in env.processes)


FAILURES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "raises": (fail, RuntimeError, r"^environment 1 raised ZeroDivisionError\('a reason'\), and(?s:.*)in fail\n"),
    "dies": (partial(os._exit, 3), ConnectionError, "^the process of environment 1 has ended with exit code 3; correct"),
    "hangs": (partial(time.sleep, 60), TimeoutError, r"^environment 1 gave no answer for timeout=0\.5 seconds, so its"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_named_and_close_ends(name: str) -> None:
    action, error, sentence = FAILURES[name]
    env = make_envs(Failing, partial(Failing, action), Failing, timeout=0.5 if name == "hangs" else None)
    with pytest.raises(error, match=sentence):
        steps(env)
    with pytest.raises(ConnectionError, match=r"the process of environment 1 has ended with exit code (1|3|-9); correct"):
        env.reset()  # it does not come back, so no old answer is taken for a new one
    close_in(env, 5)


@pytest.mark.parametrize("make", [make_rdqn, make_r2d2, partial(DQN, "MlpPolicy", buffer_size=100)])
def test_learning_ends_with_the_name(make: Any) -> None:
    env = make_envs(Failing, partial(Failing, fail))
    with pytest.raises(RuntimeError, match=r"^environment 1 raised ZeroDivisionError\('a reason'\)"):
        make(env=env).learn(100)
    close_in(env, 5)


def test_an_environment_that_cannot_be_created_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"environment 1 raised ZeroDivisionError\('a reason'\)"):
        make_envs(Failing, fail)


def test_a_process_that_hangs_is_killed_on_closing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subproc_vec_env, "CLOSE_TIMEOUT", 1.0)
    env = make_envs(partial(Failing, close=(tmp_path / "closed").touch), partial(Failing, partial(time.sleep, 60)))
    steps(env, 2)
    env.step_async(np.zeros(2, int))
    close_in(env, 5)
    assert (tmp_path / "closed").exists()


def test_answers_that_nobody_reads_do_not_keep_an_environment_from_closing(tmp_path: Path) -> None:
    env = make_envs(partial(Failing, fail, large=True), partial(Failing, close=(tmp_path / "closed").touch, large=True))
    with pytest.raises(RuntimeError, match="environment 0 raised"):
        steps(env)
    close_in(env, 5)
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=str)
def test_what_a_terminal_sends_to_all_processes_is_ignored(number: signal.Signals) -> None:
    previous = signal.signal(number, signal.SIG_DFL)  # which tests in the background may have inherited as ignored
    try:
        env = make_envs(Failing, Failing)
    finally:
        signal.signal(number, previous)
    env.reset()
    for process in env.processes:
        os.kill(process.pid, number)
    steps(env)
    close_in(env, 5)


def test_without_failures_it_is_like_any_other() -> None:
    """Through make_vec_env, in processes that import everything anew."""
    env = make_vec_env(Walk, n_envs=2, seed=3, vec_env_cls=WatchedSubprocVecEnv, vec_env_kwargs=dict(timeout=100))  # type: ignore[arg-type]
    expected = walks(2)
    expected.seed(3)
    np.testing.assert_array_equal(env.reset(), expected.reset())
    for action in range(3):
        for value, other in zip(env.step(np.full(2, action)), expected.step(np.full(2, action)), strict=True):
            if not isinstance(value, tuple):
                np.testing.assert_allclose(value, other)  # rewards are float32 or float64
    assert env.get_attr("longest") == [8, 8] and env.env_method("has_wrapper_attr", "kind", indices=1) == [True]
    close_in(env, 10)  # type: ignore[arg-type]


def test_there_is_an_environment() -> None:
    with pytest.raises(ValueError, match="env_fns has no environment"):
        WatchedSubprocVecEnv([])


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan")])
def test_a_timeout_is_positive(timeout: float) -> None:
    with pytest.raises(ValueError, match=f"timeout={timeout} must be positive"):
        make_envs(Failing, timeout=timeout)
