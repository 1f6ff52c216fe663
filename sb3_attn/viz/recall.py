"""Recall: how much what an agent expects depends on each observation that it has seen, with any memory."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from sb3_attn.common.observations import batch_size, map_obs
from sb3_attn.recurrent_dqn import RecurrentQNetwork
from sb3_attn.viz.recording import Episode, evaluation_mode
from sb3_attn.viz.sources import acting_network


def recall_density(model: BaseAlgorithm, episode: Episode) -> np.ndarray:
    """
    The share that each observation so far has in what the Q-values of a step depend on.

    ``D[t, k]`` is proportional to ``sum_a |dQ(o_0 ... o_t, a) / do_k|``, the absolute values summed over the entries of the
    observation as the network gets it, pixels between 0 and 1 or one-hot. Wang et al. (2025), https://arxiv.org/abs/2503.01450,
    who look at an episode's last step, and call it smearing if irrelevant observations have large shares. A gradient says what
    a small change would do, not what another cue would; of straight-through attention it is the one that training uses.

    :param model: a ``RecurrentDQN`` or ``R2D2``, with any core
    :param episode: a recording of it, T steps. The time grows with their square and with the number of actions: 100 steps take
        an LSTM about a second, an NTM or DNC a minute
    :return: present steps by past steps, ``[T, T]``; rows sum to 1, or are 0 where nothing matters
    :raises ValueError: if the model is another, or a gradient is not finite
    """
    network = network_with_memory(model)
    observations = map_obs(lambda array: th.as_tensor(array[:, None], device=network.device), episode.observations)
    # cuDNN computes gradients of an LSTM in training mode only
    with evaluation_mode(model), _inputs_of_extractors(network) as inputs, th.backends.cudnn.flags(enabled=False):
        values, _ = network.unroll(observations, network.initial_state(1))  # [T, 1, A]
        density = np.zeros((len(values), len(values)))
        for present, of_step in enumerate(values[:, 0]):
            for value in of_step:
                gradients = th.autograd.grad(value, [of_input for _, of_input in inputs], retain_graph=True, allow_unused=True)
                for (first, _), gradient in zip(inputs, gradients, strict=True):
                    if gradient is not None:
                        past = slice(first, first + len(gradient))
                        density[present, past] += gradient.abs().flatten(1).sum(dim=1).cpu().numpy()
    if not np.isfinite(density).all():
        raise ValueError("a gradient of the Q-values is not finite; check the observations and the parameters for NaN.")
    totals = density.sum(axis=1, keepdims=True)
    return np.divide(density, totals, out=np.zeros_like(density), where=totals > 0)


def network_with_memory(model: BaseAlgorithm) -> RecurrentQNetwork:
    """
    The network that a model with a memory acts with.

    :param model: a ``RecurrentDQN`` or ``R2D2``
    :raises ValueError: if it is another
    """
    network = acting_network(model)
    if not isinstance(network, RecurrentQNetwork):
        raise ValueError(f"Recall is that of a RecurrentDQN or R2D2, and this model is a {type(model).__name__}.")
    return network


@contextmanager
def _inputs_of_extractors(network: RecurrentQNetwork) -> Iterator[list[tuple[int, th.Tensor]]]:
    """
    Collect what the features extractors are called with, as tensors that gradients can be taken of.

    A call has some of the steps, in order; each of its tensors is collected with the number of the first.
    """
    collected: list[tuple[int, th.Tensor]] = []
    n_steps: Counter[nn.Module] = Counter()  # that an extractor has had so far

    def as_leaves(extractor: nn.Module, arguments: tuple[Any]) -> tuple[Any]:
        observations = map_obs(lambda tensor: tensor.detach().requires_grad_(), arguments[0])
        tensors = observations.values() if isinstance(observations, dict) else [observations]
        collected.extend((n_steps[extractor], tensor) for tensor in tensors)
        n_steps[extractor] += batch_size(observations)
        return (observations,)

    extractors = [network.features_extractor, *filter(None, [network.memory_extractor])]
    hooks = [extractor.register_forward_pre_hook(as_leaves) for extractor in extractors]
    try:
        yield collected
    finally:
        for hook in hooks:
            hook.remove()
