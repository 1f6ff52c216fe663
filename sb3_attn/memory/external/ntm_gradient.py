"""The gradient of a neural Turing machine, written out; equations are those of Graves et al. (2014)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch as th

from sb3_attn.memory.external import addressing, gradients
from sb3_attn.memory.external.ntm_state import NTMState

if TYPE_CHECKING:
    from sb3_attn.memory.external.ntm import NTMCore


class NTMTrace(NamedTuple):
    """What the gradient of a step needs, for T steps."""

    controller: gradients.ControllerTrace
    content: gradients.ContentTrace  # of the memory before the step
    told_slopes: th.Tensor  # of what the heads are told, by what it was before its function, [T, B, told]
    gates: th.Tensor  # [T, B, R + H, 1]
    beyond_previous: th.Tensor  # content weights less those of the step before, [T, B, R + H, N]
    shifts: th.Tensor  # [T, B, R + H, 2 k + 1]
    rolled: th.Tensor  # the interpolated weights, moved by each shift, [T, B, R + H, 2 k + 1, N]
    logarithms: th.Tensor  # of the shifted weights, [T, B, R + H, N]
    log_slopes: th.Tensor  # of the exponents times them, by the shifted weights, [T, B, R + H, N]
    weights: th.Tensor  # [T, B, R + H, N]
    erase: th.Tensor  # [T, B, H, W]
    add: th.Tensor  # [T, B, H, W]


def trace(core: NTMCore, projected: th.Tensor, states: NTMState) -> NTMTrace:
    """Everything that the steps computed, from the T + 1 states around them."""
    told = core.tell_heads(states.hidden[1:])
    told_slopes = (
        th.ones_like(told.keys),
        th.ones_like(told.add),
        th.ones_like(told.shifts),  # a softmax, which has no slopes
        -th.expm1(-told.strengths),
        -th.expm1(1 - told.exponents),
        told.gates * (1 - told.gates),
        told.erase * (1 - told.erase),
    )
    content = gradients.trace_content(states.memory[:-1], told.keys, told.strengths)
    weights = th.cat((states.read_weights, states.write_weights), dim=2)
    interpolated = addressing.interpolate(content.weights, weights[:-1], told.gates)
    rolled = addressing.roll_by_each(interpolated, told.shifts.shape[-1] // 2)
    shifted = (told.shifts.unsqueeze(-2) @ rolled).squeeze(-2) + addressing.TINY
    return NTMTrace(
        controller=gradients.trace_controller(core.controller, projected, states.reads, states.hidden, states.cell),
        content=content,
        told_slopes=th.cat([slopes.flatten(2) for slopes in told_slopes], dim=-1),
        gates=told.gates,
        beyond_previous=content.weights - weights[:-1],
        shifts=told.shifts,
        rolled=rolled,
        logarithms=shifted.log(),
        log_slopes=told.exponents / shifted,
        weights=weights[1:],
        erase=told.erase,
        add=told.add,
    )


def step_backward(
    now: NTMTrace, d_features: th.Tensor, d_after: NTMState, recurrent_weight: th.Tensor, heads_weight: th.Tensor
) -> tuple[NTMState, th.Tensor, th.Tensor]:
    """
    One step back in time.

    :param now: of this step
    :param d_features: ``[B, C + R W]``
    :param d_after: by the state after the step
    :return: the gradients by the state before, by the controller's gates ``[B, 4 C]``, and by what the heads are told before
        its functions ``[B, told]``
    """
    batch_size, hidden_size = d_after.hidden.shape
    d_hidden = d_after.hidden + d_features[:, :hidden_size]
    d_reads = d_after.reads + d_features[:, hidden_size:].view_as(d_after.reads)
    heads = (d_after.read_weights.shape[1], d_after.write_weights.shape[1])
    read_weights, write_weights = now.weights.split(heads, dim=1)

    # Eqs. (2) to (4): the heads read, then write
    d_add = write_weights @ d_after.memory
    d_write_weights = d_after.write_weights + now.add @ d_after.memory.transpose(-1, -2)
    d_memory, d_erase, d_by_erasing = _erase_backward(now.content.memory, write_weights, now.erase, d_after.memory)
    d_read_weights = d_after.read_weights + d_reads @ now.content.memory.transpose(-1, -2)
    d_memory = d_memory + read_weights.transpose(-1, -2) @ d_reads
    # Eq. (9)
    d_scores = gradients.softmax_backward(now.weights, th.cat((d_read_weights, d_write_weights + d_by_erasing), dim=1))
    d_exponents = (d_scores * now.logarithms).sum(dim=-1)
    d_shifted = d_scores * now.log_slopes
    # Eq. (8)
    d_shifts = gradients.softmax_backward(now.shifts, (now.rolled @ d_shifted.unsqueeze(-1)).squeeze(-1))
    d_interpolated = addressing.circular_shift(d_shifted, now.shifts.flip(-1))
    # Eq. (7)
    d_content = d_interpolated * now.gates
    d_gates = (d_interpolated * now.beyond_previous).sum(dim=-1)
    d_previous = (d_interpolated - d_content).split(heads, dim=1)
    # Eqs. (5) and (6)
    d_keys, d_strengths, d_memory = gradients.content_backward(now.content, d_content, d_memory)

    # The layer that tells the heads, and the LSTM
    d_parts = (d_keys, d_add, d_shifts, d_strengths, d_exponents, d_gates, d_erase)
    d_told = th.cat([d_part.reshape(batch_size, -1) for d_part in d_parts], dim=-1) * now.told_slopes
    d_reads, d_hidden, d_cell, d_lstm_gates = gradients.controller_backward(
        now.controller, th.addmm(d_hidden, d_told, heads_weight), d_after.cell, recurrent_weight
    )
    d_before = NTMState(d_hidden, d_cell, d_memory, d_reads.view_as(d_after.reads), *d_previous)
    return d_before, d_lstm_gates, d_told


def _erase_backward(
    memory: th.Tensor, write_weights: th.Tensor, erase: th.Tensor, d_memory: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Eq. (3), one head after the other.

    :param memory: before erasing, ``[B, N, W]``
    :param write_weights: ``[B, H, N]``
    :param erase: ``[B, H, W]``
    :param d_memory: by the memory after erasing, ``[B, N, W]``
    :return: the gradients by the memory before, by the erase vectors and by the weights
    """
    heads = list(zip(write_weights.unbind(dim=1), erase.unbind(dim=1), strict=True))
    memories = [memory]
    for head in heads[:-1]:
        memories.append(addressing.erase_by(memories[-1], *head))
    d_erase, d_weights = [], []
    for head_memory, (head_weights, head_erase) in zip(reversed(memories), reversed(heads), strict=True):
        lost = d_memory * head_memory
        d_weights.append(-(lost @ head_erase.unsqueeze(-1)))
        d_erase.append(-(head_weights.unsqueeze(-2) @ lost))
        d_memory = addressing.erase_by(d_memory, head_weights, head_erase)
    return d_memory, th.cat(d_erase[::-1], dim=1), th.cat(d_weights[::-1], dim=-1).transpose(-1, -2)


NTM_GRADIENT = gradients.WrittenGradient(trace, step_backward)
