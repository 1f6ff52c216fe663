"""What a recurrent DQN's arguments must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gymnasium import spaces

from sb3_attn.recurrent_dqn.policies import RecurrentDQNPolicy
from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from sb3_attn.replay.lengths import check_lengths

if TYPE_CHECKING:
    from sb3_attn.recurrent_dqn.recurrent_dqn import RecurrentDQN


def check_arguments(model: RecurrentDQN) -> None:
    """
    Check the arguments on their own and against each other.

    :param model: has them as its attributes
    :raises ValueError: if one does not fit; the sentence says what to change
    """
    buffer_class = model.replay_buffer_class
    assert buffer_class is not None, "the constructor has chosen one"
    if not issubclass(model.policy_class, RecurrentDQNPolicy):
        raise ValueError(
            f"policy={model.policy_class.__name__} is no RecurrentDQNPolicy; use one of {sorted(model.policy_aliases)}. "
            "If it comes from a zip, another algorithm saved that: load it with the class that saved it."
        )
    if not issubclass(buffer_class, SequenceReplayBuffer):
        raise ValueError(
            f"replay_buffer_class={buffer_class.__name__} does not keep sequences; leave it out, or use "
            "SequenceReplayBuffer, PrioritizedSequenceReplayBuffer or a subclass (hindsight replay is not supported)."
        )
    if model.prioritized_replay != issubclass(buffer_class, PrioritizedSequenceReplayBuffer):
        raise ValueError(
            f"prioritized_replay={model.prioritized_replay}, but replay_buffer_class={buffer_class.__name__} is "
            f"{'uniform' if model.prioritized_replay else 'prioritized'}; make both say the same (a zip keeps its class)."
        )
    if taken := {"trace_length", "burn_in_length", "sequence_period", "stored_state"} & model.replay_buffer_kwargs.keys():
        raise ValueError(f"replay_buffer_kwargs={model.replay_buffer_kwargs}: give {sorted(taken)} to the algorithm instead.")
    check_lengths(model.trace_length, model.burn_in_length, model.sequence_period)
    assert isinstance(model.action_space, spaces.Discrete), "SB3 has refused all others"
    if model.action_space.start != 0:
        raise ValueError(f"the actions are {model.action_space}; number them from 0, with an ActionWrapper for example.")
    for name in ("batch_size", "n_steps", "target_update_interval"):
        if getattr(model, name) < 1:
            raise ValueError(f"{name}={getattr(model, name)} must be at least 1.")
    if model.td_lambda is not None and not 0 <= model.td_lambda <= 1:
        raise ValueError(f"td_lambda={model.td_lambda} must lie between 0 and 1, or be None for n-step returns.")
    if model.td_lambda is not None and model.n_steps > 1:
        raise ValueError(
            f"td_lambda={model.td_lambda} and n_steps={model.n_steps} are two kinds of return; pass td_lambda=None "
            "for n-step returns, or n_steps=1."
        )


def check_buffer_size(model: RecurrentDQN) -> None:
    """
    Check that the replay buffer holds a window for each environment.

    Not when a model is loaded: ``buffer_size=1`` is the usual way to load one that will not learn.

    :param model: has the arguments as its attributes
    :raises ValueError: if it does not
    """
    lane_size, sequence_length = model.buffer_size // model.n_replay_envs, model.burn_in_length + (model.trace_length or 1)
    if lane_size < sequence_length:
        raise ValueError(
            f"buffer_size={model.buffer_size} leaves {lane_size} steps for each of {model.n_replay_envs} environments, so "
            f"burn_in_length={model.burn_in_length} and trace_length={model.trace_length} do not fit; raise buffer_size to "
            f"at least {sequence_length * model.n_replay_envs}."
        )
