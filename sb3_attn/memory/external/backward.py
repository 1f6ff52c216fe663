"""
Gradients, derived by hand, of the parts that NTM and DNC are made of.

Autograd records dozens of operations for each step, and its bookkeeping costs more than their arithmetic. A custom backward
pass saves only the states of the forward pass. It recomputes everything else from them for all T steps at once
(``recompute_...``, which returns a ``Saved...``), so that little is left to do in the loop back through time
(``..._backward``, for one step). The tests compare the result with autograd.

``d_x`` is the gradient of the loss with respect to x. *Derivatives* are those of a function of single numbers, such as a
sigmoid. Shapes and symbols are those of ``addressing``; T steps come first where all steps are computed at once.
"""

from typing import NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_attn.memory.external import addressing
from sb3_attn.memory.external.controller import Controller


def softmax_backward(weights: th.Tensor, d_weights: th.Tensor) -> th.Tensor:
    """
    Gradient of a softmax, d_x = w (d_w - sum_j w(j) d_w(j)).

    :param weights: its result w, ``[..., n]``
    :param d_weights: ``[..., n]``
    :return: with respect to its argument, ``[..., n]``
    """
    products = weights * d_weights
    return th.addcmul(products, weights, products.sum(dim=-1, keepdim=True), value=-1)


def linear_weight_backward(d_outputs: th.Tensor, inputs: th.Tensor) -> th.Tensor:
    """
    Gradient of a linear layer with respect to its weight, summed over steps and rows.

    :param d_outputs: ``[T, B, out]``
    :param inputs: ``[T, B, in]``
    :return: ``[out, in]``
    """
    return d_outputs.flatten(0, 1).t() @ inputs.flatten(0, 1)


class SavedController(NamedTuple):
    """Intermediate values of the LSTM controller."""

    recurrent: th.Tensor  # reads and hidden state before the step, [T, B, R W + C]
    hidden: th.Tensor  # after the step, [T, B, C]
    forget: th.Tensor  # the forget gate, [T, B, C]
    gate_derivatives: th.Tensor  # of the cell (i, f, g) or of the hidden state (o) w.r.t. the gates' arguments, [T, B, 4 C]
    cell_derivatives: th.Tensor  # of the hidden state w.r.t. the cell, [T, B, C]


def recompute_controller(
    controller: Controller, projected: th.Tensor, reads: th.Tensor, hidden: th.Tensor, cell: th.Tensor
) -> SavedController:
    """
    Recompute the LSTM controller.

    :param controller: the LSTM
    :param projected: contribution of the inputs to the gates, ``[T, B, 4 C]``
    :param reads: before, between and after the steps, ``[T + 1, B, R, W]``
    :param hidden: likewise, ``[T + 1, B, C]``
    :param cell: likewise, ``[T + 1, B, C]``
    :return: values for T steps
    """
    recurrent = th.cat((reads[:-1].flatten(2), hidden[:-1]), dim=-1)
    i, f, o, g = controller.gates(projected + recurrent @ controller.recurrent_weight.t())
    tanh_cell = cell[1:].tanh()
    # cell' = f cell + i g and hidden' = o tanh(cell'), with s' = s (1 - s) for a sigmoid s and t' = 1 - t^2 for a tanh t
    gate_derivatives = (g * i * (1 - i), cell[:-1] * f * (1 - f), tanh_cell * o * (1 - o), i * (1 - g * g))
    return SavedController(recurrent, hidden[1:], f, th.cat(gate_derivatives, dim=-1), o * (1 - tanh_cell * tanh_cell))


def controller_backward(
    saved: SavedController, d_hidden: th.Tensor, d_cell: th.Tensor, recurrent_weight: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """
    Go back by one step of the LSTM controller.

    :param saved: of this step
    :param d_hidden: after the step, ``[B, C]``
    :param d_cell: after the step, ``[B, C]``
    :param recurrent_weight: ``[4 C, R W + C]``
    :return: gradients with respect to the reads ``[B, R W]``, the hidden state and the cell, all before the step, and to the
        gates before their activations ``[B, 4 C]``
    """
    d_cell = th.addcmul(d_cell, d_hidden, saved.cell_derivatives)
    d_gates = th.cat((d_cell, d_cell, d_hidden, d_cell), dim=-1) * saved.gate_derivatives
    d_recurrent = d_gates @ recurrent_weight
    hidden_size = d_hidden.shape[-1]
    return d_recurrent[:, :-hidden_size], d_recurrent[:, -hidden_size:], d_cell * saved.forget, d_gates


class SavedContent(NamedTuple):
    """Intermediate values of content-based addressing."""

    memory: th.Tensor  # [T, B, N, W]
    keys: th.Tensor  # [T, B, H, W]
    strengths: th.Tensor  # [T, B, H, 1]
    key_squares: th.Tensor  # |k|^2, [T, B, H, 1]
    memory_squares: th.Tensor  # |M(i)|^2, [T, B, 1, N]
    inverse_norms: th.Tensor  # 1 / sqrt(|k|^2 |M(i)|^2 + eps), [T, B, H, N]
    similarity: th.Tensor  # [T, B, H, N]
    weights: th.Tensor  # [T, B, H, N]


def recompute_content(memory: th.Tensor, keys: th.Tensor, strengths: th.Tensor) -> SavedContent:
    """
    Recompute content-based addressing.

    :param memory: ``[T, B, N, W]``
    :param keys: ``[T, B, H, W]``
    :param strengths: ``[T, B, H, 1]``
    :return: values for T steps
    """
    key_squares = (keys * keys).sum(dim=-1, keepdim=True)
    memory_squares = (memory * memory).sum(dim=-1).unsqueeze(-2)
    inverse_norms = (key_squares * memory_squares + addressing.EPS).rsqrt()
    similarity = keys @ memory.transpose(-1, -2) * inverse_norms
    weights = addressing.content_weights(similarity, strengths)
    return SavedContent(memory, keys, strengths, key_squares, memory_squares, inverse_norms, similarity, weights)


def content_backward(saved: SavedContent, d_weights: th.Tensor, d_memory: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Go back through ``content_weights`` and ``cosine_similarity``.

    :param saved: of this step
    :param d_weights: ``[B, H, N]``
    :param d_memory: gradient from other uses of the memory, ``[B, N, W]``
    :return: gradients with respect to the keys ``[B, H, W]`` and strengths ``[B, H, 1]``, and the total for the memory
    """
    d_scores = softmax_backward(saved.weights, d_weights)
    d_strengths = (d_scores * saved.similarity).sum(dim=-1, keepdim=True)
    # K = (k m) / n with n = sqrt(|k|^2 |m|^2 + eps): k and m act through the product above and the norms below
    d_products = d_scores * saved.strengths * saved.inverse_norms
    # d_K dK/d|k|^2 = -d_K K |m|^2 / (2 n^2), and d|k|^2/dk = 2 k: the factors 2 cancel
    d_squares = d_products * saved.similarity * saved.inverse_norms
    d_keys = d_products @ saved.memory
    d_keys = th.addcmul(d_keys, saved.keys, (d_squares * saved.memory_squares).sum(dim=-1, keepdim=True), value=-1)
    d_memory = d_memory + d_products.transpose(-1, -2) @ saved.keys
    d_memory = th.addcmul(d_memory, saved.memory, (d_squares * saved.key_squares).sum(dim=1).unsqueeze(-1), value=-1)
    return d_keys, d_strengths, d_memory


def erase_with_head_backward(
    memory: th.Tensor, weights: th.Tensor, erase: th.Tensor, d_memory: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Go back through ``erase_with_head``.

    :param memory: before erasing, ``[B, N, W]``
    :param weights: ``[B, N]``
    :param erase: ``[B, W]``
    :param d_memory: after erasing, ``[B, N, W]``
    :return: gradients with respect to the memory before erasing, to the weights and to the erase vector
    """
    # M' = M (1 - w e), so M' falls by M where the product w e rises
    lost = d_memory * memory
    d_weights = -(lost @ erase.unsqueeze(-1)).squeeze(-1)
    d_erase = -(weights.unsqueeze(-2) @ lost).squeeze(-2)
    return addressing.erase_with_head(d_memory, weights, erase), d_weights, d_erase


def erase_and_add_backward(
    memory: th.Tensor, weights: th.Tensor, erase: th.Tensor, add: th.Tensor, d_memory: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """
    Go back through ``erase_and_add``.

    :param memory: before the write, ``[B, N, W]``
    :param weights: ``[B, H, N]``
    :param erase: ``[B, H, W]``
    :param add: ``[B, H, W]``
    :param d_memory: after the write, ``[B, N, W]``
    :return: gradients with respect to the memory before the write, and to weights, erase vectors and add vectors
    """
    d_add = weights @ d_memory
    d_weights_of_add = add @ d_memory.transpose(-1, -2)
    # The heads erase in turn, so going back through one needs the memory as the heads before it left it
    heads = list(zip(weights.unbind(dim=1), erase.unbind(dim=1), strict=True))
    memories = [memory]
    for head in heads[:-1]:
        memories.append(addressing.erase_with_head(memories[-1], *head))
    d_weights, d_erase = [], []
    for head_memory, head in zip(reversed(memories), reversed(heads), strict=True):
        d_memory, d_head_weights, d_head_erase = erase_with_head_backward(head_memory, *head, d_memory)
        d_weights.append(d_head_weights)
        d_erase.append(d_head_erase)
    return d_memory, d_weights_of_add + th.stack(d_weights[::-1], dim=1), th.stack(d_erase[::-1], dim=1), d_add


class SavedAllocation(NamedTuple):
    """Intermediate values of ``allocation_weights``, each ``[T, B, N]``; all but the last are sorted by descending usage."""

    order: th.Tensor
    usage: th.Tensor
    products: th.Tensor  # of the usages of all slots that are used less
    sorted_weights: th.Tensor
    weights: th.Tensor  # in the order of the slots


def recompute_allocation(usage: th.Tensor) -> SavedAllocation:
    """
    Recompute the allocation weights.

    :param usage: ``[T, B, N]``
    :return: values for T steps
    """
    # The sort must be stable as in the forward pass, or slots of equal usage would swap their gradients
    ascending, order = (addressing.EPS + (1 - addressing.EPS) * usage).sort(dim=-1, stable=True)
    products = th.cat((th.ones_like(ascending[..., :1]), ascending[..., :-1].cumprod(dim=-1)), dim=-1)
    sorted_weights = (1 - ascending) * products
    weights = th.zeros_like(usage).scatter(-1, order, sorted_weights)
    descending = [array.flip(-1) for array in (order, ascending, products, sorted_weights)]
    return SavedAllocation._make([*descending, weights])


def allocation_backward(saved: SavedAllocation, d_weights: th.Tensor) -> th.Tensor:
    """
    Go back through ``allocation_weights``.

    A slot's usage lowers its own weight, and is a factor in the weights of all slots that are used more.

    :param saved: of this step
    :param d_weights: in the order of the slots, ``[B, N]``
    :return: with respect to the usage, ``[B, N]``
    """
    d_weights = d_weights.gather(-1, saved.order)
    # For each slot the sum over all that are used more. Not their total minus the rest: that would cancel in float32, and is
    # divided by usages down to 1e-6
    used_more = F.pad((d_weights * saved.sorted_weights)[:, :-1].cumsum(dim=-1), (1, 0))
    d_usage = used_more / saved.usage - d_weights * saved.products
    return th.zeros_like(d_usage).scatter(-1, saved.order, d_usage) * (1 - addressing.EPS)


def linkage_backward(
    link: th.Tensor, precedence: th.Tensor, write_weights: th.Tensor, d_link: th.Tensor, d_precedence: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Go back through ``temporal_link`` and ``precedence``.

    :param link: before the step, ``[B, N, N]``
    :param precedence: before the step, ``[B, N]``
    :param write_weights: of the step, ``[B, N]``
    :param d_link: after the step, ``[B, N, N]``
    :param d_precedence: after the step, ``[B, N]``
    :return: gradients with respect to link and precedence before the step, and to the write weights
    """
    # p' = (1 - sum_i w(i)) p + w
    d_write_weights = d_precedence - (d_precedence * precedence).sum(dim=-1, keepdim=True)
    d_precedence = d_precedence * (1 - write_weights.sum(dim=-1, keepdim=True))
    # L'(i, j) = (1 - w(i) - w(j)) L(i, j) + w(i) p(j) off the diagonal
    d_link = addressing.zero_diagonal(d_link)
    d_decay = d_link * link
    d_write_weights = d_write_weights - d_decay.sum(dim=-1) - d_decay.sum(dim=-2)
    d_write_weights = d_write_weights + (d_link @ precedence.unsqueeze(-1)).squeeze(-1)
    d_precedence = d_precedence + (write_weights.unsqueeze(-2) @ d_link).squeeze(-2)
    return (1 - write_weights.unsqueeze(-1) - write_weights.unsqueeze(-2)) * d_link, d_precedence, d_write_weights
