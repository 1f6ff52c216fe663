"""Checks of what vectorized environments return, of what they leave out, and of who resets them."""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_attn.envs.wrappers import ACTION_MASKS


class ResetWatch:
    """
    Tells whether others have reset vectorized environments, as ``evaluate_policy`` does.

    ``VecEnv.reset`` uses up seeds and options: it replaces the lists of both by empty ones.

    :param env: the environments, as they are now
    """

    def __init__(self, env: VecEnv) -> None:
        self._env = env.unwrapped
        self._lists = self._current_lists()

    def _current_lists(self) -> list[Any]:
        return [getattr(self._env, name, None) for name in ("_seeds", "_options")]  # those of other packages may have none

    @property
    def noticed(self) -> bool:
        """Whether ``reset()`` has been called since the watch began. A later ``seed()`` or ``set_options()`` conceals it."""
        return all(
            now is not None and now is not before and all(each is None or each == {} for each in now)
            for now, before in zip(self._current_lists(), self._lists, strict=True)
        )


#: The warning that follows where learning has to begin new episodes
WAS_RESET = (
    "the environments were reset while learning, as by evaluate_policy(), EvalCallback or reset(), so their episodes end here "
    "and new ones begin; evaluate on environments of their own."
)


def check_step(env: VecEnv, obs: Any, rewards: Any, dones: Any, infos: Any, step: int | str) -> None:
    """
    Check the shapes of what ``VecEnv.step`` returned, before anything of it is stored.

    :param env: the environments
    :param obs: observations, which should be ``[n_envs, ...]``
    :param rewards: rewards, ``[n_envs]``
    :param dones: whether episodes ended, ``[n_envs]``
    :param infos: a dict for each environment
    :param step: number of the step, for the message
    :raises ValueError: if a shape or a number of rows is wrong
    """
    rows = (env.num_envs,)
    for name, shape in (("rewards", np.shape(rewards)), ("dones", np.shape(dones)), ("infos", (len(infos),))):
        if shape != rows:
            raise ValueError(_sentence(env, f"{name} of the shape {shape}", rows, step))
    check_observations(env, obs, step)
    for i in np.flatnonzero(dones):
        if (final := infos[i].get("terminal_observation")) is not None:
            _check_shapes(env, f"in infos[{i}] a terminal_observation", final, (), step)


def check_observations(env: VecEnv, obs: Any, step: int | str) -> None:
    """
    Check the shapes of observations.

    :param env: the environments that returned them
    :param obs: observations, which should be ``[n_envs, ...]``
    :param step: number of the step, for the message
    :raises ValueError: if a shape or a key is wrong
    """
    _check_shapes(env, "observations", obs, (env.num_envs,), step)


def missing_final_observations(timeouts: np.ndarray, infos: Any, use_masking: bool) -> np.ndarray:
    """
    Truncated episodes whose final observation, or its action masks, the environments have left out; a warning says so.

    The last step of such an episode has no target: its next observation is unknown, and the one that a reset returned belongs
    to another episode. The step is not stored, so the episode ends one step earlier, with the observation before that step.

    :param timeouts: whether the step truncated an episode, ``[n_envs]``
    :param infos: those of the step
    :param use_masking: whether masks are needed
    :return: bool ``[n_envs]``
    """
    missing = timeouts & [info.get("terminal_observation") is None for info in infos]
    if missing.any():
        warnings.warn(
            "the environments give no terminal_observation in the infos of truncated episodes, so the last step of each is "
            "not learned from; add it to the infos, as DummyVecEnv does.",
            stacklevel=2,
        )
    if use_masking and (without_masks := timeouts & [info.get(ACTION_MASKS) is None for info in infos]).any():
        warnings.warn(
            "the environments give no action_masks in the infos of truncated episodes, so the last step of each is not "
            "learned from; wrap each environment in sb3_attn.FinalActionMasks.",
            stacklevel=2,
        )
        missing |= without_masks
    return missing


def _check_shapes(env: VecEnv, name: str, obs: Any, rows: tuple[int, ...], step: int | str) -> None:
    space = env.observation_space
    arrays, subspaces = {"": obs}, {"": space}
    if isinstance(space, spaces.Dict):
        arrays, subspaces = obs, dict(space.spaces)
        if not isinstance(obs, dict) or obs.keys() != subspaces.keys():
            found = f"the keys {list(obs)}" if isinstance(obs, dict) else f"the type {type(obs).__name__}"
            raise ValueError(_sentence(env, f"{name} of {found}", f"a dict of {list(subspaces)}", step))
    for key, subspace in subspaces.items():
        shape, expected = np.shape(arrays[key]), (*rows, *(subspace.shape or ()))
        if shape != expected:
            raise ValueError(_sentence(env, f"{name}{f' {key!r}' if key else ''} of the shape {shape}", expected, step))


def _sentence(env: VecEnv, found: str, expected: Any, step: int | str) -> str:
    return (
        f"the environments returned {found} at step {step}, but {expected} was expected from num_envs={env.num_envs} and "
        f"observation_space={env.observation_space}; correct {type(env).__name__}, or what it wraps."
    )
