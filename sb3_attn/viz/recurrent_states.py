"""The units of recurrent memories: what an LSTM, GRU or another memory without slots holds after each step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_attn.memory import GRUCore, LSTMCore
from sb3_attn.recurrent_dqn import RecurrentQNetwork
from sb3_attn.viz.sources import acting_network, slots


def recurrent_states(model: BaseAlgorithm, states: Sequence[Any]) -> dict[str, np.ndarray]:
    """
    Take the units of the first environment out of what ``predict`` returned.

    :param model: of any of SB3's algorithms, or of ours
    :param states: the memory after each of T steps
    :return: ``[T, units]`` each, called by the field of the state and, if there are several, the layer: ``"hidden"``,
        ``"cell, layer 2"``; empty without a memory, and for a memory with slots, whose weights say more
    """
    if hasattr(model.policy, "lstm_actor"):
        # sb3-contrib's fields are [layers, environments, units]
        fields = {name: np.stack([state[i][:, 0] for state in states]) for i, name in enumerate(("hidden", "cell"))}
        return _by_layer(fields)
    network = acting_network(model)
    if not isinstance(network, RecurrentQNetwork) or slots(network.core):
        return {}
    core, fields = network.core, {}
    n_layers = core.num_layers if isinstance(core, LSTMCore | GRUCore) else 1
    for name in core.initial_state(1)._fields:  # type: ignore[attr-defined]
        field = np.stack([getattr(state, name)[0] for state in states])
        if name not in core.auxiliary_fields and field.ndim == 2 and field.dtype.kind == "f":
            fields[name] = field.reshape(len(field), n_layers, -1)
    return _by_layer(fields)


def _by_layer(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fields ``[T, layers, units]`` as one array ``[T, units]`` for each layer."""
    return {
        f"{name}, layer {layer + 1}" if field.shape[1] > 1 else name: field[:, layer]
        for name, field in fields.items()
        for layer in range(field.shape[1])
    }
