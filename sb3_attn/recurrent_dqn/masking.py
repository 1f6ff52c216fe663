"""
Environments in which not every action is always valid, by the protocol of sb3-contrib's MaskablePPO.

An environment, or the wrapper ``ActionMasker`` around it, has a method ``action_masks()`` that tells which actions are valid
now. In the replay the masks are one more part of the observations.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_attn.common.action_masks import row_without_valid_action, what_masks_tell
from sb3_attn.envs.wrappers import ACTION_MASKS, FinalActionMasks


def is_masked(env: VecEnv | None, use_masking: bool | None) -> bool:
    """
    Decide whether there are masks.

    :param env: the environments, if there are any yet
    :param use_masking: whether to use their masks; ``None`` means ``True`` if they have any
    :return: whether to use them
    :raises ValueError: if ``use_masking`` is True and the environments have no masks, or ``action_masks`` is not a method
    """
    if env is None or use_masking is False:
        return bool(use_masking)
    try:
        is_supported = is_masking_supported(env)
    except NotImplementedError:  # a VecEnv that does not give attributes
        is_supported = False
    if use_masking and not is_supported:
        raise ValueError(
            f"use_masking={use_masking}, but the environments have no method action_masks(); wrap each in "
            "sb3_contrib.common.wrappers.ActionMasker, or give use_masking=False."
        )
    # Those of other processes are not asked: a method would be sent here with its environment
    if is_supported and isinstance(env.unwrapped, DummyVecEnv):
        for masks in env.get_attr("action_masks"):
            if not callable(masks):
                raise ValueError(
                    f"action_masks of an environment is a {type(masks).__name__}, not a method; make it a method that returns "
                    "the masks, or give use_masking=False."
                )
    return is_supported


def keep_final_masks(env: VecEnv) -> None:
    """
    Wrap the environments of a ``DummyVecEnv`` in ``FinalActionMasks``.

    :param env: the environments
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if isinstance(env, DummyVecEnv):
        env.envs = [each if is_wrapped(each, FinalActionMasks) else FinalActionMasks(each) for each in env.envs]


def current_masks(env: VecEnv, nvec: Sequence[int], where: str) -> np.ndarray:
    """
    Ask the environments for the masks of their current observations.

    :param env: n environments
    :param nvec: number of choices in each component of an action; their sum is M
    :param where: "at step 100", for example, for the error
    :return: True on valid actions, bool ``[n, M]``
    :raises ValueError: if the masks have another shape, or leave no action valid
    """
    masks = get_action_masks(env).astype(bool)
    if masks.shape != (env.num_envs, sum(nvec)):
        raise ValueError(
            f"action_masks() returned shape {masks.shape[1:]} {where}; return one bool for {what_masks_tell(nvec)}, or "
            "give use_masking=False."
        )
    if (found := row_without_valid_action(masks, nvec)) is not None:
        raise ValueError(
            f"action_masks() of environment {found[0]} has no {found[1]} {where}; end the episode there, or leave one valid."
        )
    return masks


def following_masks(masks: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]], nvec: Sequence[int]) -> np.ndarray:
    """
    The masks of the observations that followed a step, where those of new episodes are replaced by the final ones.

    :param masks: of the current observations, ``[n, M]``
    :param dones: whether episodes ended, ``[n]``
    :param infos: with the final masks where they did, if these are known
    :param nvec: number of choices in each component of an action; their sum is M
    :return: ``[n, M]``
    :raises ValueError: if final masks have another shape
    """
    if not dones.any():  # as after most steps
        return masks
    masks = masks.copy()
    for k in np.flatnonzero(dones):
        final = np.asarray(infos[k].get(ACTION_MASKS, masks[k]))
        if final.shape != masks.shape[1:]:
            raise ValueError(f"infos[{k}]['action_masks'] has shape {final.shape}; give one bool for {what_masks_tell(nvec)}.")
        masks[k] = final
    return masks


def replace_randomly(
    actions: np.ndarray, explore: np.ndarray, action_space: spaces.Space, action_masks: np.ndarray | None = None
) -> np.ndarray:
    """
    Explore.

    :param actions: the greedy actions, ``[n]``, or a single one; with a further axis if they are ``MultiDiscrete``
    :param explore: where a random action takes their place, bool ``[n]``, or a single one
    :param action_space: draws the random actions
    :param action_masks: True on the actions to draw from, ``[n, M]``; ``None`` means all
    :return: the actions to take
    """
    actions = np.array(actions)
    if not explore.any():
        return actions
    masks = [None] * explore.sum() if action_masks is None else action_masks[np.atleast_1d(explore)].astype(np.int8)
    if isinstance(action_space, spaces.MultiDiscrete):  # takes the masks of its components apart
        ends = np.cumsum(action_space.nvec)[:-1]
        masks = [None if mask is None else tuple(np.split(mask, ends)) for mask in masks]
    random_actions = [action_space.sample(mask) for mask in masks]
    actions[explore] = np.reshape(random_actions, actions[explore].shape)
    return actions
