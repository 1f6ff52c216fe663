"""TD mathematics against slow loops in numpy, written from the definitions (forward view, one sequence at a time)."""

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch as th

from sb3_attn.common import td

GAMMA = 0.9
ENDS = ("terminated", "truncated")


def n_step_return(rewards: list, next_values: list, terminated: bool, t: int, n: int) -> float:
    m = min(n, len(rewards) - t)
    total = sum(GAMMA**k * rewards[t + k] for k in range(m))
    if terminated and t + m == len(rewards):
        return total
    return total + GAMMA**m * next_values[t + m - 1]


def lambda_return(rewards: list, next_values: list, terminated: bool, t: int, td_lambda: float) -> float:
    left = len(rewards) - t
    n_steps = [n_step_return(rewards, next_values, terminated, t, n) for n in range(1, left + 1)]
    blend = sum((1 - td_lambda) * td_lambda ** (n - 1) * n_steps[n - 1] for n in range(1, left))
    return blend + td_lambda ** (left - 1) * n_steps[-1]


def make_batch(pad: float = 0.0):
    """One row for each length and each kind of end, the padding filled with ``pad``."""
    time, cases = 7, [(length, end) for length in range(1, 8) for end in ENDS]
    rng = np.random.default_rng(0)
    rewards, next_values = rng.normal(size=(2, time, len(cases)))
    discounts = np.full((time, len(cases)), GAMMA)
    mask = np.zeros((time, len(cases)), dtype=bool)
    for b, (length, end) in enumerate(cases):
        mask[:length, b] = True
        discounts[length - 1, b] *= end == "truncated"
    for array in (rewards, next_values, discounts):
        array[~mask] = pad
    return cases, [th.from_numpy(array) for array in (rewards, discounts, next_values, mask)]


def assert_matches(returns: th.Tensor, oracle) -> None:
    cases, (rewards, _, next_values, _) = make_batch()
    for b, (length, end) in enumerate(cases):
        row = rewards[:length, b].tolist(), next_values[:length, b].tolist(), end == "terminated"
        expected = [oracle(*row, t) for t in range(length)]
        np.testing.assert_allclose(returns[:length, b], expected, rtol=1e-12, err_msg=f"length {length}, {end}")


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 20])
def test_n_step_returns_equal_the_sum_over_their_rewards(n):
    _, batch = make_batch()
    assert_matches(td.n_step_returns(*batch, n=n), lambda *row: n_step_return(*row, n=n))


@pytest.mark.parametrize("td_lambda", [0.0, 0.3, 0.8, 1.0])
def test_lambda_returns_equal_the_blend_of_n_step_returns(td_lambda):
    _, batch = make_batch()
    assert_matches(td.lambda_returns(*batch, td_lambda=td_lambda), lambda *row: lambda_return(*row, td_lambda=td_lambda))


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("td_lambda", [0.7, 1.0])
def test_a_return_ends_before_an_action_that_is_worth_too_little(td_lambda, tolerance):
    """Oracle: the sequence is cut off there, like at a time limit."""
    cases, (rewards, discounts, next_values, mask) = make_batch()
    q_values = th.from_numpy(np.random.default_rng(1).normal(size=rewards.shape))
    q_values[1:][th.arange(6) % 3 == 0] = next_values[:-1][th.arange(6) % 3 == 0]  # some actions are greedy
    lambdas = td.cut_traces(td_lambda, tolerance, q_values, next_values)
    returns = td.lambda_returns(rewards, discounts, next_values, mask, lambdas)
    n_cut = 0
    for b, (length, end) in enumerate(cases):
        for t in range(length):
            smallest = [v - tolerance * abs(v) for v in next_values[:, b].tolist()]
            stop = next((i for i in range(t + 1, length) if q_values[i, b] < smallest[i - 1]), length)
            row = rewards[:stop, b].tolist(), next_values[:stop, b].tolist(), end == "terminated" and stop == length
            assert returns[t, b] == pytest.approx(lambda_return(*row, t, td_lambda), rel=1e-12)
            n_cut += stop < length
    assert 10 < n_cut < mask.sum() - len(cases) - 10


def test_traces_without_lambda_or_tolerance_are_left_alone():
    values = th.zeros(2, 2)
    assert td.cut_traces(None, 0.1, values, values) is None and td.cut_traces(0.8, None, values, values) == 0.8


def returns_of_both_kinds(batch) -> list[th.Tensor]:
    n_step = [td.n_step_returns(*batch, n=n) for n in (1, 3, 9)]
    return n_step + [td.lambda_returns(*batch, td_lambda=td_lambda) for td_lambda in (0.0, 0.8, 1.0)]


@pytest.mark.parametrize("pad", [1e9, math.inf, math.nan])
def test_padding_changes_no_return(pad):
    _, clean = make_batch()
    _, dirty = make_batch(pad)
    mask = clean[-1]
    for expected, returns in zip(returns_of_both_kinds(clean), returns_of_both_kinds(dirty), strict=True):
        th.testing.assert_close(returns[mask], expected[mask], rtol=0, atol=0)


def test_a_time_limit_does_not_lower_a_constant_value():
    """Reward 1 forever is worth 1 / (1 - gamma) at each step, wherever a sequence is cut off."""
    cases, (rewards, discounts, next_values, mask) = make_batch()
    constant = th.ones_like(rewards), discounts, th.full_like(next_values, 1 / (1 - GAMMA)), mask
    truncated = th.tensor([end == "truncated" for _, end in cases])
    for returns in returns_of_both_kinds(constant):
        values = returns[:, truncated][mask[:, truncated]]
        th.testing.assert_close(values, th.full_like(values, 10.0))


def test_a_terminal_value_is_never_used():
    cases, (rewards, discounts, next_values, mask) = make_batch()
    other = next_values.clone()
    for b, (length, end) in enumerate(cases):
        if end == "terminated":
            other[length - 1, b] += 100
    before, after = ((rewards, discounts, values, mask) for values in (next_values, other))
    for expected, returns in zip(returns_of_both_kinds(before), returns_of_both_kinds(after), strict=True):
        th.testing.assert_close(returns[mask], expected[mask], rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [(3, 1), (6,), (7,)])
def test_shapes_that_differ_are_refused(wrong):
    good, bad = th.zeros(3, 2), th.zeros(wrong)
    with pytest.raises(ValueError, match=r"must be the same \[T, B\]"):
        td.n_step_returns(good, good, bad, good.bool())
    with pytest.raises(ValueError, match=r"must be the same \[T, B\]"):
        td.lambda_returns(bad, good, good, good.bool(), 0.5)


@pytest.mark.parametrize("eps", [1e-3, 1e-2])
def test_value_rescaling_equals_its_formula(eps):
    x = [-1e4, -7.5, -1.0, -1e-3, 0.0, 1e-3, 1.0, 7.5, 1e4]
    expected = [math.copysign(math.sqrt(abs(v) + 1) - 1, v) + eps * v for v in x]
    np.testing.assert_allclose(td.signed_hyperbolic(th.tensor(x, dtype=th.float64), eps), expected, rtol=1e-12)


def test_value_rescaling_and_its_inverse_cancel():
    x = th.linspace(-1e4, 1e4, 2001, dtype=th.float64)
    th.testing.assert_close(td.signed_parabolic(td.signed_hyperbolic(x)), x, rtol=1e-8, atol=1e-8)
    th.testing.assert_close(td.signed_hyperbolic(td.signed_parabolic(x[900:1101])), x[900:1101], rtol=1e-8, atol=1e-8)


def inverse_from_the_paper(x: float, eps: float) -> Decimal:
    """Pohlen et al. (2018), Proposition A.2, with so many digits that nothing cancels."""
    getcontext().prec = 60
    x, eps = Decimal(x), Decimal(eps)
    root = ((1 + 4 * eps * (abs(x) + 1 + eps)).sqrt() - 1) / (2 * eps)
    return (root**2 - 1).copy_sign(x)


@pytest.mark.parametrize("eps", [1e-3, 1e-2])
def test_the_inverse_equals_its_formula(eps):
    x = [-1e4, -7.5, -1.0, -1e-3, 1e-9, 1e-3, 1.0, 7.5, 1e4]
    expected = [float(inverse_from_the_paper(v, eps)) for v in x]
    np.testing.assert_allclose(td.signed_parabolic(th.tensor(x, dtype=th.float64), eps), expected, rtol=1e-14)


@pytest.mark.parametrize("function", [td.signed_hyperbolic, td.signed_parabolic, "round trip"])
def test_the_relative_error_in_float32_is_below_1e_6_at_all_sizes(function):
    """As they stand the formulas cancel: 1e-3 of a value of 1e-4 is lost by the rescaling, a quarter by its inverse."""
    x = th.logspace(-8, 6, 14_001)
    x = th.cat((-x, x))
    if function == "round trip":
        actual, expected = td.signed_parabolic(td.signed_hyperbolic(x)), x.double()
    else:
        actual, expected = function(x), function(x.double())
    assert actual.dtype == th.float32
    assert ((actual.double() - expected).abs() / expected.abs()).max() < 1e-6
    assert td.signed_hyperbolic(th.zeros(1)).item() == td.signed_parabolic(th.zeros(1)).item() == 0.0


def test_errors_of_both_signs_count_alike():
    """The mean of +1 and -1 is 0, but there is much to learn from that sequence."""
    mask = th.ones(2, 1, dtype=th.bool)
    for eta in (0.0, 0.5, 0.9, 1.0):
        assert td.sequence_priority(th.tensor([[1.0], [-1.0]]), mask, eta).item() == pytest.approx(1.0)


@pytest.mark.parametrize("pad", [0.0, 1e9, -math.inf, math.nan])
@pytest.mark.parametrize("eta", [0.0, 0.9, 1.0])
def test_priority_blends_largest_and_mean_error_of_real_steps(eta, pad):
    cases, (td_error, _, _, mask) = make_batch()
    td_error[~mask] = pad
    expected = []
    for b, (length, _) in enumerate(cases):
        errors = [abs(error) for error in td_error[:length, b].tolist()]
        expected.append(eta * max(errors) + (1 - eta) * sum(errors) / length)
    np.testing.assert_allclose(td.sequence_priority(td_error, mask, eta), expected, rtol=1e-12)


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0])
def test_importance_weights_equal_their_formula(exponent):
    probabilities = [0.5, 0.1, 0.01, 0.1]
    raw = [(40 * p) ** -exponent for p in probabilities]
    weights = td.importance_weights(th.tensor(probabilities, dtype=th.float64), 40, exponent)
    np.testing.assert_allclose(weights, [w / max(raw) for w in raw], rtol=1e-12)


def test_full_importance_weights_undo_the_bias_of_the_sampling():
    probabilities = th.tensor([0.5, 0.3, 0.2], dtype=th.float64)
    weights = td.importance_weights(probabilities, 3, exponent=1.0)
    th.testing.assert_close(weights * probabilities, (weights * probabilities)[0].expand(3))
    assert weights.max() == 1


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("temperature", [0.03, 1.0])
def test_munchausen_bonuses_and_soft_values_are_those_of_the_paper(temperature):
    """Vieillard et al. (2020), eq. 1 and 2, one state at a time; values near enough that no probability underflows."""
    values = 0.1 * th.randn(3, 2, 4, 5, dtype=th.float64, generator=th.Generator().manual_seed(0))
    actions = th.randint(5, (3, 2), generator=th.Generator().manual_seed(0))
    smallest = -1.6 * temperature  # log 5 = 1.6: clips some of five actions that are about equally likely
    bonuses = td.munchausen_bonuses(values.mean(dim=-2), actions, temperature, min_bonus=smallest)
    soft = td.soft_values(values, temperature)
    assert smallest < float(bonuses.max()) <= 0 and bool((bonuses == smallest).any())
    for t in range(3):
        for b in range(2):
            policy = softmax([q / temperature for q in values[t, b].mean(dim=0).tolist()])
            bonus = max(temperature * math.log(policy[int(actions[t, b])]), smallest)
            assert float(bonuses[t, b]) == pytest.approx(bonus)
            for n in range(4):
                terms = zip(policy, values[t, b, n].tolist(), strict=True)
                expected = sum(p * (z - temperature * math.log(p)) for p, z in terms)
                assert float(soft[t, b, n]) == pytest.approx(expected)


def test_several_values_of_a_step_have_returns_of_their_own():
    _, (rewards, discounts, next_values, mask) = make_batch()
    several = th.stack((next_values, next_values + 1, -2 * next_values), dim=-1)
    for switches in (dict(td_lambda=0.8), dict(n_steps=3), dict(td_lambda=0.8, value_rescaling=True)):
        together = td.value_targets(rewards, discounts, several, mask, **switches)
        for n in range(3):
            alone = td.value_targets(rewards, discounts, several[..., n], mask, **switches)
            th.testing.assert_close(together[..., n][mask], alone[mask])
