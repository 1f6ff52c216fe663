"""Batches of a sequence replay buffer."""

from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs


class SequenceReplayBufferSamples(NamedTuple):
    """
    A batch of B windows, each a run of consecutive steps of one episode; time-major.

    Window b has ``burn_in_lengths[b]`` steps that only warm the memory up, then ``mask[:, b].sum()`` trained steps.
    Everything beyond a window's own length is padding, whose contents must not matter.
    """

    #: Observations of the burn-in, left-aligned, ``[burn-in, B, ...]``
    burn_in_observations: PyTorchObs
    #: Number of burn-in steps of each window, ``[B]``; an array on the host, since it controls the loop of the burn-in
    burn_in_lengths: np.ndarray
    #: State before each window's first (burn-in) step, flat arrays ``[B, ...]``; empty if no state is stored
    core_state: tuple[th.Tensor, ...]
    #: Whether that first step is an episode's first, where the state is the initial one, bool ``[B]``
    episode_starts: th.Tensor
    #: Observations of the trained steps and the one after the last, ``[T + 1, B, ...]``
    observations: PyTorchObs
    #: Which actions are valid at these observations, at least one, bool ``[T + 1, B, M]``; ``None`` if there are no masks
    action_masks: th.Tensor | None
    #: ``[T, B]``, int64; of MultiDiscrete actions ``[T, B, number of components]``
    actions: th.Tensor
    #: r_{t+1}, ``[T, B]``
    rewards: th.Tensor
    #: 1 where the episode terminated (not where it was truncated), float ``[T, B]``
    terminations: th.Tensor
    #: True on trained steps, False on padding, bool ``[T, B]``
    mask: th.Tensor
    #: Weight of each window in the loss, ``[B]``; all 1 under uniform replay
    importance_weights: th.Tensor
    #: Leaf index and unique number of each window, ``[B]`` both; for ``update_priorities``
    indices: np.ndarray
    window_ids: np.ndarray
