"""What an actor has to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sb3_attn.r2d2.environments import EnvFn, env_fns_of
from sb3_attn.recurrent_dqn import RecurrentDQNPolicy

if TYPE_CHECKING:
    from sb3_attn.r2d2.r2d2 import R2D2


class ActorSpec(NamedTuple):
    """
    All that an actor has to know; can be pickled.

    :param env_fns: make the environments of an actor; none if it is given them
    :param n_actors: number of actors, over whose environments the epsilons are spread
    :param policy_class: class of the policy
    :param policy_kwargs: its arguments, the spaces among them
    :param seed: numbers that the random streams are made from; ``None`` for streams that never come again
    :param gamma: the discount factor
    :param return_kwargs: what of returns ``td.value_targets`` has to know
    :param with_td_errors: whether the replay is prioritized
    :param burn_in_length: as the buffer has it
    :param sequence_period: as the buffer has it
    :param stored_state: as the buffer has it
    :param max_env_restarts: how often an environment may fail
    """

    env_fns: list[EnvFn]
    n_actors: int
    policy_class: type[RecurrentDQNPolicy]
    policy_kwargs: dict[str, Any]
    seed: tuple[int, ...] | None
    gamma: float
    return_kwargs: dict[str, Any]
    with_td_errors: bool
    burn_in_length: int
    sequence_period: int
    stored_state: bool
    max_env_restarts: int


def actor_spec(model: R2D2) -> ActorSpec:
    """
    What the actors of a model have to know.

    :param model: with its environments and its replay buffer
    :raises ValueError: if actors cannot make environments like these
    """
    assert model.env is not None, "SB3 has checked it"
    return ActorSpec(
        env_fns=env_fns_of(model.env) if model.n_actors else [],
        n_actors=max(model.n_actors, 1),
        policy_class=model.policy_class,  # type: ignore[arg-type]  # _check_arguments() has seen to it
        policy_kwargs={
            "observation_space": model.observation_space,
            "action_space": model.action_space,
            **model.policy_kwargs,
        },
        # A model that goes on must not see the random numbers again that it began with
        seed=None if model.seed is None else (model.seed, model._n_calls),
        gamma=model.gamma,
        return_kwargs=model.return_kwargs,
        with_td_errors=model.prioritized_replay,
        burn_in_length=model.replay_buffer.burn_in_length,
        sequence_period=model.replay_buffer.sequence_period,
        stored_state=model.replay_buffer.stored_state,
        max_env_restarts=model.max_env_restarts,
    )
