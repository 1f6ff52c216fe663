"""With a core that remembers nothing, RecurrentDQN is Stable-Baselines3's DQN."""

from typing import Any

import pytest
import torch as th
from stable_baselines3 import DQN

from sb3_attn import RecurrentDQN

COMMON = dict(
    learning_rate=1e-3,
    learning_starts=50,
    batch_size=32,
    train_freq=4,
    target_update_interval=60,
    exploration_fraction=0.5,
    seed=3,
    device="cpu",
)
SWITCHED_OFF = dict(double_q=False, td_lambda=None, trace_length=1, burn_in_length=0, reward_scaling=False)
MEMORYLESS = dict(
    core="identity",
    encoder_arch=[],
    net_arch=[32, 32],
    dueling=False,
    skip_connection=False,
    ema_decay=0.0,
    optimizer_kwargs={},  # SB3's Adam, not the fused one, whose rounding differs
)


def train_both(steps: int, **kwargs: Any) -> tuple[DQN, RecurrentDQN]:
    """One after the other, since each constructor seeds the global generators."""
    ours_kwargs = SWITCHED_OFF | kwargs
    stock_kwargs = {name: value for name, value in kwargs.items() if name not in SWITCHED_OFF}
    stock = DQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[32, 32]), **(COMMON | stock_kwargs))
    stock.learn(steps)
    ours = RecurrentDQN("MlpPolicy", "CartPole-v1", policy_kwargs=MEMORYLESS, **(COMMON | ours_kwargs))
    ours.learn(steps)
    return stock, ours


def different_parameters(stock: DQN, ours: RecurrentDQN) -> list[str]:
    assert stock._n_updates == ours._n_updates > 0
    theirs, mine = stock.policy.state_dict(), ours.policy.state_dict()
    assert mine.keys() - theirs.keys() == {f"{net}.q_net.running_scale" for net in ("q_net", "q_net_target")}
    return [name for name in theirs if not th.equal(theirs[name], mine[name])]


@pytest.mark.parametrize("buffer_size", [2000, 200], ids=["ring not full", "ring wrapped twice"])
def test_recurrent_dqn_reproduces_dqn_bit_for_bit(buffer_size: int) -> None:
    stock, ours = train_both(450, buffer_size=buffer_size)
    assert ours.replay_buffer.full[0] == stock.replay_buffer.full == (buffer_size == 200)
    assert different_parameters(stock, ours) == []


def test_recurrent_dqn_reproduces_several_gradient_steps_and_soft_targets() -> None:
    changes = dict(buffer_size=300, gradient_steps=2, tau=0.1, target_update_interval=4, gamma=0.9, max_grad_norm=1)
    assert different_parameters(*train_both(300, **changes)) == []


@pytest.mark.parametrize("change", [dict(double_q=True), dict(trace_length=2), dict(td_lambda=0.8, trace_length=4)], ids=str)
def test_each_extra_of_recurrent_dqn_makes_a_difference(change: dict) -> None:
    """So the comparison with DQN would notice if one were on."""
    assert different_parameters(*train_both(400, buffer_size=300, **change))
