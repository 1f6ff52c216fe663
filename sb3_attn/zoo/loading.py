"""Models and environments from a zip file and the id of an environment."""

from collections.abc import Collection
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import ale_py
import gymnasium as gym
from gymnasium import spaces
from sb3_contrib import QRDQN, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_attn.recurrent_dqn import RecurrentDQNPolicy
from sb3_attn.recurrent_dqn.safe_loading import RefusedFileError, load_pickle, read_data, safe_objects, trusted_names
from sb3_attn.recurrent_dqn.saving import SaveAndLoad
from sb3_attn.viz.recording import wrap_env
from sb3_attn.zoo.registration import ALGORITHMS

gym.register_envs(ale_py)

#: Ours and those of SB3, by RL Zoo's names. Where a policy fits several, the first is taken, so ours and ppo_lstm come before
#: those whose policies theirs are subclasses of. A policy of PPO, A2C or TRPO acts alike in all three
LOADABLE: dict[str, type[BaseAlgorithm]] = {name: algorithm.model_class for name, algorithm in ALGORITHMS.items()}
LOADABLE |= {"qrdqn": QRDQN, "dqn": DQN, "ppo_lstm": RecurrentPPO, "ppo": PPO, "a2c": A2C}
LOADABLE |= {"trpo": TRPO, "maskable_ppo": MaskablePPO, "sac": SAC, "td3": TD3}

#: Replacements for what is not needed to act: pickled functions are the first thing to break between versions of Python
NOT_NEEDED = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}


def model_path(path: str | Path) -> Path:
    """
    Find the file of a model, with or without its suffix.

    :param path: as given to ``model.save``
    :return: the path of the file
    :raises FileNotFoundError: if there is none
    """
    path = Path(path)
    for candidate in (path, path.with_name(f"{path.name}.zip")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"There is no model {str(path)!r}; give the zip file that model.save() or training wrote.")


def load_model(
    path: str | Path, algo: str | None = None, device: str = "auto", trust: bool | Collection[str | type] = False
) -> BaseAlgorithm:
    """
    Load a model to look at, not to train: it gets no replay buffer.

    :param path: as given to ``model.save``
    :param algo: a key of ``LOADABLE``; ``None`` takes the algorithm that the zip names, or the first that has the saved policy
    :param device: Device on which the code should run
    :param trust: as for ``RecurrentDQN.load``, for the zips of all algorithms
    :return: the model
    :raises ValueError: if the file is not a model, or is one of another algorithm
    :raises RefusedFileError: if the file needs classes or functions that are not known to be harmless, or is damaged
    :raises FileNotFoundError: if there is no such file
    """
    path = model_path(path)
    objects = dict(NOT_NEEDED)
    if trust is not True:
        objects |= safe_objects(read_data(path), path, NOT_NEEDED, trusted_names(trust))
    try:
        data = load_from_zip_file(path, device="cpu", custom_objects=objects)[0] or {}
        policy_class = data["policy_class"]
    except (ValueError, KeyError, AssertionError, UnpicklingError) as error:
        raise ValueError(f"{path} is not a model that Stable-Baselines3 saved ({error}); give another file.") from error
    fitting = [name for name, algorithm in LOADABLE.items() if _has_policy(algorithm, policy_class)]
    saved_by = str(data.get("saved_by")).partition(" ")[0]
    fitting = [name for name in fitting if LOADABLE[name].__name__ == saved_by] or fitting
    name = algo or next(iter(fitting), None)
    if name is None or name not in fitting:
        raise ValueError(f"{path} was saved with {policy_class.__name__}, {_misfit(name, fitting)}.")
    kwargs: dict[str, Any] = {}
    if issubclass(LOADABLE[name], OffPolicyAlgorithm):
        # A replay buffer of the size used in training could take gigabytes
        kwargs = dict(buffer_size=1, optimize_memory_usage=False)
        if not issubclass(LOADABLE[name], SaveAndLoad):  # HerReplayBuffer would ask for the environment
            objects = objects | dict(replay_buffer_class=None, replay_buffer_kwargs={})
    return load_algorithm(LOADABLE[name], path, trust, objects, device=device, **kwargs)


def load_algorithm(
    algorithm: type[BaseAlgorithm],
    path: str | Path,
    trust: bool | Collection[str | type] = False,
    custom_objects: dict[str, Any] | None = None,
    **kwargs: Any,
) -> BaseAlgorithm:
    """
    Load a model of any algorithm, without running code from its file.

    :param algorithm: its class
    :param path: as given to ``model.save``
    :param trust: as for ``RecurrentDQN.load``
    :param custom_objects: Dictionary of objects to replace upon loading
    :param kwargs: further arguments of the algorithm's ``load``
    :return: the model
    :raises RefusedFileError: if the file needs classes or functions that are not known to be harmless, or cannot be loaded
    """
    if issubclass(algorithm, SaveAndLoad):
        kwargs["trust"] = trust
    elif trust is not True:
        given = custom_objects or {}
        custom_objects = safe_objects(read_data(path), path, given, trusted_names(trust)) | given
    try:
        return algorithm.load(path, custom_objects=custom_objects, **kwargs)
    except RefusedFileError:
        raise
    except Exception as error:
        if trust is True:
            raise
        raise RefusedFileError(
            f"{path} cannot be loaded by {algorithm.__name__} ({error!r}); give a model that fits, or other arguments."
        ) from error


def load_vec_normalize(path: str | Path, venv: VecEnv, trust: bool | Collection[str | type] = False) -> VecNormalize:
    """
    Load statistics of observations and rewards, as ``VecNormalize.load`` does, without running code from their file.

    :param path: as given to ``VecNormalize.save``
    :param venv: the environments to wrap
    :param trust: as for ``RecurrentDQN.load``
    :return: the wrapped environments
    :raises RefusedFileError: if the file needs classes or functions that are not known to be harmless, or is damaged
    """
    normalize = load_pickle(path, trust)
    if not isinstance(normalize, VecNormalize):
        raise RefusedFileError(f"{path} holds no VecNormalize but a {type(normalize).__name__}; give the file of its save().")
    normalize.set_venv(venv)
    return normalize


def make_env(
    model: BaseAlgorithm,
    env_id: str,
    env_kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
    normalize_path: str | Path | None = None,
    trust: bool | Collection[str | type] = False,
) -> VecEnv:
    """
    Make an environment with the wrappers that a model's observation space implies.

    Atari games get ``AtariWrapper``, unless the model saw whole frames; rewards are not clipped, and an episode does not end
    with the loss of a life. Frames are stacked if the model saw several at once.

    :param model: a loaded model
    :param env_id: id of a registered environment
    :param env_kwargs: Optional keyword argument to pass to the env constructor
    :param seed: the initial seed for the random number generator
    :param normalize_path: file of the ``VecNormalize`` that was saved with the model
    :param trust: as for ``RecurrentDQN.load``, for that file
    :return: one environment, vectorised
    :raises ValueError: if the environment is unknown, or its spaces are not the model's
    """
    space: Any = model.observation_space
    make_kwargs: dict[str, Any] = dict(n_envs=1, seed=seed, env_kwargs=env_kwargs)
    try:
        entry_point = str(gym.spec(env_id).entry_point)
    except (gym.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise ValueError(
            f"env={env_id!r} is unknown ({error}); import the package that registers it, or install the zoo extra for those "
            "of RL Zoo, such as CartPoleNoVel-v1."
        ) from error
    is_image = isinstance(space, spaces.Box) and len(space.shape) == 3
    # 210 x 160 is the whole frame, as Atari renders it
    if "AtariEnv" in entry_point and is_image and space.shape[1:] != (210, 160):
        wrapper_kwargs = dict(screen_size=space.shape[1], terminal_on_life_loss=False, clip_reward=False)
        env = make_atari_env(env_id, wrapper_kwargs=wrapper_kwargs, **make_kwargs)
    else:
        env = make_vec_env(env_id, **make_kwargs)
    if normalize_path is not None:
        env = load_vec_normalize(normalize_path, env, trust)
        env.training = env.norm_reward = False
    n_frames = _n_frames(space, env.observation_space)
    return wrap_env(model, VecFrameStack(env, n_frames) if n_frames > 1 else env)


def _has_policy(algorithm: type[BaseAlgorithm], policy_class: type) -> bool:
    if issubclass(policy_class, RecurrentDQNPolicy) and not issubclass(algorithm, SaveAndLoad):
        return False  # DQN has them too, by inheritance, but would drop their memory
    return issubclass(policy_class, tuple(algorithm.policy_aliases.values()))


def _misfit(algo: str | None, fitting: list[str]) -> str:
    if not fitting:
        return f"which none of the known algorithms has; only models of {', '.join(LOADABLE)} can be shown"
    fault = "does not have such a policy" if algo in LOADABLE else "is unknown"
    return f"and algo={algo!r} {fault}; give {' or '.join(fitting)}, or leave it out"


def _n_frames(wanted: spaces.Space, offered: spaces.Space) -> int:
    """The number of frames to stack so that the environment's observations fit the model's space; 1 if none does."""
    if isinstance(wanted, spaces.Dict) and isinstance(offered, spaces.Dict):
        counts = {_n_frames(wanted[key], offered[key]) for key in wanted.spaces if key in offered.spaces}
        return counts.pop() if len(counts) == 1 else 1
    if not isinstance(wanted, spaces.Box) or not isinstance(offered, spaces.Box) or len(wanted.shape) != len(offered.shape):
        return 1
    # Images are channels first in the model, and channels first or last in the environment; so both axes are tried. All
    # other axes have to match, in any order, since a transposed image has them elsewhere
    ratio = 1
    for axis in (0, -1):
        channels, total = offered.shape[axis], wanted.shape[0 if len(wanted.shape) == 3 else -1]
        others = sorted(offered.shape[1:] if axis == 0 else offered.shape[:-1])
        if others == sorted(wanted.shape[1:] if len(wanted.shape) == 3 else wanted.shape[:-1]) and total % channels == 0:
            ratio = max(ratio, total // channels)
    return ratio
