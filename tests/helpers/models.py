"""Small models of both algorithms, a core that a user has written, and the comparison of two models."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch as th

from sb3_attn import R2D2, MemoryCore, RecurrentDQN
from tests.helpers.environments import Walk, counters


def make_rdqn(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> RecurrentDQN:
    """A small RecurrentDQN that learns after 20 steps."""
    policy_kwargs = dict(core_kwargs=dict(hidden_size=8), encoder_arch=[8], net_arch=[8]) | kwargs.pop("policy_kwargs", {})
    defaults = dict(
        learning_rate=1e-2,
        buffer_size=200,
        learning_starts=20,
        batch_size=4,
        train_freq=4,
        trace_length=3,
        burn_in_length=2,
        target_update_interval=20,
        seed=0,
        device="cpu",
    )
    return RecurrentDQN(policy, counters() if env is None else env, **(defaults | kwargs), policy_kwargs=policy_kwargs)


def make_r2d2(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> R2D2:
    """A small R2D2 with two environments for each actor, which learns after 20 steps."""
    if env is None:
        env = Walk
        kwargs = {"envs_per_actor": 2} | kwargs
    policy_kwargs = dict(core_kwargs=dict(hidden_size=6), encoder_arch=[6], net_arch=[6]) | kwargs.pop("policy_kwargs", {})
    defaults: dict[str, Any] = dict(
        learning_rate=1e-2,
        buffer_size=400,
        learning_starts=20,
        batch_size=4,
        target_update_interval=10,
        n_steps=2,
        trace_length=3,
        burn_in_length=2,
        sequence_period=2,
        rollout_length=5,
        actor_update_interval=10,
        seed=0,
        device="cpu",
    )
    return R2D2(policy, env, **(defaults | kwargs), policy_kwargs=policy_kwargs)


def make_r2d2_on_ray(env: Any = "MemoryChain-v0", **kwargs: Any) -> R2D2:
    """A small R2D2 with two actors, which are on Ray unless ``backend`` says otherwise."""
    defaults: dict[str, Any] = dict(
        backend="ray",
        buffer_size=20_000,
        learning_starts=100,
        batch_size=8,
        trace_length=None,
        burn_in_length=0,
        sequence_period=None,
        rollout_length=10,
        actor_update_interval=50,
        n_actors=2,
        envs_per_actor=2,
        seed=3,
    )
    return make_r2d2(env, **(defaults | kwargs))


#: A function that makes a small model: ``make(env, policy, **kwargs)``
Make = Callable[..., RecurrentDQN]

#: The algorithms that make the same promises to users of SB3; so R2D2 updates about as often as RecurrentDQN
ALGORITHMS: dict[str, Make] = {
    "RecurrentDQN": make_rdqn,
    "R2D2": partial(make_r2d2, samples_per_insert=1),
    "R2D2 with two actors": partial(make_r2d2, n_actors=2, samples_per_insert=1),
}


def parameters(model: RecurrentDQN) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not th.equal(first[name], second[name])]
    assert not different


def prefer(model: R2D2, action: int) -> None:
    """Let a model without dueling find one action the best, whatever it sees."""
    with th.no_grad():
        for parameter in model.q_net.parameters():
            parameter.zero_()
        model.q_net.q_net[-1].bias[action] = 1.0


class SumState(NamedTuple):
    """``[B, input_size]``."""

    total: th.Tensor


class SumCore(MemoryCore):
    """A user's own memory, without an unroll of its own: a decaying sum of the inputs, with a learned initial state."""

    def __init__(self, input_size: int, decay: float = 0.5) -> None:
        super().__init__(input_size, output_size=input_size)
        self.decay = decay
        self.start = th.nn.Parameter(th.zeros(input_size))

    def initial_state(self, batch_size: int) -> SumState:
        return SumState(self.start.expand(batch_size, -1))

    def forward(self, inputs: th.Tensor, state: Any) -> tuple[th.Tensor, SumState]:
        total = self.decay * state[0] + inputs
        return total, SumState(total)
