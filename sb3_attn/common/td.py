"""
The temporal-difference mathematics of recurrent Q-learning.

All sequences are time-major, ``[T, B]``. Column b holds ``mask[:, b].sum()`` consecutive steps of one episode, then padding.
Step t has the reward r_{t+1}, the discount gamma (0 if the episode terminated there) and the value v_{t+1} of the
observation that followed it. A sequence that stops before its episode terminates (at the end of the window, or by
truncation) is bootstrapped from the value after its last step.
"""

import torch as th

VALUE_RESCALING_EPS = 1e-3

#: The smallest bonus of Munchausen DQN, l_0 of Vieillard et al. (2020)
MIN_BONUS = -1.0


def signed_hyperbolic(x: th.Tensor, eps: float = VALUE_RESCALING_EPS) -> th.Tensor:
    """
    The value rescaling h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x.

    Pohlen et al. (2018), Proposition A.2; Kapturowski et al. (2019), section 2.3. In float32 the relative error is below
    1e-6 for values of all sizes.

    :param x: any shape
    :param eps: keeps the inverse Lipschitz
    :return: h(x), of the same shape
    """
    # sqrt(|x| + 1) - 1 = |x| / (sqrt(|x| + 1) + 1): near 0 the difference would cancel, and in float32 it is 0 below 6e-8
    return x * (1 / ((x.abs() + 1).sqrt() + 1) + eps)


def signed_parabolic(x: th.Tensor, eps: float = VALUE_RESCALING_EPS) -> th.Tensor:
    """
    The inverse of ``signed_hyperbolic``, sign(x) (((sqrt(1 + 4 eps (|x| + 1 + eps)) - 1) / (2 eps))^2 - 1).

    Pohlen et al. (2018), Proposition A.2. In float32 the relative error is below 1e-6 for values of all sizes.

    :param x: any shape
    :param eps: the same as in ``signed_hyperbolic``
    :return: h^-1(x), of the same shape
    """
    # As it stands the formula cancels twice: in float32 a quarter of a value of 1e-4 can be rounding error. With
    # s = sqrt(1 + 4 eps (|x| + 1 + eps)) and u = (s - 1) / (2 eps) - 1 it is sign(x) u (u + 2), and multiplying numerator
    # and denominator of u by s + 1 + 2 eps leaves u = 2 |x| / (s + 1 + 2 eps), a quotient of positive numbers.
    signed_u = 2 * x / ((1 + 4 * eps * (x.abs() + 1 + eps)).sqrt() + 1 + 2 * eps)
    return signed_u * (signed_u.abs() + 2)


def n_step_returns(rewards: th.Tensor, discounts: th.Tensor, next_values: th.Tensor, mask: th.Tensor, n: int = 1) -> th.Tensor:
    """
    G_t = sum_{k<m} gamma^k r_{t+k+1} + gamma^m v_{t+m}, with m = min(n, steps left in the sequence).

    Sutton & Barto (2018), eq. 7.1. The R2D2 paper does not say what happens at the end of a sequence; here n shrinks, so
    that every step is trained.

    :param rewards: r_{t+1}, ``[T, B]``
    :param discounts: gamma, or 0 where the episode terminated, ``[T, B]``
    :param next_values: v_{t+1}, ``[T, B]``
    :param mask: True on real steps, False on padding, bool ``[T, B]``
    :param n: number of rewards before the bootstrap, at least 1
    :return: G_t, ``[T, B]``; meaningless on padding
    """
    _check_shapes(rewards, discounts, next_values, mask)
    returns = rewards + discounts * next_values
    # G_t over n rewards is r_{t+1} + gamma G_{t+1} over n - 1 rewards, so each pass adds one reward to all returns at once.
    # The last step of a sequence has no next return and keeps its bootstrap, which is how n shrinks there.
    for _ in range(n - 1):
        following = th.where(mask[1:], returns[1:], next_values[:-1])
        returns = rewards + discounts * th.cat((following, next_values[-1:]))
    return returns


def lambda_returns(
    rewards: th.Tensor, discounts: th.Tensor, next_values: th.Tensor, mask: th.Tensor, td_lambda: float | th.Tensor
) -> th.Tensor:
    """
    G_t = r_{t+1} + gamma ((1 - lambda) v_{t+1} + lambda G_{t+1}), and G_t = r_{t+1} + gamma v_{t+1} at the last step.

    With v = max_a Q and one lambda for all steps this is Peng's Q(lambda) (Peng & Williams 1996), which does not cut the trace
    at exploratory actions. Kozuno et al. (2021) show that it still converges as long as the behaviour policy stays close to
    the greedy one. ``cut_traces`` gives lambdas that cut it.

    :param rewards: r_{t+1}, ``[T, B]``
    :param discounts: gamma, or 0 where the episode terminated, ``[T, B]``
    :param next_values: v_{t+1}, ``[T, B]``
    :param mask: True on real steps, False on padding, bool ``[T, B]``
    :param td_lambda: 0 gives one-step returns, 1 Monte-Carlo returns up to the sequence's end; a number, or one of each step
        t for G_{t+1}, ``[T, B]``
    :return: G_t, ``[T, B]``; meaningless on padding
    """
    _check_shapes(rewards, discounts, next_values, mask)
    has_next = th.cat((mask[1:], th.zeros_like(mask[:1])))
    # G_t = (r_{t+1} + (gamma - gamma lambda) v_{t+1}) + gamma lambda G_{t+1}. The bracket is computed for all steps at once,
    # so only one product and one sum are left for the loop over time. Where a sequence ends, lambda counts as 0.
    decays = th.where(has_next, td_lambda * discounts, 0.0)
    offsets = th.where(mask, rewards + (discounts - decays) * next_values, 0.0)
    returns = [offsets[-1]]
    for offset, decay in zip(reversed(offsets[:-1].unbind()), reversed(decays[:-1].unbind()), strict=True):
        returns.append(th.addcmul(offset, decay, returns[-1]))
    return th.stack(returns[::-1])


def cut_traces(
    td_lambda: float | None, tolerance: float | None, q_values: th.Tensor, greedy_values: th.Tensor
) -> float | th.Tensor | None:
    """
    lambda where Q(s_{t+1}, a_{t+1}) >= v_{t+1} - kappa |v_{t+1}|, else 0: soft Watkins Q(lambda).

    Kapturowski et al. (2022), "target computation with tolerance", https://arxiv.org/abs/2209.07550, who have a kappa of 0.01.
    A return does not contain what followed an action that the present policy would not take.

    :param td_lambda: lambda; ``None`` stays ``None``
    :param tolerance: kappa; 0 gives Watkins's Q(lambda), which goes on after greedy actions only, ``None`` Peng's
    :param q_values: Q(s_t, a_t) of the actions taken, ``[T, B]``
    :param greedy_values: v_{t+1} = Q of the greedy action after each step, ``[T, B]``
    :return: lambda of each step for ``lambda_returns``, ``[T, B]``, or ``td_lambda`` itself where nothing is to be cut
    """
    if td_lambda is None or tolerance is None:
        return td_lambda
    # The action after the last step is not in the sequence, where lambda does not matter
    next_q_values = th.cat((q_values[1:], greedy_values[-1:]))
    goes_on = next_q_values >= greedy_values - tolerance * greedy_values.abs()
    return td_lambda * goes_on.to(greedy_values.dtype)


def value_targets(
    rewards: th.Tensor,
    discounts: th.Tensor,
    next_values: th.Tensor,
    mask: th.Tensor,
    n_steps: int = 1,
    td_lambda: float | th.Tensor | None = None,
    value_rescaling: bool = False,
) -> th.Tensor:
    """
    Targets for Q(s_t, a_t): h(G_t), where G_t bootstraps from h^-1 of the next values.

    Kapturowski et al. (2019), section 2.3, with either kind of return; without the rescaling h is the identity.

    :param rewards: r_{t+1}, ``[T, B]``
    :param discounts: gamma, or 0 where the episode terminated, ``[T, B]``
    :param next_values: v_{t+1} as the network outputs them, ``[T, B]``, or N of them at each step, ``[T, B, N]``
    :param mask: True on real steps, False on padding, bool ``[T, B]``
    :param n_steps: number of rewards before the bootstrap, if ``td_lambda`` is ``None``
    :param td_lambda: lambda of the lambda returns, a number or ``[T, B]``; ``None`` means n-step returns
    :param value_rescaling: whether the network learns h(Q) instead of Q
    :return: of the shape of ``next_values``; meaningless on padding
    """
    if next_values.dim() == 3:
        rewards, discounts, mask = rewards.unsqueeze(-1), discounts.unsqueeze(-1), mask.unsqueeze(-1)
        td_lambda = td_lambda.unsqueeze(-1) if isinstance(td_lambda, th.Tensor) else td_lambda
    if value_rescaling:
        next_values = signed_parabolic(next_values)
    if td_lambda is None:
        returns = n_step_returns(rewards, discounts, next_values, mask, n_steps)
    else:
        returns = lambda_returns(rewards, discounts, next_values, mask, td_lambda)
    return signed_hyperbolic(returns) if value_rescaling else returns


def munchausen_bonuses(
    q_values: th.Tensor, actions: th.Tensor, temperature: float = 0.03, min_bonus: float = MIN_BONUS
) -> th.Tensor:
    """
    tau log pi(a_t | s_t), clipped from below, of the policy pi = softmax(Q / tau).

    Vieillard et al. (2020), section 3, https://arxiv.org/abs/2007.14430. It is added to the rewards, and next values are
    ``soft_values``.

    :param q_values: Q(s_t, .), ``[T, B, A]``
    :param actions: a_t, ``[T, B]``
    :param temperature: tau, in the unit of the rewards
    :param min_bonus: l_0, the smallest bonus, in the unit of the rewards
    :return: ``[T, B]``, between ``min_bonus`` and 0
    """
    log_policy = th.log_softmax(q_values / temperature, dim=-1)
    return (temperature * log_policy.gather(-1, actions.unsqueeze(-1)).squeeze(-1)).clamp(min=min_bonus)


def soft_values(values: th.Tensor, temperature: float = 0.03) -> th.Tensor:
    """
    sum_a pi(a | s) (z(s, a) - tau log pi(a | s)) with pi = softmax(Q / tau): the values of an entropy-regularised policy.

    Vieillard et al. (2020), eq. 1 for N = 1, and appendix B.1 for quantiles.

    :param values: N values z of each action, whose mean is Q, ``[T, B, N, A]``
    :param temperature: tau, in the unit of the rewards
    :return: ``[T, B, N]``
    """
    log_policy = th.log_softmax(values.mean(dim=-2, keepdim=True) / temperature, dim=-1)
    policy = log_policy.exp()
    # An action of probability 0 adds nothing, also if its value is minus infinity, as an invalid one's is
    return th.where(policy > 0, policy * (values - temperature * log_policy), 0.0).sum(dim=-1)


def smaller_values(values: th.Tensor, other: th.Tensor) -> th.Tensor:
    """
    The smaller of two estimates of a Q-value: of N values each, those with the smaller mean.

    After Fujimoto et al. (2018), eq. 10, https://arxiv.org/abs/1802.09477.

    :param values: ``[..., N]``
    :param other: ``[..., N]``
    :return: ``[..., N]``
    """
    return th.where(other.mean(dim=-1, keepdim=True) < values.mean(dim=-1, keepdim=True), other, values)


def sequence_priority(td_error: th.Tensor, mask: th.Tensor, eta: float = 0.9) -> th.Tensor:
    """
    p = eta max_t |delta_t| + (1 - eta) mean_t |delta_t| over the real steps of each sequence.

    Kapturowski et al. (2019), section 2.3.

    :param td_error: delta_t, ``[T, B]``
    :param mask: True on real steps, bool ``[T, B]``
    :param eta: weight of the largest error
    :return: one priority per sequence, ``[B]``
    """
    errors = th.where(mask, td_error.abs(), 0.0)  # not a product with the mask: padding may be NaN
    return eta * errors.amax(dim=0) + (1 - eta) * errors.sum(dim=0) / mask.sum(dim=0)


def importance_weights(probabilities: th.Tensor, size: int, exponent: float) -> th.Tensor:
    """
    w_i = (N P(i))^-beta / max_j w_j: weights that correct for the bias of prioritized sampling.

    Schaul et al. (2016), section 3.4; the largest weight of the batch is 1.

    :param probabilities: P(i) with which each sample was drawn, ``[B]``
    :param size: N, the number of items to draw from
    :param exponent: beta, between 0 (no correction) and 1 (full)
    :return: ``[B]``
    """
    weights = (size * probabilities) ** -exponent
    return weights / weights.max()


def _check_shapes(rewards: th.Tensor, discounts: th.Tensor, next_values: th.Tensor, mask: th.Tensor) -> None:
    shapes = [tuple(sequence.shape) for sequence in (rewards, discounts, next_values, mask)]
    if len({shape[:2] for shape in shapes}) != 1 or len({len(shape) for shape in shapes}) != 1 or len(shapes[0]) < 2:
        raise ValueError(f"rewards, discounts, next_values and mask have shapes {shapes}; all must be the same [T, B].")
