"""Environments that can be made again elsewhere."""

import importlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import cloudpickle
import gymnasium as gym
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecTransposeImage

EnvFn = Callable[[], gym.Env]

DEFAULT_ENVS_PER_ACTOR = 8


class _EnvPickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ResultsWriter):  # Monitor's open file; one process writes to it
            return type(None), ()
        return super().reducer_override(obj)


class PickledEnv:
    """
    Makes copies of an environment.

    :param env: the environment, which is not touched
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
    Environments in this process of which any number can be made elsewhere.

    :param make_env: makes one
    :param n_envs: number of environments
    """

    def __init__(self, make_env: EnvFn, n_envs: int) -> None:
        super().__init__([partial(monitored, make_env)] * n_envs)
        self.make_env = make_env


def to_vec_env(env: GymEnv | str | EnvFn | None, n_envs: int | None) -> GymEnv | None:
    """
    Environments of what R2D2's users pass.

    :param env: the id of an environment, what makes one, or environments
    :param n_envs: how many; ``None`` means as many as there are, or 8 if they have yet to be made
    :return: environments, or ``None`` if there are none
    :raises ValueError: if the number is not positive, or there are environments, but not as many as was asked for
    """
    if n_envs is not None and n_envs < 1:
        raise ValueError(f"envs_per_actor={n_envs} must be at least 1.")
    if isinstance(env, str):
        module, _, name = env.rpartition(":")
        if module:
            importlib.import_module(module)
        env = partial(gym.make, gym.spec(name))  # a spec can be made where nobody has registered the id
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


def monitored(make_env: EnvFn) -> gym.Env:
    """
    An environment with a Monitor.

    :param make_env: makes it, with or without one
    """
    env = make_env()
    return Monitor(env) if unwrap_wrapper(env, Monitor) is None else env


def env_fns_of(env: VecEnv) -> list[EnvFn]:
    """
    What makes such environments again, in any process.

    :param env: environments
    :return: a function for each, which can be pickled by cloudpickle
    :raises ValueError: if there are none
    """
    env = env.venv if isinstance(env, VecTransposeImage) else env  # SB3 puts it around images, and actors do too
    if isinstance(env, FactoryVecEnv):
        try:
            cloudpickle.dumps(env.make_env)
        except Exception as error:
            raise ValueError(_cannot_be_sent(env.make_env, error)) from error
        return [env.make_env] * env.num_envs
    if isinstance(env, DummyVecEnv):
        return [PickledEnv(each) for each in env.envs]
    raise ValueError(
        f"env is a {type(env).__name__}, which belongs to this process, so actors cannot make their own; pass an id, a "
        "factory, or a DummyVecEnv, with wrappers around each environment (env_wrapper in RL Zoo) and not around all of them."
    )


class MonitorFiles:
    """
    The files of the learner's Monitors, filled with the episodes of actors, whose own Monitors have none.

    :param env: the learner's environments
    """

    def __init__(self, env: VecEnv) -> None:
        while isinstance(env, VecEnvWrapper):
            env = env.venv
        monitors = [unwrap_wrapper(each, Monitor) for each in env.envs] if isinstance(env, DummyVecEnv) else []
        self._writers = [getattr(monitor, "results_writer", None) for monitor in monitors]

    def write(self, infos: list[dict[str, Any]]) -> None:
        """
        Write down the episodes that ended at a step.

        :param infos: one for each environment
        """
        for writer, info in zip(self._writers, infos, strict=True):
            if writer is not None and "episode" in info:
                writer.write_row(info["episode"])


def _cannot_be_sent(env: Any, error: Exception) -> str:
    return (
        f"env={env} cannot be sent to actors: {error!r}; pass an id, or a factory that opens files, sockets and windows "
        "only when it is called."
    )
