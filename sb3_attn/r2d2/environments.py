"""Environments that can be copied to actors, and recreated when they fail."""

import contextlib
import importlib
import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import cloudpickle
import gymnasium as gym
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecTransposeImage

from sb3_attn.common.checks import check_whole
from sb3_attn.recurrent_dqn.environment_states import WRAPPERS

EnvFn = Callable[[], gym.Env]

DEFAULT_ENVS_PER_ACTOR = 8

#: Key in the info of a step on which the environment failed
FAILURE = "environment_failure"


class _EnvPickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ResultsWriter):  # the open file of a Monitor; only one process may write to it
            return type(None), ()
        return super().reducer_override(obj)


class PickledEnv:
    """
    Creates copies of an environment.

    :param env: the environment, which is left untouched
    :raises ValueError: if it cannot be pickled
    """

    def __init__(self, env: gym.Env) -> None:
        file = io.BytesIO()
        try:
            _EnvPickler(file).dump(env)
        except Exception as error:
            raise ValueError(_cannot_be_sent(env, error)) from error
        self._bytes = file.getvalue()

    def __call__(self) -> gym.Env:
        return cloudpickle.loads(self._bytes)


class FactoryVecEnv(DummyVecEnv):
    """
    Environments in this process that remember their factory, so that actors can create their own.

    :param env_fn: creates one environment
    :param n_envs: number of environments
    """

    def __init__(self, env_fn: EnvFn, n_envs: int) -> None:
        super().__init__([partial(monitored, env_fn)] * n_envs)
        self.env_fn = env_fn


def to_vec_env(env: GymEnv | str | EnvFn | None, n_envs: int | None) -> GymEnv | None:
    """
    Turn the ``env`` argument of R2D2 into environments.

    :param env: an id, a factory, an environment or a ``VecEnv``
    :param n_envs: number of environments; ``None`` means as many as ``env`` has, or 8 if it is an id or a factory
    :return: the environments; ``None`` without ``env``
    :raises ValueError: if ``n_envs`` is not positive, or differs from the number of environments in ``env``
    """
    if n_envs is not None:
        check_whole("envs_per_actor", n_envs, at_least=1)
    if isinstance(env, str):
        module, _, name = env.rpartition(":")
        if module:
            importlib.import_module(module)
        env = partial(gym.make, gym.spec(name))  # unlike an id, a spec also works in processes that have not registered it
    if isinstance(env, VecEnv):
        if n_envs not in (None, env.num_envs):
            raise ValueError(
                f"envs_per_actor={n_envs}, but env has {env.num_envs} environments; make both the same, or leave "
                "envs_per_actor out."
            )
        return env
    if isinstance(env, gym.Env):
        return env if n_envs in (None, 1) else FactoryVecEnv(PickledEnv(env), n_envs)
    return None if env is None else FactoryVecEnv(env, n_envs or DEFAULT_ENVS_PER_ACTOR)


def monitored(env_fn: EnvFn) -> gym.Env:
    """
    Create an environment that has a ``Monitor``.

    :param env_fn: creates it, with or without one
    :return: the environment
    """
    env = env_fn()
    return Monitor(env) if unwrap_wrapper(env, Monitor) is None else env


def env_fns_of(env: VecEnv) -> list[EnvFn]:
    """
    Functions that create the same environments in any process.

    :param env: the environments
    :return: one function for each, which cloudpickle can pickle
    :raises ValueError: if the environments cannot be created elsewhere
    """
    # SB3 wraps image environments in VecTransposeImage; actors do the same to their own
    env = env.venv if isinstance(env, VecTransposeImage) else env
    if isinstance(env, FactoryVecEnv):
        try:
            cloudpickle.dumps(env.env_fn)
        except Exception as error:
            raise ValueError(_cannot_be_sent(env.env_fn, error)) from error
        return [env.env_fn] * env.num_envs
    if isinstance(env, DummyVecEnv):
        return [PickledEnv(each) for each in env.envs]
    raise ValueError(
        f"env is a {type(env).__name__}, which belongs to this process, so actors cannot make their own; pass an id, a "
        "factory, or a DummyVecEnv, with wrappers around each environment (env_wrapper in RL Zoo) and not around all of them."
    )


def _cannot_be_sent(env: Any, error: Exception) -> str:
    return (
        f"env={env} cannot be sent to actors: {error!r}; pass an id, or a factory that opens files, sockets and windows "
        "only when it is called."
    )


class RestartingEnv(gym.Wrapper):
    """
    Recreates its environment when that raises, up to a limit.

    A failed step is returned as the end of its episode. ``FAILURE`` in its info tells the caller to discard it.

    :param env_fn: creates the environment
    :param name: name of the environment in the error that ends it
    :param max_restarts: number of failures that are tolerated
    :param on_use: called before every step and reset
    :param backoff: seconds to wait after the first failure, doubled with each further one
    """

    def __init__(
        self,
        env_fn: EnvFn,
        name: str,
        max_restarts: int = 10,
        on_use: Callable[[], None] = lambda: None,
        backoff: float = 0.1,
    ) -> None:
        super().__init__(env_fn())
        self._env_fn = env_fn
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
                    self.env = self._env_fn()
                    self._is_broken = False
                self._last_obs, info = self.env.reset(seed=seed, options=options)
                return self._last_obs, info
            except Exception as error:  # noqa: PERF203
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self.n_restarts == self._max_restarts:
            raise RuntimeError(
                f"{self._name} has failed again after {self._max_restarts} restarts, now with {error!r}; fix it, or raise "
                "max_env_restarts if such failures are to be expected."
            ) from error
        if not self._is_broken:
            with contextlib.suppress(Exception):  # a broken environment may fail to close
                self.env.close()
        # Doubled with each failure, to at most 10 s; the exponent is bounded because floats overflow at 2^1024
        time.sleep(min(self._backoff * 2.0 ** min(self.n_restarts, 10), 10.0))
        self._is_broken = True
        self.n_restarts += 1


WRAPPERS[RestartingEnv] = ("n_restarts",)


class MonitorFiles:
    """
    Writes the episodes of actors to the files of the learner's Monitors; the actors' own Monitors have none.

    :param env: the learner's environments
    """

    def __init__(self, env: VecEnv) -> None:
        while isinstance(env, VecEnvWrapper):
            env = env.venv
        monitors = [unwrap_wrapper(each, Monitor) for each in env.envs] if isinstance(env, DummyVecEnv) else []
        self._writers = [getattr(monitor, "results_writer", None) for monitor in monitors]

    def write(self, infos: list[dict[str, Any]]) -> None:
        """
        Write the episodes that ended at a step.

        :param infos: one for each environment
        """
        for writer, info in zip(self._writers, infos, strict=True):
            if writer is not None and "episode" in info:
                writer.write_row(info["episode"])
