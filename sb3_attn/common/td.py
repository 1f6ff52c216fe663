"""
The temporal-difference mathematics of recurrent Q-learning.

All sequences are time-major, ``[T, B]``. Row b holds ``mask[:, b].sum()`` consecutive steps of one episode, then padding.
A step t has the reward r_{t+1}, the discount gamma (0 if the episode terminated there) and the value of the observation
that followed it, v_{t+1}. A sequence that stops before its episode does (at the window's end, or by truncation) is
bootstrapped from the value after its last step.
"""

import torch as th

VALUE_RESCALING_EPS = 1e-3


def signed_hyperbolic(x: th.Tensor, eps: float = VALUE_RESCALING_EPS) -> th.Tensor:
    """
    The value rescaling h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x.

    Pohlen et al. (2018), Proposition A.2; Kapturowski et al. (2019), section 2.3.

    :param x: any shape
    :param eps: keeps the inverse Lipschitz
    :return: h(x), of the same shape
    """
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + eps * x


def signed_parabolic(x: th.Tensor, eps: float = VALUE_RESCALING_EPS) -> th.Tensor:
    """
    The inverse of ``signed_hyperbolic``, sign(x) (((sqrt(1 + 4 eps (|x| + 1 + eps)) - 1) / (2 eps))^2 - 1).

    Pohlen et al. (2018), Proposition A.2. In float32 the round trip is good to 1e-4 (1 + |x|) for |x| <= 100.

    :param x: any shape
    :param eps: the same as in ``signed_hyperbolic``
    :return: the x that was rescaled, of the same shape
    """
    root = ((1 + 4 * eps * (x.abs() + 1 + eps)).sqrt() - 1) / (2 * eps)
    return x.sign() * (root.square() - 1)


def n_step_returns(rewards: th.Tensor, discounts: th.Tensor, next_values: th.Tensor, mask: th.Tensor, n: int = 1) -> th.Tensor:
    """
    G_t = sum_{k<m} gamma^k r_{t+k+1} + gamma^m v_{t+m}, with m = min(n, steps left in the sequence).

    Sutton & Barto (2018), eq. 7.1. The paper of R2D2 does not say what happens at a sequence's end; here n shrinks, so
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
    for _ in range(n - 1):
        # The step after t adds one reward to its own return, unless t is the sequence's last
        following = th.where(mask[1:], returns[1:], next_values[:-1])
        returns = rewards + discounts * th.cat((following, next_values[-1:]))
    return returns


def lambda_returns(
    rewards: th.Tensor, discounts: th.Tensor, next_values: th.Tensor, mask: th.Tensor, td_lambda: float
) -> th.Tensor:
    """
    G_t = r_{t+1} + gamma ((1 - lambda) v_{t+1} + lambda G_{t+1}), and G_t = r_{t+1} + gamma v_{t+1} at the last step.

    With v = max_a Q this is Peng's Q(lambda) (Peng & Williams 1996), which does not cut the trace at exploratory actions;
    Kozuno et al. (2021) show that it converges nonetheless while the behaviour stays close to greedy.

    :param rewards: r_{t+1}, ``[T, B]``
    :param discounts: gamma, or 0 where the episode terminated, ``[T, B]``
    :param next_values: v_{t+1}, ``[T, B]``
    :param mask: True on real steps, False on padding, bool ``[T, B]``
    :param td_lambda: 0 gives one-step returns, 1 Monte-Carlo returns up to the sequence's end
    :return: G_t, ``[T, B]``; meaningless on padding
    """
    _check_shapes(rewards, discounts, next_values, mask)
    continues = th.cat((mask[1:], th.zeros_like(mask[:1])))
    # G_t = offset_t + slope_t G_{t+1}, in which only the last product needs a loop over time
    slopes = th.where(continues, td_lambda * discounts, 0.0)
    offsets = th.where(mask, rewards + (discounts - slopes) * next_values, 0.0)
    returns = [offsets[-1]]
    for offset, slope in zip(reversed(offsets[:-1].unbind()), reversed(slopes[:-1].unbind()), strict=True):
        returns.append(th.addcmul(offset, slope, returns[-1]))
    return th.stack(returns[::-1])


def value_targets(
    rewards: th.Tensor,
    discounts: th.Tensor,
    next_values: th.Tensor,
    mask: th.Tensor,
    n_steps: int = 1,
    td_lambda: float | None = None,
    value_rescaling: bool = False,
) -> th.Tensor:
    """
    What Q of the steps taken should be: h(G_t), the return G_t being bootstrapped from h^-1 of the next values.

    Kapturowski et al. (2019), section 2.3, with either kind of return; without the rescaling h is the identity.

    :param rewards: r_{t+1}, ``[T, B]``
    :param discounts: gamma, or 0 where the episode terminated, ``[T, B]``
    :param next_values: v_{t+1}, as the network gives them, ``[T, B]``
    :param mask: True on real steps, False on padding, bool ``[T, B]``
    :param n_steps: number of rewards before the bootstrap, if ``td_lambda`` is ``None``
    :param td_lambda: take lambda returns; ``None`` means n-step returns
    :param value_rescaling: the network learns h(Q)
    :return: ``[T, B]``; meaningless on padding
    """
    if value_rescaling:
        next_values = signed_parabolic(next_values)
    if td_lambda is None:
        returns = n_step_returns(rewards, discounts, next_values, mask, n_steps)
    else:
        returns = lambda_returns(rewards, discounts, next_values, mask, td_lambda)
    return signed_hyperbolic(returns) if value_rescaling else returns


def sequence_priority(td_error: th.Tensor, mask: th.Tensor, eta: float = 0.9) -> th.Tensor:
    """
    p = eta max_t |delta_t| + (1 - eta) mean_t |delta_t| over the real steps of each sequence.

    Kapturowski et al. (2019), section 2.3.

    :param td_error: delta_t, ``[T, B]``
    :param mask: True on real steps, bool ``[T, B]``
    :param eta: weight of the largest error
    :return: one priority per sequence, ``[B]``
    """
    errors = th.where(mask, td_error.abs(), 0.0)
    return eta * errors.amax(dim=0) + (1 - eta) * errors.sum(dim=0) / mask.sum(dim=0)


def importance_weights(probabilities: th.Tensor, size: int, exponent: float) -> th.Tensor:
    """
    w_i = (N P(i))^-beta / max_j w_j, which undo the bias of prioritized sampling.

    Schaul et al. (2016), section 3.4; the largest weight of the batch is 1.

    :param probabilities: P(i), with which each sample was drawn, ``[B]``
    :param size: N, the number of samples to draw from
    :param exponent: beta, between 0 (no correction) and 1 (full)
    :return: ``[B]``
    """
    weights = (size * probabilities) ** -exponent
    return weights / weights.max()


def _check_shapes(*sequences: th.Tensor) -> None:
    shapes = [tuple(sequence.shape) for sequence in sequences]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2:
        raise ValueError(f"rewards, discounts, next_values and mask have shapes {shapes}; all must be the same [T, B].")
