"""The score that a model gives each action: a Q-value or a probability."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_attn.common import td
from sb3_attn.common.observations import batch_size
from sb3_attn.recurrent_dqn import RecurrentQNetwork
from sb3_attn.viz.sources import acting_network

Q_VALUE, PROBABILITY = "Q-value", "probability"


def score_name(model: BaseAlgorithm) -> str | None:
    """
    What a model chooses its actions by.

    :param model: of any of SB3's algorithms, or of ours
    :return: ``"Q-value"``, ``"probability"``, or ``None`` if there is no such number for each action
    """
    if not isinstance(model.action_space, spaces.Discrete):
        return None
    if isinstance(model.policy, ActorCriticPolicy | MaskableActorCriticPolicy):
        return PROBABILITY
    return Q_VALUE if any(hasattr(model.policy, name) for name in ("q_net", "quantile_net")) else None


def action_scores(
    model: BaseAlgorithm, observations: Any, state: Any = None, action_masks: np.ndarray | None = None
) -> np.ndarray:
    """
    Compute Q-values, of quantiles the means, or the logarithms of the actions' probabilities.

    :param model: with discrete actions
    :param observations: as the policy gets them, ``[B, ...]``, or a dict of such arrays
    :param state: the memory before the step, of which that of the first environment is repeated for all B observations;
        ``None`` at an episode's start
    :param action_masks: True on valid actions, ``[B, actions]``, for a model that takes them; ``None`` means that all are
    :return: ``[B, actions]``; the Q-values of invalid actions are minus infinity
    :raises ValueError: if the policy has neither
    """
    name = score_name(model)
    if name is None:
        raise ValueError(
            f"{type(model.policy).__name__} with the action space {model.action_space} has no action scores that are known "
            "here; use a model with one discrete action: DQN, QR-DQN, RecurrentDQN, PPO or A2C."
        )
    tensors, _ = model.policy.obs_to_tensor(observations)
    with th.no_grad():
        compute = _q_values if name == Q_VALUE else _log_probabilities
        return compute(model, tensors, state, action_masks).float().cpu().numpy()


def _q_values(model: Any, tensors: PyTorchObs, state: Any, action_masks: np.ndarray | None) -> th.Tensor:
    network: Any = acting_network(model)
    if not isinstance(network, RecurrentQNetwork):
        values = network(tensors)
        return values.mean(dim=1) if values.dim() == 3 else values  # quantiles have an axis of their own
    n = batch_size(tensors)
    repeated = None if state is None else [np.repeat(array[:1], n, axis=0) for array in state]
    values = network(tensors, network.state_or_initial(repeated, n))[0]
    if model.value_rescaling:
        values = td.signed_parabolic(values)
    masks = None if action_masks is None else th.as_tensor(action_masks, dtype=th.bool, device=values.device)
    return network.components.mask(values, masks)


def _log_probabilities(model: Any, tensors: PyTorchObs, state: Any, action_masks: np.ndarray | None) -> th.Tensor:
    policy: Any = model.policy
    n = batch_size(tensors)
    if hasattr(policy, "lstm_actor"):
        if state is None:
            state = (np.zeros(policy.lstm_hidden_state_shape, np.float32),) * 2
        # sb3-contrib's states have the layers in front of the batch
        repeated = tuple(th.as_tensor(array[:, :1], device=policy.device).repeat(1, n, 1) for array in state)
        distribution = policy.get_distribution(tensors, repeated, th.zeros(n, device=policy.device))[0]
    else:
        masks = {} if action_masks is None else {"action_masks": action_masks}
        distribution = policy.get_distribution(tensors, **masks)
    logits: th.Tensor = distribution.distribution.logits
    return logits  # normalised: logarithms of probabilities
