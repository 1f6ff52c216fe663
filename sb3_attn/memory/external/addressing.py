"""
The addressing of external memories as pure functions.

Shapes: B rows, H heads, N slots of word size W; read heads R, one write head where no H stands. Weights lie in ``[0, 1]`` and
sum to at most 1 over the slots. Everything is differentiable, and finite (values and gradients) at an empty memory.
"""

from functools import reduce

import torch as th

#: Added before a logarithm: small enough to be lost beside any weight that counts, large enough for float32
TINY = 1e-16
#: What counts as nothing: as the product of two squared lengths, and as the usage of a slot
EPS = 1e-6


def cosine_similarity(keys: th.Tensor, memory: th.Tensor, eps: float = EPS) -> th.Tensor:
    """
    K(k, m) = k m / sqrt(|k|^2 |m|^2 + eps).

    Graves et al. (2014), eq. (6). The papers do not say what happens at an empty memory; with eps inside the root both the
    value and the gradient are small there, while ``F.cosine_similarity`` has a gradient of 1e8 and the plain form NaN.

    :param keys: ``[B, H, W]``
    :param memory: ``[B, N, W]``
    :param eps: the product of the squared lengths below which vectors count as empty
    :return: between -1 and 1, ``[B, H, N]``
    """
    # x * x, since the gradient of a square takes three operations more
    squares = (keys * keys).sum(dim=-1, keepdim=True) * (memory * memory).sum(dim=-1).unsqueeze(-2)
    return keys @ memory.transpose(-1, -2) * (squares + eps).rsqrt()


def masked_cosine_similarity(keys: th.Tensor, memory: th.Tensor, masks: th.Tensor, eps: float = EPS) -> th.Tensor:
    """
    K(k ∘ s, m ∘ s): similarity in those parts of the words that a mask s selects.

    Csordás & Schmidhuber (2019), section 3.1.

    :param keys: ``[B, H, W]``
    :param memory: ``[B, N, W]``
    :param masks: between 0 and 1, ``[B, H, W]``
    :param eps: as for ``cosine_similarity``
    :return: ``[B, H, N]``
    """
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
    :param previous: the weights of the step before, ``[B, H, N]``
    :param gates: g, between 0 and 1, ``[B, H, 1]``
    :return: ``[B, H, N]``
    """
    return th.lerp(previous, content, gates)


def circular_shift(weights: th.Tensor, shifts: th.Tensor) -> th.Tensor:
    """
    w~(i) = sum_j s(j) w(i - j), the slots being a circle.

    Graves et al. (2014), eq. (8).

    :param weights: ``[B, H, N]``
    :param shifts: s, how much is shifted by each of -k, ..., k slots; sum to 1, ``[B, H, 2k + 1]``
    :return: ``[B, H, N]``
    """
    reach = shifts.shape[-1] // 2
    shares = shifts.split(1, dim=-1)
    shifted = shares[reach] * weights
    for offset in range(1, reach + 1):
        shifted = th.addcmul(shifted, shares[reach - offset], weights.roll(-offset, dims=-1))
        shifted = th.addcmul(shifted, shares[reach + offset], weights.roll(offset, dims=-1))
    return shifted


def roll_by_each(weights: th.Tensor, reach: int) -> th.Tensor:
    """
    Weights moved by each of -k, ..., k slots.

    :param weights: ``[..., N]``
    :param reach: k
    :return: ``[..., 2k + 1, N]``
    """
    return th.stack([weights.roll(offset, dims=-1) for offset in range(-reach, reach + 1)], dim=-2)


def sharpen(weights: th.Tensor, exponents: th.Tensor) -> th.Tensor:
    """
    w(i)^gamma / sum_j w(j)^gamma.

    Graves et al. (2014), eq. (9), by way of logarithms: even weights over 128 slots to the power of 25 are below the smallest
    float, and would come out as 0.

    :param weights: ``[B, H, N]``
    :param exponents: gamma, at least 1, ``[B, H, 1]``
    :return: sum to 1, ``[B, H, N]``
    """
    return ((weights + TINY).log() * exponents).softmax(dim=-1)


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

    Graves et al. (2014), eqs. (3) and (4); of several heads all erase before any adds.

    :param memory: ``[B, N, W]``
    :param weights: ``[B, H, N]``
    :param erase: e, between 0 and 1, ``[B, H, W]``
    :param add: a, ``[B, H, W]``
    :return: ``[B, N, W]``
    """
    heads = weights.unbind(dim=1)
    for head_weights, head_erase in zip(heads, erase.unbind(dim=1), strict=True):
        memory = erase_by(memory, head_weights, head_erase)
    for head_weights, head_add in zip(heads, add.unbind(dim=1), strict=True):
        memory = th.addcmul(memory, head_weights.unsqueeze(-1), head_add.unsqueeze(-2))
    return memory


def erase_by(memory: th.Tensor, weights: th.Tensor, erase: th.Tensor) -> th.Tensor:
    """
    M'(i) = M(i) (1 - w(i) e), of one head.

    Graves et al. (2014), eq. (3).

    :param memory: ``[B, N, W]``
    :param weights: ``[B, N]``
    :param erase: e, between 0 and 1, ``[B, W]``
    :return: ``[B, N, W]``
    """
    return th.addcmul(memory, weights.unsqueeze(-1), memory * erase.unsqueeze(-2), value=-1)


def retention(read_weights: th.Tensor, free_gates: th.Tensor) -> th.Tensor:
    """
    psi = prod_r (1 - f_r w_r): how much of each slot the read heads leave in use after reading it.

    Graves et al. (2016), Methods, "Dynamic memory allocation".

    :param read_weights: of the step before, ``[B, R, N]``
    :param free_gates: f, between 0 and 1, ``[B, R, 1]``
    :return: between 0 and 1, ``[B, N]``
    """
    return reduce(th.mul, (1 - free_gates * read_weights).unbind(dim=1))  # the gradient of prod() looks for zeros first


def usage(previous: th.Tensor, write_weights: th.Tensor, retained: th.Tensor) -> th.Tensor:
    """
    u = (u_{t-1} + w_{t-1} - u_{t-1} w_{t-1}) psi.

    Graves et al. (2016), Methods, "Dynamic memory allocation". No gradient goes through the write weights, as in DeepMind's
    code; the paper does not say so.

    :param previous: between 0 and 1, ``[B, N]``
    :param write_weights: of the step before, ``[B, N]``
    :param retained: psi, ``[B, N]``
    :return: between 0 and 1, ``[B, N]``
    """
    return th.lerp(previous, th.ones_like(previous), write_weights.detach()) * retained


def allocation_weights(usage: th.Tensor, eps: float = EPS) -> th.Tensor:
    """
    a(phi_j) = (1 - u(phi_j)) prod_{i<j} u(phi_i), phi being the slots from the least used to the most used.

    Graves et al. (2016), eq. (1). Of slots used alike the first comes first: at an episode's start all are, and where the
    memory goes must not depend on the sorting. No gradient goes through the order.

    :param usage: u, ``[B, N]``
    :param eps: the least usage that a slot counts with, which keeps the product's gradient alive
    :return: sum to at most 1, ``[B, N]``
    """
    usage = eps + (1 - eps) * usage
    ascending, order = usage.sort(dim=-1, stable=True)
    products = th.cat((th.ones_like(ascending[:, :1]), ascending[:, :-1].cumprod(dim=-1)), dim=-1)
    return th.zeros_like(usage).scatter(-1, order, (1 - ascending) * products)


def temporal_link(link: th.Tensor, precedence: th.Tensor, write_weights: th.Tensor) -> th.Tensor:
    """
    L(i, j) = (1 - w(i) - w(j)) L_{t-1}(i, j) + w(i) p_{t-1}(j), and L(i, i) = 0: how much slot i was written after slot j.

    Graves et al. (2016), Methods, "Temporal memory linkage".

    :param link: ``[B, N, N]``
    :param precedence: p, of the step before, ``[B, N]``
    :param write_weights: w, ``[B, N]``
    :return: rows and columns sum to at most 1, ``[B, N, N]``
    """
    rows, columns = write_weights.unsqueeze(-1), write_weights.unsqueeze(-2)
    link = th.addcmul((1 - rows - columns) * link, rows, precedence.unsqueeze(-2))
    return without_diagonal(link)


def without_diagonal(matrices: th.Tensor) -> th.Tensor:
    """
    Matrices with zeros on their diagonals.

    :param matrices: ``[B, N, N]``
    :return: ``[B, N, N]``
    """
    return matrices * (1 - th.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device))


def precedence(previous: th.Tensor, write_weights: th.Tensor) -> th.Tensor:
    """
    p = (1 - sum_i w(i)) p_{t-1} + w: how much each slot was the last one written to.

    Graves et al. (2016), Methods, "Temporal memory linkage".

    :param previous: ``[B, N]``
    :param write_weights: ``[B, N]``
    :return: sum to at most 1, ``[B, N]``
    """
    return th.addcmul(write_weights, 1 - write_weights.sum(dim=-1, keepdim=True), previous)


def directional_weights(link: th.Tensor, read_weights: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    f = L w_{t-1} and b = L^T w_{t-1}: what was written after, and before, what was read last.

    Graves et al. (2016), Methods, "Temporal memory linkage".

    :param link: ``[B, N, N]``
    :param read_weights: of the step before, ``[B, R, N]``
    :return: forward and backward weights, each ``[B, R, N]``
    """
    return read_weights @ link.transpose(-1, -2), read_weights @ link


def sharpen_links(weights: th.Tensor, exponents: th.Tensor) -> th.Tensor:
    """
    Directional weights, sharpened, their sum kept.

    Csordás & Schmidhuber (2019), section 3.3. The paper brings the sum to 1; here what was linked to nothing still reads
    nothing.

    :param weights: ``[B, R, N]``
    :param exponents: at least 1, ``[B, R, 1]``
    :return: ``[B, R, N]``
    """
    return sharpen(weights, exponents) * weights.sum(dim=-1, keepdim=True)
