"""Warming a memory up before training on a window."""

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_attn.common.core_state import CoreState, state_from_arrays, where_rows
from sb3_attn.recurrent_dqn.policies import RecurrentQNetwork
from sb3_attn.replay import SequenceReplayBufferSamples


def burn_in(q_net: RecurrentQNetwork, batch: SequenceReplayBufferSamples) -> CoreState:
    """
    The memory of a network before a batch's trained steps: from the stored state through the burn-in, without gradient.

    Kapturowski et al. (2019), section 3. A window with a shorter past has a shorter burn-in, at an episode's start none.

    :param q_net: the network, whose own weights are used
    :param batch: B windows
    :return: a core state ``[B, ...]``
    """
    state = q_net.initial_state(len(batch.episode_starts))
    if batch.core_state:
        state = where_rows(batch.episode_starts, state, state_from_arrays(batch.core_state, like=state))
    # One fused unroll from each length to the next, in which the rows that are done stand still. There are few lengths:
    # 0, burn_in_length, and multiples of sequence_period between them
    start = 0
    for end in np.unique(batch.burn_in_lengths[batch.burn_in_lengths > 0]):
        goes_on = th.as_tensor(batch.burn_in_lengths >= end, device=batch.mask.device)
        with th.no_grad():
            advanced = q_net.advance(_steps(batch.burn_in_observations, start, end), state)
        # Outside: a learned initial state has its gradient from the windows at an episode's start
        state = where_rows(goes_on, advanced, state)
        start = end
    return state


def _steps(observations: PyTorchObs, start: int, end: int) -> PyTorchObs:
    if isinstance(observations, dict):
        return {key: array[start:end] for key, array in observations.items()}
    return observations[start:end]
