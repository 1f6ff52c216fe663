"""Heads: losses against loops over the papers' formulas, scales that change no value, and QR-DQN as the reference."""

from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import QRDQN

from sb3_attn import RecurrentDQN
from sb3_attn.recurrent_dqn.heads import Head, QuantileHead, make_head, take_actions
from tests.helpers.models import make_rdqn

KINDS = [dict(head=head, dueling=dueling) for head in ("expected", "quantile") for dueling in (True, False)]


def random_head(head: str, dueling: bool = True, n_values: int = 5) -> Head:
    th.manual_seed(0)
    head_kwargs = dict(n_values=n_values) if head == "quantile" else None
    return make_head(head, 6, 3, [8], th.nn.ReLU, dueling, head_kwargs)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_values_are_laid_out_in_blocks_of_v_and_advantages(kind: dict[str, Any]) -> None:
    """The layout of the last layer, N blocks of [V,] A, with V + A - mean A written out per quantile."""
    head = random_head(**kind)
    latent = th.randn(4, 6)
    outputs = latent
    for layer in head:
        outputs = layer(outputs)
    outputs = outputs.reshape(4, head.n_values, -1)
    expected = outputs
    if kind["dueling"]:
        expected = th.stack([outputs[..., 0] + outputs[..., 1 + a] - outputs[..., 1:].mean(dim=-1) for a in range(3)], dim=-1)
    th.testing.assert_close(head(latent), expected)


@pytest.mark.parametrize("sizes", [[5], [2, 3], [100], [60, 40]])
def test_few_and_many_actions_have_the_same_advantages(sizes: list[int]) -> None:
    """With few a product, with many step by step; written out for each component."""
    head = Head(6, sizes, [])
    latent = th.randn(4, 6)
    outputs = head[0](latent)
    values = []
    for part in outputs[:, 1:].split(sizes, dim=-1):
        values += [outputs[:, 0] + advantage - part.mean(dim=-1) for advantage in part.T]
    th.testing.assert_close(head(latent)[:, 0], th.stack(values, dim=-1) / len(sizes))
    assert (head.dueling_matrix is None) == (sum(sizes) > 64)


def with_scale(head: Head, scale: float) -> Head:
    head.running_scale.fill_(scale)
    return head


def huber(error: float) -> float:
    return 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_loss_of_expected_values_is_the_huber_loss_in_units_of_the_scale(scale: float) -> None:
    head = with_scale(random_head("expected"), scale)
    values, targets = th.randn(2, 3, 4, 1)
    expected = [[huber(float(targets[t, b, 0] - values[t, b, 0]) / scale) for b in range(4)] for t in range(3)]
    th.testing.assert_close(head.loss(values, targets), th.tensor(expected))


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_loss_of_quantiles_is_that_of_the_paper(scale: float) -> None:
    """Dabney et al. (2018), algorithm 1: sum over the estimates, mean over the targets."""
    head = with_scale(random_head("quantile", n_values=5), scale)
    values, targets = 2 * th.randn(2, 3, 4, 5)
    loss = head.loss(values, targets)
    for t in range(3):
        for b in range(4):
            expected = 0.0
            for i in range(5):
                fraction = (2 * i + 1) / 10
                for target in targets[t, b].tolist():
                    error = (target - float(values[t, b, i])) / scale
                    expected += abs(fraction - (error < 0)) * huber(error) / 5
            assert float(loss[t, b]) == pytest.approx(expected, rel=1e-5)


def test_quantiles_learn_the_distribution_and_its_mean() -> None:
    """Regression on samples of one random return: value i becomes its quantile tau_i (kappa is small beside the spread)."""
    head = with_scale(QuantileHead(1, 1, [], th.nn.ReLU, False, n_values=4), 0.01)
    optimizer, rng = th.optim.Adam(head.parameters(), lr=2.0), np.random.default_rng(0)
    for step in range(2000):
        optimizer.param_groups[0]["lr"] = 2.0 * (1 - step / 2000)
        targets = th.from_numpy(rng.uniform(0, 4, size=(1, 256, 4)).astype(np.float32))
        values = take_actions(head(th.zeros(1, 256, 1)), th.zeros(1, 256, dtype=th.int64))
        optimizer.zero_grad()
        head.loss(values, targets).mean().backward()
        optimizer.step()
    np.testing.assert_allclose(head(th.zeros(1)).flatten().detach(), [0.5, 1.5, 2.5, 3.5], atol=0.06)


QRDQN_KWARGS = dict(
    learning_rate=1e-3,
    buffer_size=300,
    learning_starts=50,
    batch_size=32,
    train_freq=4,
    target_update_interval=60,
    exploration_fraction=0.5,
    exploration_final_eps=0.05,
    max_grad_norm=10,
    seed=3,
    device="cpu",
)


def test_with_a_core_that_remembers_nothing_the_quantile_head_is_qr_dqn() -> None:
    """The reference is sb3-contrib's: the same steps, and the same parameters up to rounding."""
    theirs = QRDQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[16], n_quantiles=7), **QRDQN_KWARGS)
    theirs.learn(450)
    switched_off = dict(double_q=False, td_lambda=None, trace_length=1, burn_in_length=0, reward_scaling=False)
    policy_kwargs = dict(
        core="identity",
        encoder_arch=[],
        net_arch=[16],
        head="quantile",
        head_kwargs=dict(n_values=7),
        dueling=False,
        skip_connection=False,
        optimizer_kwargs=dict(eps=0.01 / 32),  # QR-DQN's
    )
    ours = RecurrentDQN("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, **QRDQN_KWARGS, **switched_off)
    ours.learn(450)
    assert ours._n_updates == theirs._n_updates > 90
    for mine, reference in zip(ours.q_net.parameters(), theirs.policy.quantile_net.parameters(), strict=True):
        th.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


def test_the_number_of_actions_may_be_numpys() -> None:
    assert Head(6, np.int64(9), []).component_sizes == [9]  # type: ignore[arg-type]


class HeadOfOne(Head):
    """Knows of no components."""

    def __init__(self, latent_dim: int, n_actions: int, *args: Any) -> None:
        super().__init__(latent_dim, n_actions + 0, *args)


def test_a_head_that_knows_of_no_components_is_refused_with_their_sizes() -> None:
    with pytest.raises(ValueError, match=r"head_kwargs=None do not fit HeadOfOne with n_actions=\[9, 9\]: "):
        make_head(HeadOfOne, 6, [9, 9], [], th.nn.ReLU, True)


@pytest.mark.parametrize(
    ("policy_kwargs", "sentence"),
    [
        (dict(head="gaussian"), "head='gaussian' is unknown; choose one of"),
        (dict(head=th.nn.Linear), "is unknown; choose one of"),
        (dict(head="quantile", head_kwargs=dict(atoms=3)), r"head_kwargs=\{'atoms': 3\} do not fit QuantileHead"),
    ],
)
def test_a_wrong_head_is_refused_with_a_sentence(policy_kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_rdqn(policy_kwargs=policy_kwargs)
