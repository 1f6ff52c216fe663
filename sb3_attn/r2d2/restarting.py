"""Environments that may fail."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym

#: In the info of a step on which the environment failed
FAILURE = "environment_failure"


class RestartingEnv(gym.Wrapper):
    """
    Makes its environment anew when it raises, up to a limit.

    The step that failed comes back as the end of the episode, marked in its info, for the caller to throw away.

    :param make_env: makes the environment
    :param name: what to call it when it has failed once too often
    :param max_restarts: how often it may fail
    :param on_use: called before the environment is stepped or reset
    :param backoff: seconds to wait after the first failure, doubled with each further one
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        name: str,
        max_restarts: int = 10,
        on_use: Callable[[], None] = lambda: None,
        backoff: float = 0.1,
    ) -> None:
        super().__init__(make_env())
        self._make_env = make_env
        self._name = name
        self._max_restarts = max_restarts
        self._on_use = on_use
        self._backoff = backoff
        self._last_obs: Any = None
        self._is_broken = False
        self.n_restarts = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._on_use()
        try:
            self._last_obs, *rest = self.env.step(action)
        except Exception as error:
            self._fail(error)
            return self._last_obs, 0.0, False, True, {FAILURE: repr(error)}
        return self._last_obs, *rest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._on_use()
        while True:
            try:
                if self._is_broken:
                    self.env = self._make_env()
                    self._is_broken = False
                self._last_obs, info = self.env.reset(seed=seed, options=options)
                return self._last_obs, info
            except Exception as error:  # noqa: PERF203
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self.n_restarts == self._max_restarts:
            raise RuntimeError(
                f"{self._name} has failed again after {self._max_restarts} restarts, now with {error!r}; mend it, or raise "
                "max_env_restarts if such failures are to be expected."
            ) from error
        if not self._is_broken:
            with contextlib.suppress(Exception):  # what is broken need not close either
                self.env.close()
        time.sleep(min(self._backoff * 2.0 ** min(self.n_restarts, 10), 10.0))
        self._is_broken = True
        self.n_restarts += 1
