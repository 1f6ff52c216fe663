"""
Addressing of external memories as pure functions.

Shapes: B rows, H heads (R read heads), N slots of word size W; a shape without heads belongs to a single write head. Weights
lie in ``[0, 1]`` and sum to at most 1 over the slots. All functions are differentiable, with finite values and gradients
also at an empty memory.
"""

from functools import reduce

import torch as th

#: Added to weights before a logarithm: too small to change a weight that matters, but not 0 in float32
LOG_EPS = 1e-16
#: The product of two squared norms, and the usage of a slot, below which they count as 0
EPS = 1e-6


def cosine_similarity(keys: th.Tensor, memory: th.Tensor, eps: float = EPS) -> th.Tensor:
    """
    K(k, m) = k m / sqrt(|k|^2 |m|^2 + eps).

    Graves et al. (2014), eq. (6). The paper does not say what happens at an empty memory. With eps inside the root, value and
    gradient are both small there; the gradient of ``F.cosine_similarity`` is 1e8, that of the plain form NaN.

    :param keys: ``[B, H, W]``
    :param memory: ``[B, N, W]``
    :param eps: product of the squared norms below which the vectors count as 0
    :return: between -1 and 1, ``[B, H, N]``
    """
    # x * x instead of x.square(), whose gradient takes three more operations
    squares = (keys * keys).sum(dim=-1, keepdim=True) * (memory * memory).sum(dim=-1).unsqueeze(-2)
    return keys @ memory.transpose(-1, -2) * (squares + eps).rsqrt()


def masked_cosine_similarity(keys: th.Tensor, memory: th.Tensor, masks: th.Tensor, eps: float = EPS) -> th.Tensor:
    """
    K(k ∘ s, m ∘ s): similarity of those parts of the words that a mask s selects.

    Csordás & Schmidhuber (2019), section 3.1.

    :param keys: ``[B, H, W]``
    :param memory: ``[B, N, W]``
    :param masks: between 0 and 1, ``[B, H, W]``
    :param eps: as for ``cosine_similarity``
    :return: ``[B, H, N]``
    """
    # sum_j k_j^2 s_j^2 and sum_j m_j^2 s_j^2: the mask is different for each head, the memory is not, so the latter is a
    # product
    squared_masks = masks * masks
    squares = (keys * keys * squared_masks).sum(dim=-1, keepdim=True) * (squared_masks @ (memory * memory).transpose(-1, -2))
    return (keys * squared_masks) @ memory.transpose(-1, -2) * (squares + eps).rsqrt()


def content_weights(similarity: th.Tensor, strengths: th.Tensor) -> th.Tensor:
    """
    w = softmax(beta K).

    Graves et al. (2014), eq. (5).

    :param similarity: K, ``[B, H, N]``
    :param strengths: beta, at least 0, ``[B, H, 1]``
    :return: sum to 1, ``[B, H, N]``
    """
    return (strengths * similarity).softmax(dim=-1)


def interpolate(content: th.Tensor, previous: th.Tensor, gates: th.Tensor) -> th.Tensor:
    """
    w = g w_content + (1 - g) w_{t-1}.

    Graves et al. (2014), eq. (7).

    :param content: ``[B, H, N]``
    :param previous: weights of the step before, ``[B, H, N]``
    :param gates: g, between 0 and 1, ``[B, H, 1]``
    :return: ``[B, H, N]``
    """
    return th.lerp(previous, content, gates)


def circular_shift(weights: th.Tensor, shifts: th.Tensor) -> th.Tensor:
    """
    w~(i) = sum_j s(j) w(i - j), where indices wrap around.

    Graves et al. (2014), eq. (8).

    :param weights: ``[B, H, N]``
    :param shifts: s, the share of the weights that moves by each of -k, ..., k slots; sum to 1, ``[B, H, 2 k + 1]``
    :return: ``[B, H, N]``
    """
    max_shift = shifts.shape[-1] // 2
    shares = shifts.split(1, dim=-1)  # shares[k + j] is s(j)
    shifted = shares[max_shift] * weights
    for offset in range(1, max_shift + 1):
        shifted = th.addcmul(shifted, shares[max_shift - offset], weights.roll(-offset, dims=-1))
        shifted = th.addcmul(shifted, shares[max_shift + offset], weights.roll(offset, dims=-1))
    return shifted


def shifted_copies(weights: th.Tensor, max_shift: int) -> th.Tensor:
    """
    Shift the weights by each of -k, ..., k slots; ``circular_shift`` is their sum, weighted by s.

    :param weights: ``[..., N]``
    :param max_shift: k
    :return: ``[..., 2 k + 1, N]``
    """
    return th.stack([weights.roll(offset, dims=-1) for offset in range(-max_shift, max_shift + 1)], dim=-2)


def sharpen(weights: th.Tensor, exponents: th.Tensor) -> th.Tensor:
    """
    w(i)^gamma / sum_j w(j)^gamma.

    Graves et al. (2014), eq. (9), computed from logarithms: uniform weights over 128 slots to the power of 25 are below the
    smallest float32 and would become 0.

    :param weights: ``[B, H, N]``
    :param exponents: gamma, at least 1, ``[B, H, 1]``
    :return: sum to 1, ``[B, H, N]``
    """
    return ((weights + LOG_EPS).log() * exponents).softmax(dim=-1)


def read(memory: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    r = sum_i w(i) M(i).

    Graves et al. (2014), eq. (2).

    :param memory: ``[B, N, W]``
    :param weights: ``[B, R, N]``
    :return: ``[B, R, W]``
    """
    return weights @ memory


def erase_and_add(memory: th.Tensor, weights: th.Tensor, erase: th.Tensor, add: th.Tensor) -> th.Tensor:
    """
    M'(i) = M(i) prod_h (1 - w_h(i) e_h) + sum_h w_h(i) a_h.

    Graves et al. (2014), eqs. (3) and (4). All heads erase before any head adds.

    :param memory: ``[B, N, W]``
    :param weights: ``[B, H, N]``
    :param erase: e, between 0 and 1, ``[B, H, W]``
    :param add: a, ``[B, H, W]``
    :return: ``[B, N, W]``
    """
    heads = weights.unbind(dim=1)
    for head_weights, head_erase in zip(heads, erase.unbind(dim=1), strict=True):
        memory = erase_with_head(memory, head_weights, head_erase)
    for head_weights, head_add in zip(heads, add.unbind(dim=1), strict=True):
        memory = th.addcmul(memory, head_weights.unsqueeze(-1), head_add.unsqueeze(-2))
    return memory


def erase_with_head(memory: th.Tensor, weights: th.Tensor, erase: th.Tensor) -> th.Tensor:
    """
    M'(i) = M(i) (1 - w(i) e), for a single head.

    Graves et al. (2014), eq. (3).

    :param memory: ``[B, N, W]``
    :param weights: ``[B, N]``
    :param erase: e, between 0 and 1, ``[B, W]``
    :return: ``[B, N, W]``
    """
    return th.addcmul(memory, weights.unsqueeze(-1), memory * erase.unsqueeze(-2), value=-1)


def retention(read_weights: th.Tensor, free_gates: th.Tensor) -> th.Tensor:
    """
    psi = prod_r (1 - f_r w_r): the share of each slot that the read heads do not free after reading it.

    Graves et al. (2016), Methods, "Dynamic memory allocation".

    :param read_weights: w, of the step before, ``[B, R, N]``
    :param free_gates: f, between 0 and 1, ``[B, R, 1]``
    :return: between 0 and 1, ``[B, N]``
    """
    return reduce(th.mul, (1 - free_gates * read_weights).unbind(dim=1))  # the gradient of prod() searches for zeros


def usage(previous: th.Tensor, write_weights: th.Tensor, retained: th.Tensor) -> th.Tensor:
    """
    u = (u_{t-1} + w_{t-1} - u_{t-1} w_{t-1}) psi.

    Graves et al. (2016), Methods, "Dynamic memory allocation". No gradient flows through the write weights, as in DeepMind's
    code; the paper does not mention it.

    :param previous: u_{t-1}, between 0 and 1, ``[B, N]``
    :param write_weights: w_{t-1}, ``[B, N]``
    :param retained: psi, ``[B, N]``
    :return: between 0 and 1, ``[B, N]``
    """
    # u + w - u w = u + w (1 - u)
    return th.lerp(previous, th.ones_like(previous), write_weights.detach()) * retained


def allocation_weights(usage: th.Tensor, eps: float = EPS) -> th.Tensor:
    """
    a(phi_j) = (1 - u(phi_j)) prod_{i<j} u(phi_i), where phi lists the slots from least to most used.

    Graves et al. (2016), eq. (1). Slots of equal usage keep their order. At an episode's start all are equal, and where the
    memory writes must not depend on the sorting algorithm. No gradient flows through the order.

    :param usage: u, ``[B, N]``
    :param eps: smallest usage, which keeps the gradient of the product alive
    :return: sum to at most 1, ``[B, N]``
    """
    usage = eps + (1 - eps) * usage
    ascending, order = usage.sort(dim=-1, stable=True)
    # Exclusive product: 1 for the least used slot, then u(phi_1), u(phi_1) u(phi_2), ...
    products = th.cat((th.ones_like(ascending[:, :1]), ascending[:, :-1].cumprod(dim=-1)), dim=-1)
    return th.zeros_like(usage).scatter(-1, order, (1 - ascending) * products)


def temporal_link(link: th.Tensor, precedence: th.Tensor, write_weights: th.Tensor) -> th.Tensor:
    """
    L(i, j) = (1 - w(i) - w(j)) L_{t-1}(i, j) + w(i) p_{t-1}(j), and L(i, i) = 0: degree to which i was written right after j.

    Graves et al. (2016), Methods, "Temporal memory linkage".

    :param link: L_{t-1}, ``[B, N, N]``
    :param precedence: p_{t-1}, ``[B, N]``
    :param write_weights: w, ``[B, N]``
    :return: rows and columns sum to at most 1, ``[B, N, N]``
    """
    rows, columns = write_weights.unsqueeze(-1), write_weights.unsqueeze(-2)
    link = th.addcmul((1 - rows - columns) * link, rows, precedence.unsqueeze(-2))
    return zero_diagonal(link)


def zero_diagonal(matrices: th.Tensor) -> th.Tensor:
    """
    Set the diagonals to zero.

    :param matrices: ``[B, N, N]``
    :return: ``[B, N, N]``
    """
    return matrices * (1 - th.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device))


def precedence(previous: th.Tensor, write_weights: th.Tensor) -> th.Tensor:
    """
    p = (1 - sum_i w(i)) p_{t-1} + w: degree to which each slot was the last one written to.

    Graves et al. (2016), Methods, "Temporal memory linkage".

    :param previous: p_{t-1}, ``[B, N]``
    :param write_weights: w, ``[B, N]``
    :return: sum to at most 1, ``[B, N]``
    """
    return th.addcmul(write_weights, 1 - write_weights.sum(dim=-1, keepdim=True), previous)


def directional_weights(link: th.Tensor, read_weights: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    f = L w_{t-1} and b = L^T w_{t-1}: the slots written right after, and right before, those read last.

    Graves et al. (2016), Methods, "Temporal memory linkage".

    :param link: ``[B, N, N]``
    :param read_weights: w_{t-1}, ``[B, R, N]``
    :return: forward and backward weights, each ``[B, R, N]``
    """
    # Weights are rows here, so L w is w L^T
    return read_weights @ link.transpose(-1, -2), read_weights @ link


def sharpen_links(weights: th.Tensor, exponents: th.Tensor) -> th.Tensor:
    """
    Sharpen directional weights without changing their sum.

    Csordás & Schmidhuber (2019), section 3.3. The paper normalises the sum to 1. Here slots without links still read nothing.

    :param weights: ``[B, R, N]``
    :param exponents: at least 1, ``[B, R, 1]``
    :return: ``[B, R, N]``
    """
    return sharpen(weights, exponents) * weights.sum(dim=-1, keepdim=True)
