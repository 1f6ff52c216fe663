"""The gradient of a differentiable neural computer, written out; equations are those of Graves et al. (2016), Methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_attn.memory.external import addressing, gradients
from sb3_attn.memory.external.dnc_state import DNCState

if TYPE_CHECKING:
    from sb3_attn.memory.external.dnc import DNCCore


class AllocationTrace(NamedTuple):
    """Allocation weights, all but the last in the order from the slot used least to the one used most; each ``[T, B, N]``."""

    order: th.Tensor
    usage: th.Tensor
    products: th.Tensor  # of the usages of the slots before
    weights: th.Tensor
    by_slot: th.Tensor  # the weights in the slots' own order


class DNCTrace(NamedTuple):
    """What the gradient of a step needs, for T steps."""

    controller: gradients.ControllerTrace
    write_content: gradients.ContentTrace  # of the memory before the step
    read_content: gradients.ContentTrace  # of the memory after it
    allocation: AllocationTrace
    before: DNCState  # each [T, B, ...]
    after: DNCState
    told_slopes: th.Tensor  # of the interface by what it was before its functions, [T, B, interface]
    retained: th.Tensor  # psi, [T, B, N]
    by_others: th.Tensor  # for each head, the product of psi's factors from the others, [T, B, R, N]
    free_gates: th.Tensor  # [T, B, R, 1]
    write_gate: th.Tensor  # [T, B, 1]
    allocation_gate: th.Tensor  # [T, B, 1]
    erase: th.Tensor  # [T, B, 1, W]
    add: th.Tensor  # [T, B, 1, W]
    modes: th.Tensor  # backward, forward and by content, [T, B, R, 3, 1]
    directions: th.Tensor  # the weights that these three would give, [T, B, R, 3, N]


def trace(core: DNCCore, projected: th.Tensor, states: DNCState) -> DNCTrace:
    """Everything that the steps computed, from the T + 1 states around them."""
    access = core.access
    before, after = (DNCState._make(field[steps] for field in states) for steps in (slice(-1), slice(1, None)))
    told = access.tell(after.hidden)
    keys = {head: told[f"{head}_keys"].unflatten(-1, (-1, access.word_size)) for head in ("write", "read")}
    strengths = {head: told[f"{head}_strengths"].unsqueeze(-1) for head in ("write", "read")}
    modes = told["read_mode"].unflatten(-1, (access.n_reads, 3)).softmax(dim=-1)
    # What the interface's parts were made of: sigmoids, softplus, and as they are; the modes' softmax has no slopes
    slopes = {name: th.ones_like(part) for name, part in told.items()}
    slopes |= {name: told[name] * (1 - told[name]) for name in ("erase_vectors", "free_gate", "allocation_gate", "write_gate")}
    slopes |= {name: -th.expm1(-told[name]) for name in ("write_strengths", "read_strengths")}

    free_gates = told["free_gate"].unsqueeze(-1)
    kept = (1 - free_gates * before.read_weights).unbind(dim=2)
    others = [kept[:head] + kept[head + 1 :] for head in range(access.n_reads)]
    ones = th.ones_like(before.usage)
    read_content = gradients.trace_content(after.memory, keys["read"], strengths["read"])
    forward, backward = addressing.directional_weights(after.link, before.read_weights)
    return DNCTrace(
        controller=gradients.trace_controller(core.controller, projected, states.reads, states.hidden, states.cell),
        write_content=gradients.trace_content(before.memory, keys["write"], strengths["write"]),
        read_content=read_content,
        allocation=_trace_allocation(after.usage),
        before=before,
        after=after,
        told_slopes=th.cat([slopes[name] for name in access.interface_sizes], dim=-1),
        retained=_product(kept, ones),
        by_others=th.stack([_product(factors, ones) for factors in others], dim=2),
        free_gates=free_gates,
        write_gate=told["write_gate"],
        allocation_gate=told["allocation_gate"],
        erase=told["erase_vectors"].unsqueeze(2),
        add=told["write_vectors"].unsqueeze(2),
        modes=modes.unsqueeze(-1),
        directions=th.stack((backward, forward, read_content.weights), dim=3),
    )


def step_backward(
    now: DNCTrace, d_features: th.Tensor, d_after: DNCState, recurrent_weight: th.Tensor, interface_weight: th.Tensor
) -> tuple[DNCState, th.Tensor, th.Tensor]:
    """One step back in time; see ``gradients.WrittenGradient``."""
    batch_size, hidden_size = d_after.hidden.shape
    before, after = now.before, now.after
    d_hidden = d_after.hidden + d_features[:, :hidden_size]
    d_reads = d_after.reads + d_features[:, hidden_size:].view_as(d_after.reads)

    # Reading: from what was written before or after what was read last, and by content
    d_read_weights = d_after.read_weights + d_reads @ after.memory.transpose(-1, -2)
    d_memory = d_after.memory + after.read_weights.transpose(-1, -2) @ d_reads
    d_modes = (now.directions @ d_read_weights.unsqueeze(-1)).squeeze(-1)
    d_modes = gradients.softmax_backward(now.modes.squeeze(-1), d_modes)
    d_backward, d_forward, d_content = (now.modes * d_read_weights.unsqueeze(2)).unbind(dim=2)
    d_read_keys, d_read_strengths, d_memory = gradients.content_backward(now.read_content, d_content, d_memory)
    d_previous_read_weights = d_backward @ after.link.transpose(-1, -2) + d_forward @ after.link
    d_link = d_forward.transpose(-1, -2) @ before.read_weights + before.read_weights.transpose(-1, -2) @ d_backward

    # Links and precedence
    d_link, d_precedence, d_write_weights = _link_backward(now, d_after.link + d_link, d_after.precedence)
    write, d_allocation, d_memory = _write_backward(now, d_write_weights + d_after.write_weights, d_memory)

    # Usage
    d_usage = d_after.usage + _allocation_backward(now.allocation, d_allocation)
    occupied = th.lerp(before.usage, th.ones_like(before.usage), before.write_weights)
    d_kept = (d_usage * occupied).unsqueeze(1) * now.by_others
    d_free_gate = -(d_kept * before.read_weights).sum(dim=-1)
    d_previous_read_weights = th.addcmul(d_previous_read_weights, d_kept, now.free_gates, value=-1)
    d_usage = d_usage * now.retained * (1 - before.write_weights)

    # The interface, in the order of its rows, and the LSTM
    d_gates_told = (write.d_erase, d_free_gate, write.d_allocation_gate, write.d_gate)
    d_keys_told = (write.d_strengths, d_read_strengths, write.d_add, write.d_keys, d_read_keys)
    d_parts = (*d_gates_told, *d_keys_told, d_modes)
    d_told = th.cat([d_part.reshape(batch_size, -1) for d_part in d_parts], dim=-1) * now.told_slopes
    d_reads, d_hidden, d_cell, d_gates = gradients.controller_backward(
        now.controller, th.addmm(d_hidden, d_told, interface_weight), d_after.cell, recurrent_weight
    )
    d_before = DNCState(
        hidden=d_hidden,
        cell=d_cell,
        reads=d_reads.view_as(d_after.reads),
        memory=d_memory,
        usage=d_usage,
        link=d_link,
        precedence=d_precedence,
        read_weights=d_previous_read_weights,
        write_weights=th.zeros_like(before.write_weights),  # they matter to the usage alone, which has no gradient by them
    )
    return d_before, d_gates, d_told


class WriteGradients(NamedTuple):
    """By what the write head is told."""

    d_erase: th.Tensor  # [B, 1, W]
    d_allocation_gate: th.Tensor  # [B, 1]
    d_gate: th.Tensor  # [B, 1]
    d_strengths: th.Tensor  # [B, 1, 1]
    d_add: th.Tensor  # [B, 1, W]
    d_keys: th.Tensor  # [B, 1, W]


def _write_backward(
    now: DNCTrace, d_write_weights: th.Tensor, d_memory: th.Tensor
) -> tuple[WriteGradients, th.Tensor, th.Tensor]:
    """
    Writing, to a free slot or by content.

    :param d_write_weights: from elsewhere, ``[B, N]``
    :param d_memory: by the memory after the step, ``[B, N, W]``
    :return: the gradients by what the head is told, by the allocation weights, and by the memory before the step
    """
    write_weights = now.after.write_weights.unsqueeze(1)
    d_add = write_weights @ d_memory
    lost = d_memory * now.before.memory
    d_erase = -(write_weights @ lost)
    d_written = now.add @ d_memory.transpose(-1, -2) - now.erase @ lost.transpose(-1, -2)
    d_write_weights = d_write_weights + d_written.squeeze(1)
    d_memory = addressing.erase_by(d_memory, now.after.write_weights, now.erase.squeeze(1))
    content, allocation = now.write_content.weights.squeeze(1), now.allocation.by_slot
    mixed = th.lerp(content, allocation, now.allocation_gate)
    d_gate = (d_write_weights * mixed).sum(dim=-1, keepdim=True)
    d_mixed = d_write_weights * now.write_gate
    d_allocation_gate = (d_mixed * (allocation - content)).sum(dim=-1, keepdim=True)
    d_allocation = d_mixed * now.allocation_gate
    d_content = (d_mixed - d_allocation).unsqueeze(1)
    d_keys, d_strengths, d_memory = gradients.content_backward(now.write_content, d_content, d_memory)
    return WriteGradients(d_erase, d_allocation_gate, d_gate, d_strengths, d_add, d_keys), d_allocation, d_memory


def _link_backward(now: DNCTrace, d_link: th.Tensor, d_precedence: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Temporal links and precedence.

    :param d_link: by the links after the step, ``[B, N, N]``
    :param d_precedence: by the precedence after it, ``[B, N]``
    :return: the gradients by links and precedence before the step, and by its write weights
    """
    before, written = now.before, now.after.write_weights
    d_write_weights = d_precedence - (d_precedence * before.precedence).sum(dim=-1, keepdim=True)
    d_before = d_precedence * (1 - written.sum(dim=-1, keepdim=True))
    d_link = addressing.without_diagonal(d_link)
    faded = d_link * before.link
    d_write_weights = d_write_weights - faded.sum(dim=-1) - faded.sum(dim=-2)
    d_write_weights = d_write_weights + (d_link @ before.precedence.unsqueeze(-1)).squeeze(-1)
    d_before = d_before + (written.unsqueeze(-2) @ d_link).squeeze(-2)
    return (1 - written.unsqueeze(-1) - written.unsqueeze(-2)) * d_link, d_before, d_write_weights


def _trace_allocation(usage: th.Tensor) -> AllocationTrace:
    ascending, order = (addressing.EPS + (1 - addressing.EPS) * usage).sort(dim=-1, stable=True)
    products = th.cat((th.ones_like(ascending[..., :1]), ascending[..., :-1].cumprod(dim=-1)), dim=-1)
    weights = (1 - ascending) * products
    return AllocationTrace(order, ascending, products, weights, th.zeros_like(weights).scatter(-1, order, weights))


def _allocation_backward(now: AllocationTrace, d_weights: th.Tensor) -> th.Tensor:
    """Eq. (1): a slot's usage takes from its own weight, and is a factor of the weights of all that are used more."""
    d_weights = d_weights.gather(-1, now.order)
    products = d_weights * now.weights
    # Summed from the slot used most: the total minus the other sum would cancel in float32, and usages go down to 1e-6
    of_slots_used_more = F.pad(products[..., 1:].flip(-1).cumsum(dim=-1).flip(-1), (0, 1))
    d_factor = of_slots_used_more / now.usage
    d_usage = d_factor - d_weights * now.products
    return th.zeros_like(d_usage).scatter(-1, now.order, d_usage) * (1 - addressing.EPS)


def _product(factors: tuple[th.Tensor, ...], ones: th.Tensor) -> th.Tensor:
    for factor in factors:
        ones = ones * factor
    return ones


DNC_GRADIENT = gradients.WrittenGradient(trace, step_backward)
