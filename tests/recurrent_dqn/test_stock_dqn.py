"""With a core that remembers nothing, RecurrentDQN is Stable-Baselines3's DQN."""

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
MEMORYLESS = dict(
    core="identity",
    encoder_arch=[],
    net_arch=[32, 32],
    dueling=False,
    skip_connection=False,
    optimizer_kwargs={},  # SB3's Adam, not the fused one, whose rounding differs
)


def both(n_envs: int = 1, **kwargs) -> tuple[DQN, RecurrentDQN]:
    from stable_baselines3.common.env_util import make_vec_env

    arguments = COMMON | kwargs
    stock = DQN("MlpPolicy", make_vec_env("CartPole-v1", n_envs), policy_kwargs=dict(net_arch=[32, 32]), **arguments)
    ours = RecurrentDQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs),
        double_q=False,
        td_lambda=None,
        trace_length=1,
        burn_in_length=0,
        policy_kwargs=MEMORYLESS,
        **arguments,
    )
    return stock, ours


def assert_bit_equal(stock: DQN, ours: RecurrentDQN) -> None:
    assert stock._n_updates == ours._n_updates > 0
    theirs = dict(stock.policy.named_parameters())
    mine = dict(ours.policy.named_parameters())
    assert theirs.keys() == mine.keys()
    different = [name for name in theirs if not th.equal(theirs[name], mine[name])]
    assert not different


@pytest.mark.parametrize("buffer_size", [2000, 300], ids=["ring not full", "ring wrapped twice"])
def test_reproduces_dqn_bit_for_bit(buffer_size: int) -> None:
    stock, ours = both(buffer_size=buffer_size)
    stock.learn(800)
    ours.learn(800)
    assert ours.replay_buffer.full[0] == stock.replay_buffer.full == (buffer_size == 300)
    assert_bit_equal(stock, ours)


def test_reproduces_dqn_with_several_gradient_steps_and_soft_targets() -> None:
    stock, ours = both(buffer_size=300, gradient_steps=2, tau=0.1, gamma=0.9, max_grad_norm=1)
    stock.learn(500)
    ours.learn(500)
    assert_bit_equal(stock, ours)


def test_a_memory_would_make_a_difference() -> None:
    """So that the comparison can fail: double Q alone already leads to other weights."""
    stock, ours = both(buffer_size=300)
    ours.double_q = True
    stock.learn(400)
    ours.learn(400)
    with pytest.raises(AssertionError):
        assert_bit_equal(stock, ours)
