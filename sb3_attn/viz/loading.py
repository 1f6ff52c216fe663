"""Models and environments from a zip file and an environment's id."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_attn.r2d2 import R2D2
from sb3_attn.recurrent_dqn import RecurrentDQN
from sb3_attn.viz.recording import wrap_env

gym.register_envs(ale_py)

#: By the names that RL Zoo has for them; where a policy fits several the first is taken
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"rdqn": RecurrentDQN, "r2d2": R2D2, "qrdqn": QRDQN, "dqn": DQN, "ppo": PPO}

#: Not needed to act, and the first thing to break between versions of Python
NOT_NEEDED = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}


def model_path(path: str | Path) -> Path:
    """
    The file of a model, whose ending may be left out.

    :param path: of ``model.save``
    :return: the path
    :raises FileNotFoundError: if there is none
    """
    path = Path(path)
    for candidate in (path, path.with_name(f"{path.name}.zip")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"There is no model {str(path)!r}; give the zip file that model.save() or training wrote.")


def load_model(
    path: str | Path,
    algo: str | None = None,
    device: str = "auto",
    algorithms: Mapping[str, type[BaseAlgorithm]] = ALGORITHMS,
) -> BaseAlgorithm:
    """
    Load a model to look at it, not to train it on: it gets no replay buffer.

    :param path: of ``model.save``
    :param algo: a key of ``algorithms``; ``None`` takes the first that the saved policy fits
    :param device: Device on which the code should run
    :param algorithms: by name
    :return: the model
    :raises ValueError: if the file is no model, or of another algorithm
    :raises FileNotFoundError: if there is no file
    """
    path = model_path(path)
    try:
        data = load_from_zip_file(path, device="cpu", custom_objects=NOT_NEEDED)[0] or {}
        policy_class = data["policy_class"]
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(f"{path} is no model that Stable-Baselines3 saved ({error}); give another file.") from error
    fitting = [name for name, kind in algorithms.items() if _fits(policy_class, kind)]
    name = algo or (fitting[0] if fitting else "")
    if name not in algorithms or name not in fitting:
        known = "is unknown" if algo and algo not in algorithms else "does not have such a policy"
        remedy = f"only models of {', '.join(algorithms)} can be shown"
        if fitting:
            remedy = f"give {' or '.join(fitting)}, or leave it out"
        raise ValueError(f"{path} was saved with {policy_class.__name__}, and algo={algo!r} {known}; {remedy}.")
    # A replay buffer of the size in training could take gigabytes
    no_buffer: dict[str, Any] = {}
    if issubclass(algorithms[name], OffPolicyAlgorithm):
        no_buffer = dict(buffer_size=1, optimize_memory_usage=False)
    return algorithms[name].load(path, device=device, custom_objects=NOT_NEEDED, **no_buffer)


def make_env(
    model: BaseAlgorithm,
    env_id: str,
    env_kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
    normalize_path: str | Path | None = None,
) -> VecEnv:
    """
    The environment that a model's observation space asks for.

    One of Atari's gets ``AtariWrapper``, without clipped rewards and episodes that end with each life, unless the model saw
    whole frames. Frames are stacked if the model saw several at once.

    :param model: loaded
    :param env_id: of a registered environment
    :param env_kwargs: Optional keyword argument to pass to the env constructor
    :param seed: the initial seed for the random number generator
    :param normalize_path: file of a ``VecNormalize`` that was saved with the model
    :return: one environment, vectorised
    :raises ValueError: if the environment is unknown, or its spaces are not the model's
    """
    space: Any = model.observation_space
    make_kwargs: dict[str, Any] = dict(n_envs=1, seed=seed, env_kwargs=env_kwargs)
    try:
        entry_point = str(gym.spec(env_id).entry_point)
    except (gym.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise ValueError(f"env={env_id!r} is unknown ({error}); import the package that registers it.") from error
    is_image = isinstance(space, spaces.Box) and len(space.shape) == 3
    if "AtariEnv" in entry_point and is_image and space.shape[1:] != (210, 160):
        wrapper_kwargs = dict(screen_size=space.shape[1], terminal_on_life_loss=False, clip_reward=False)
        env = make_atari_env(env_id, wrapper_kwargs=wrapper_kwargs, **make_kwargs)
    else:
        env = make_vec_env(env_id, **make_kwargs)
    if normalize_path is not None:
        env = VecNormalize.load(str(normalize_path), env)
        env.training = env.norm_reward = False
    n_frames = _n_frames(space, env.observation_space)
    return wrap_env(model, VecFrameStack(env, n_frames) if n_frames > 1 else env)


def _fits(policy_class: type, algorithm: type[BaseAlgorithm]) -> bool:
    return issubclass(policy_class, tuple(algorithm.policy_aliases.values()))


def _n_frames(wanted: spaces.Space, offered: spaces.Space) -> int:
    """How many frames have to be stacked to get from the environment's observations to the model's."""
    if isinstance(wanted, spaces.Dict) and isinstance(offered, spaces.Dict):
        counts = {_n_frames(wanted[key], offered[key]) for key in wanted.spaces if key in offered.spaces}
        return counts.pop() if len(counts) == 1 else 1
    if not isinstance(wanted, spaces.Box) or not isinstance(offered, spaces.Box) or len(wanted.shape) != len(offered.shape):
        return 1
    # Images are channels first in the model; in the environment either
    ratio = 1
    for axis in (0, -1):
        channels, total = offered.shape[axis], wanted.shape[0 if len(wanted.shape) == 3 else -1]
        others = sorted(offered.shape[1:] if axis == 0 else offered.shape[:-1])
        if others == sorted(wanted.shape[1:] if len(wanted.shape) == 3 else wanted.shape[:-1]) and total % channels == 0:
            ratio = max(ratio, total // channels)
    return ratio
