"""Warming a memory up before training on a window."""

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_attn.common.core_state import CoreState, map_state, state_from_arrays, where_rows
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
    # One fused unroll per length; there are few: burn_in_length, and multiples of sequence_period below it
    for length in batch.burn_in_lengths.unique().tolist():
        if length == 0:
            continue
        rows = (batch.burn_in_lengths == length).nonzero().squeeze(1)
        with th.no_grad():
            past = map_state(lambda array, rows=rows: array[rows], state)
            advanced = q_net.advance(_slice(batch.burn_in_observations, length, rows), past)
        state = map_state(lambda array, new, rows=rows: array.index_copy(0, rows, new), state, advanced)
    return state


def _slice(observations: PyTorchObs, length: int, rows: th.Tensor) -> PyTorchObs:
    if isinstance(observations, dict):
        return {key: array[:length, rows] for key, array in observations.items()}
    return observations[:length, rows]
