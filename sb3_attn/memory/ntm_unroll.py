"""
The unroll of a neural Turing machine with its gradient written out.

Autograd records some sixty operations for each step. Here only the states are kept; whatever a step computed from them is
computed again, for all steps at once, and a short loop backwards in time is left. Equations are those of Graves et al. (2014).
Step by step, as ``MemoryCore.unroll`` does it, comes to the same, and is the oracle in the tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch as th
from torch.autograd.function import once_differentiable

from sb3_attn.memory import addressing
from sb3_attn.memory.ntm_state import NTMState

if TYPE_CHECKING:
    from sb3_attn.memory.ntm import NTMCore


def unroll(core: NTMCore, projected: th.Tensor, state: NTMState) -> tuple[th.Tensor, NTMState]:
    """
    T steps.

    :param core: with an LSTM as controller, not in its reference form
    :param projected: what the inputs contribute to the gates, ``[T, B, 4 C]``
    :param state: before the first step
    :return: what the output layer sees, ``[T, B, C + R W]``, and the state after the last step
    """
    recurrent_weight = core.controller.linear.weight[:, core.input_size :]
    features, *arrays = _Unroll.apply(core, projected, recurrent_weight, core.heads.weight, core.heads.bias, *state)
    return features, NTMState._make(arrays)


class _Unroll(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, core: NTMCore, projected: th.Tensor, *arguments: th.Tensor) -> tuple[th.Tensor, ...]:
        recurrent_weight, heads_weight, _, *arrays = arguments
        features, states = core.run(projected, NTMState._make(arrays))
        stacked = (th.stack(field) for field in zip(*states, strict=True))
        ctx.core = core
        ctx.save_for_backward(projected, recurrent_weight, heads_weight, *stacked)
        return features, *states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_features: th.Tensor, *d_arrays: th.Tensor) -> tuple[th.Tensor | None, ...]:
        projected, recurrent_weight, heads_weight, *arrays = ctx.saved_tensors
        trace = _trace(ctx.core, projected, recurrent_weight, NTMState._make(arrays))
        d_state, d_gates, d_told = NTMState._make(d_arrays), [], []
        for step in reversed(range(len(projected))):
            now = _Trace._make(field[step] for field in trace)
            d_state, step_d_gates, step_d_told = _step_backward(now, d_features[step], d_state, recurrent_weight, heads_weight)
            d_gates.append(step_d_gates)
            d_told.append(step_d_told)
        all_d_gates, all_d_told = th.stack(d_gates[::-1]), th.stack(d_told[::-1])
        d_recurrent_weight = all_d_gates.flatten(0, 1).t() @ trace.recurrent.flatten(0, 1)
        d_heads_weight = all_d_told.flatten(0, 1).t() @ trace.hidden.flatten(0, 1)
        return None, all_d_gates, d_recurrent_weight, d_heads_weight, all_d_told.sum(dim=(0, 1)), *d_state


class _Trace(NamedTuple):
    """What the gradient of a step needs, for T steps; d x / d y is called the slope of x by y."""

    recurrent: th.Tensor  # what was read before and the hidden state before, [T, B, R W + C]
    hidden: th.Tensor  # after the step, [T, B, C]
    forget: th.Tensor  # the forget gate, [T, B, C]
    gate_slopes: th.Tensor  # of what each gate acts on, by the gate before its sigmoid or tanh, [T, B, 4 C]
    cell_slopes: th.Tensor  # of the hidden state by the cell, [T, B, C]
    told_slopes: th.Tensor  # of what the heads are told, by what it was before its function, [T, B, told]
    memory: th.Tensor  # before the step, [T, B, N, W]
    keys: th.Tensor  # [T, B, R + H, W]
    key_squares: th.Tensor  # |k|^2, [T, B, R + H, 1]
    memory_squares: th.Tensor  # |M(i)|^2, [T, B, 1, N]
    inverse_lengths: th.Tensor  # 1 / sqrt(|k|^2 |M(i)|^2 + eps), [T, B, R + H, N]
    similarity: th.Tensor  # [T, B, R + H, N], as are all below without a shape
    strengths: th.Tensor  # [T, B, R + H, 1]
    content: th.Tensor  # eq. (5)
    gates: th.Tensor  # [T, B, R + H, 1]
    beyond_previous: th.Tensor  # content weights less those of the step before
    shifts: th.Tensor  # [T, B, R + H, 2 k + 1]
    rolled: th.Tensor  # the interpolated weights, moved by each shift, [T, B, R + H, 2 k + 1, N]
    logarithms: th.Tensor  # of the shifted weights
    log_slopes: th.Tensor  # of the sharpened scores by the shifted weights
    read_weights: th.Tensor  # [T, B, R, N]
    write_weights: th.Tensor  # [T, B, H, N]
    erase: th.Tensor  # [T, B, H, W]
    add: th.Tensor  # [T, B, H, W]


def _trace(core: NTMCore, projected: th.Tensor, recurrent_weight: th.Tensor, states: NTMState) -> _Trace:
    """Everything that the steps computed, from the T + 1 states around them."""
    before, after = NTMState._make(field[:-1] for field in states), NTMState._make(field[1:] for field in states)
    recurrent = th.cat((before.reads.flatten(2), before.hidden), dim=-1)
    i, f, o, g = core.controller.gates(projected + recurrent @ recurrent_weight.t())
    tanh_cell = after.cell.tanh()
    gate_slopes = (g * i * (1 - i), before.cell * f * (1 - f), tanh_cell * o * (1 - o), i * (1 - g * g))

    told = core.tell_heads(after.hidden)
    told_slopes = (
        th.ones_like(told.keys).flatten(2),
        th.ones_like(told.add).flatten(2),
        th.ones_like(told.shifts).flatten(2),  # a softmax, which has no slope of its own
        -th.expm1(-told.strengths).flatten(2),
        -th.expm1(1 - told.exponents).flatten(2),
        (told.gates * (1 - told.gates)).flatten(2),
        (told.erase * (1 - told.erase)).flatten(2),
    )
    key_squares = (told.keys * told.keys).sum(dim=-1, keepdim=True)
    memory_squares = (before.memory * before.memory).sum(dim=-1).unsqueeze(-2)
    inverse_lengths = (key_squares * memory_squares + addressing.EPS).rsqrt()
    similarity = told.keys @ before.memory.transpose(-1, -2) * inverse_lengths
    content = addressing.content_weights(similarity, told.strengths)
    previous = th.cat((before.read_weights, before.write_weights), dim=2)
    rolled = addressing.roll_by_each(addressing.interpolate(content, previous, told.gates), told.shifts.shape[-1] // 2)
    shifted = (told.shifts.unsqueeze(-2) @ rolled).squeeze(-2) + addressing.TINY
    return _Trace(
        recurrent=recurrent,
        hidden=after.hidden,
        forget=f,
        gate_slopes=th.cat(gate_slopes, dim=-1),
        cell_slopes=o * (1 - tanh_cell * tanh_cell),
        told_slopes=th.cat(told_slopes, dim=-1),
        memory=before.memory,
        keys=told.keys,
        key_squares=key_squares,
        memory_squares=memory_squares,
        inverse_lengths=inverse_lengths,
        similarity=similarity,
        strengths=told.strengths,
        content=content,
        gates=told.gates,
        beyond_previous=content - previous,
        shifts=told.shifts,
        rolled=rolled,
        logarithms=shifted.log(),
        log_slopes=told.exponents / shifted,
        read_weights=after.read_weights,
        write_weights=after.write_weights,
        erase=told.erase,
        add=told.add,
    )


def _step_backward(
    now: _Trace, d_features: th.Tensor, d_after: NTMState, recurrent_weight: th.Tensor, heads_weight: th.Tensor
) -> tuple[NTMState, th.Tensor, th.Tensor]:
    """
    One step back in time.

    :param now: of this step
    :param d_features: ``[B, C + R W]``
    :param d_after: the gradient by the state after the step
    :return: the gradients by the state before, by the gates ``[B, 4 C]`` and by what the heads are told ``[B, told]``
    """
    batch_size, hidden_size = now.hidden.shape
    d_hidden = d_after.hidden + d_features[:, :hidden_size]
    d_reads = d_after.reads + d_features[:, hidden_size:].view_as(d_after.reads)

    # Eqs. (2) to (4): the heads read, then write
    d_add = now.write_weights @ d_after.memory
    d_write_weights = d_after.write_weights + now.add @ d_after.memory.transpose(-1, -2)
    d_memory, d_erase, d_by_erasing = _erase_backward(now, d_after.memory)
    d_read_weights = d_after.read_weights + d_reads @ now.memory.transpose(-1, -2)
    d_memory = th.baddbmm(d_memory, now.read_weights.transpose(-1, -2), d_reads)
    # Where they are
    d_weights = th.cat((d_read_weights, d_write_weights - d_by_erasing), dim=1)
    d_previous, d_similarity, d_addressing = _address_backward(now, d_weights)
    # Eq. (6): what is similar to the keys
    d_products = d_similarity * now.inverse_lengths
    d_squares = d_products * now.similarity * now.inverse_lengths
    d_keys = d_products @ now.memory - now.keys * (d_squares * now.memory_squares).sum(dim=-1, keepdim=True)
    d_memory = th.baddbmm(d_memory, d_products.transpose(-1, -2), now.keys)
    d_memory = th.addcmul(d_memory, now.memory, (d_squares * now.key_squares).sum(dim=1).unsqueeze(-1), value=-1)

    # The layer that tells the heads, and the LSTM
    d_told = th.cat([d.reshape(batch_size, -1) for d in (d_keys, d_add, *d_addressing, d_erase)], dim=-1) * now.told_slopes
    d_hidden = th.addmm(d_hidden, d_told, heads_weight)
    d_cell = th.addcmul(d_after.cell, d_hidden, now.cell_slopes)
    d_gates = th.cat((d_cell, d_cell, d_hidden, d_cell), dim=-1) * now.gate_slopes
    d_reads, d_hidden = (d_gates @ recurrent_weight).split((d_reads[0].numel(), hidden_size), dim=-1)
    d_read_weights, d_write_weights = d_previous.split((now.read_weights.shape[1], now.write_weights.shape[1]), dim=1)
    d_before = d_after._replace(
        hidden=d_hidden,
        cell=d_cell * now.forget,
        memory=d_memory,
        reads=d_reads.view_as(d_after.reads),
        read_weights=d_read_weights,
        write_weights=d_write_weights,
    )
    return d_before, d_gates, d_told


def _erase_backward(now: _Trace, d_memory: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Eq. (3), one head after the other.

    :param d_memory: by the memory after erasing, ``[B, N, W]``
    :return: the gradients by the memory before, by the erase vectors ``[B, H, W]``, and less that by the weights ``[B, H, N]``
    """
    weights, erase = now.write_weights.unbind(dim=1), now.erase.unbind(dim=1)
    memories = [now.memory]
    for head_weights, head_erase in zip(weights[:-1], erase[:-1], strict=True):
        memories.append(addressing.erase_by(memories[-1], head_weights, head_erase))
    d_erase, d_weights = [], []
    for memory, head_weights, head_erase in zip(reversed(memories), reversed(weights), reversed(erase), strict=True):
        lost = d_memory * memory
        d_weights.append(lost @ head_erase.unsqueeze(-1))
        d_erase.append(-(head_weights.unsqueeze(-2) @ lost))
        d_memory = addressing.erase_by(d_memory, head_weights, head_erase)
    return d_memory, th.cat(d_erase[::-1], dim=1), th.cat(d_weights[::-1], dim=-1).transpose(-1, -2)


def _address_backward(now: _Trace, d_weights: th.Tensor) -> tuple[th.Tensor, th.Tensor, tuple[th.Tensor, ...]]:
    """
    Eqs. (5) and (7) to (9).

    :param d_weights: by the weights of all heads, ``[B, R + H, N]``
    :return: the gradients by the weights of the step before and by the similarities, each ``[B, R + H, N]``; and by the
        shifts before their softmax, the strengths, the exponents and the gates, each ``[B, R + H, ...]``
    """
    weights = th.cat((now.read_weights, now.write_weights), dim=1)
    d_scores = _softmax_backward(weights, d_weights)
    d_exponents = (d_scores * now.logarithms).sum(dim=-1)
    d_shifted = d_scores * now.log_slopes
    d_shifts = (now.rolled @ d_shifted.unsqueeze(-1)).squeeze(-1)
    d_interpolated = addressing.circular_shift(d_shifted, now.shifts.flip(-1))
    d_content = d_interpolated * now.gates
    d_gates = (d_interpolated * now.beyond_previous).sum(dim=-1)
    d_scores = _softmax_backward(now.content, d_content)
    d_strengths = (d_scores * now.similarity).sum(dim=-1)
    d_told = _softmax_backward(now.shifts, d_shifts), d_strengths, d_exponents, d_gates
    return d_interpolated - d_content, d_scores * now.strengths, d_told


def _softmax_backward(weights: th.Tensor, d_weights: th.Tensor) -> th.Tensor:
    """The gradient by what went into a softmax, from that by what came out."""
    products = weights * d_weights
    return th.addcmul(products, weights, products.sum(dim=-1, keepdim=True), value=-1)
