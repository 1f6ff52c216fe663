"""The differentiable neural computer: its state, its step, and the backward pass of the step."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.common.core_state import CoreState
from sb3_attn.memory.core import WeightsInfo, check_sizes
from sb3_attn.memory.external import addressing, backward, reference_forms
from sb3_attn.memory.external.core import CustomBackward, ExternalMemoryCore


class DNCState(NamedTuple):
    """State of controller and memory. C is 0 with a feed-forward controller."""

    hidden: th.Tensor  # [B, C]
    cell: th.Tensor  # [B, C]
    reads: th.Tensor  # [B, R, W]
    memory: th.Tensor  # [B, N, W]
    usage: th.Tensor  # [B, N]
    link: th.Tensor  # [B, N, N]
    precedence: th.Tensor  # [B, N]
    read_weights: th.Tensor  # [B, R, N]
    write_weights: th.Tensor  # [B, N]


class MemoryAccess(nn.Module):
    """
    One write head and R read heads on a memory that keeps track of free slots and of the order of writing.

    Graves et al. (2016), Methods, with the activations of DeepMind's code: softplus for strengths, none for keys and write
    vectors.

    :param input_size: size of the controls
    :param n_slots: number N of slots
    :param word_size: size W of a slot
    :param n_reads: number R of read heads
    :param masking: compare only those parts of the words that the controller selects (Csordás & Schmidhuber 2019, 3.1)
    :param deallocation: erase slots as they are freed (3.2)
    :param link_sharpening: sharpen the weights that follow the temporal links (3.3)
    :param reference_form: use cosine similarity exactly as DeepMind's code, for comparisons with it
    """

    def __init__(
        self,
        input_size: int,
        n_slots: int,
        word_size: int,
        n_reads: int,
        masking: bool = False,
        deallocation: bool = False,
        link_sharpening: bool = False,
        reference_form: bool = False,
    ) -> None:
        super().__init__()
        if masking and reference_form:
            raise ValueError("masking=True has no reference form; leave one of masking and reference_form out.")
        self.n_slots = n_slots
        self.word_size = word_size
        self.n_reads = n_reads
        self.masking = masking
        self.deallocation = deallocation
        self.link_sharpening = link_sharpening
        #: Whether the step is the one that ``step_backward`` differentiates
        self.is_plain = not (masking or deallocation or link_sharpening or reference_form)
        self.similarity = reference_forms.dnc_cosine_similarity if reference_form else addressing.cosine_similarity
        #: Sizes of the parts of the interface vector, in its order: those with a sigmoid first, then those with softplus
        self.interface_sizes = {
            "erase_vectors": word_size,
            "free_gate": n_reads,
            "allocation_gate": 1,
            "write_gate": 1,
            **({"write_masks": word_size, "read_masks": n_reads * word_size} if masking else {}),
            "write_strengths": 1,
            "read_strengths": n_reads,
            **({"forward_exponents": n_reads, "backward_exponents": n_reads} if link_sharpening else {}),
            "write_vectors": word_size,
            "write_keys": word_size,
            "read_keys": n_reads * word_size,
            "read_mode": 3 * n_reads,
        }
        names, sizes = list(self.interface_sizes), list(self.interface_sizes.values())
        first_positive, first_linear = names.index("write_strengths"), names.index("write_vectors")
        groups = (slice(first_positive), slice(first_positive, first_linear), slice(first_linear, None))
        #: Names and sizes of the parts with a sigmoid, with softplus, and without an activation
        self.interface_groups = [(names[group], sizes[group]) for group in groups]
        self.interface = nn.Linear(input_size, sum(sizes))

    def forward(self, controls: th.Tensor, state: DNCState) -> DNCState:
        """
        Write, then read.

        :param controls: ``[B, input_size]``
        :param state: the state before this step; the controller's fields are passed on as they are
        :return: the state after this step
        """
        interface = self.split_interface(controls)
        retention = addressing.retention(state.read_weights, interface["free_gate"].unsqueeze(-1))
        usage = addressing.usage(state.usage, state.write_weights, retention)
        write_weights = self._write_weights(interface, state.memory, usage)
        memory = state.memory * retention.unsqueeze(-1) if self.deallocation else state.memory
        memory = addressing.erase_and_add(
            memory,
            write_weights.unsqueeze(1),
            interface["erase_vectors"].unsqueeze(1),
            interface["write_vectors"].unsqueeze(1),
        )
        link = addressing.temporal_link(state.link, state.precedence, write_weights)
        precedence = addressing.precedence(state.precedence, write_weights)
        read_weights = self._read_weights(interface, memory, link, state.read_weights)
        reads = addressing.read(memory, read_weights)
        return DNCState(state.hidden, state.cell, reads, memory, usage, link, precedence, read_weights, write_weights)

    def split_interface(self, controls: th.Tensor) -> dict[str, th.Tensor]:
        """
        Compute the interface vector, split it, and apply the activation of each part.

        :param controls: output of the controller, ``[..., input_size]``
        :return: for each name in ``interface_sizes``, ``[..., size]``
        """
        sizes_of_groups = [sum(sizes) for _, sizes in self.interface_groups]
        gates, positive, linear = self.interface(controls).split(sizes_of_groups, dim=-1)
        interface: dict[str, th.Tensor] = {}
        for (names, sizes), values in zip(self.interface_groups, (gates.sigmoid(), F.softplus(positive), linear), strict=True):
            interface |= zip(names, values.split(sizes, dim=-1), strict=True)
        return interface

    def _write_weights(self, interface: dict[str, th.Tensor], memory: th.Tensor, usage: th.Tensor) -> th.Tensor:
        """A gated mix of content lookup and allocation, ``[B, N]``; Graves et al. (2016), Methods."""
        content = self._content_weights(interface, "write", memory).squeeze(1)
        allocation = addressing.allocation_weights(usage)
        return interface["write_gate"] * th.lerp(content, allocation, interface["allocation_gate"])

    def _read_weights(
        self, interface: dict[str, th.Tensor], memory: th.Tensor, link: th.Tensor, previous: th.Tensor
    ) -> th.Tensor:
        """A mix of content lookup and of the slots written before and after those read last, ``[B, R, N]``."""
        content = self._content_weights(interface, "read", memory)
        after, before = addressing.directional_weights(link, previous)
        if self.link_sharpening:
            after = addressing.sharpen_links(after, 1 + interface["forward_exponents"].unsqueeze(-1))
            before = addressing.sharpen_links(before, 1 + interface["backward_exponents"].unsqueeze(-1))
        modes = interface["read_mode"].unflatten(-1, (self.n_reads, 3)).softmax(dim=-1)
        backward_mode, forward_mode, content_mode = modes.split(1, dim=-1)
        return backward_mode * before + forward_mode * after + content_mode * content

    def _content_weights(self, interface: dict[str, th.Tensor], head: str, memory: th.Tensor) -> th.Tensor:
        keys = interface[f"{head}_keys"].unflatten(-1, (-1, self.word_size))
        if self.masking:
            masks = interface[f"{head}_masks"].unflatten(-1, (-1, self.word_size))
            similarity = addressing.masked_cosine_similarity(keys, memory, masks)
        else:
            similarity = self.similarity(keys, memory)
        return addressing.content_weights(similarity, interface[f"{head}_strengths"].unsqueeze(-1))


class DNCCore(ExternalMemoryCore):
    """
    Differentiable neural computer: a controller with a memory that it can allocate, free, and walk in the order of writing.

    Graves et al. (2016), https://doi.org/10.1038/nature20101. At every step, also inside an unroll, the controller sees the
    vectors read at the step before.

    The state is ``2 hidden_size + n_slots (word_size + n_slots + n_reads + 3) + n_reads word_size`` floats per row: 816 with
    16 slots of 16, four read heads and a hidden size of 64; 19,520 with 128 slots.

    :param input_size: size F of an input vector
    :param hidden_size: size C of the controller
    :param n_slots: number N of slots
    :param word_size: size W of a slot
    :param n_reads: number R of read heads
    :param output_size: size D of the output, a layer over controller and reads; ``None`` means ``hidden_size``
    :param controller: ``"lstm"`` or ``"feedforward"``
    :param forget_bias: initial bias of the LSTM's forget gate
    :param masking: compare only those parts of the words that the controller selects (Csordás & Schmidhuber 2019, 3.1)
    :param deallocation: erase slots as they are freed (3.2)
    :param link_sharpening: sharpen the weights that follow the temporal links (3.3)
    :param reference_form: use cosine similarity exactly as DeepMind's code, for comparisons with it
    :param compiled: compile the steps of an unroll with ``torch.compile``. Needs a C++ compiler. The first update takes
        about a minute longer, later ones 0.6 of the time. PyTorch compiles a step for two or three sets of sizes per
        process, then warns and runs it uncompiled
    :raises ValueError: if a size is not positive, or the controller is unknown
    """

    state_class = DNCState
    weights_info = {
        "read": WeightsInfo(),
        "write": WeightsInfo(),
        "usage": WeightsInfo(is_distribution=False),
        "link": WeightsInfo(is_distribution=False, pair_label="slot written before"),
    }

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        n_slots: int = 16,
        word_size: int = 16,
        n_reads: int = 4,
        output_size: int | None = None,
        controller: str = "lstm",
        forget_bias: float = 1.0,
        masking: bool = False,
        deallocation: bool = False,
        link_sharpening: bool = False,
        reference_form: bool = False,
        compiled: bool = False,
    ) -> None:
        check_sizes(self, n_slots=n_slots, word_size=word_size, n_reads=n_reads)
        super().__init__(input_size, hidden_size, n_reads * word_size, output_size, controller, forget_bias, compiled)
        switches = (masking, deallocation, link_sharpening, reference_form)
        self.access = MemoryAccess(hidden_size, n_slots, word_size, n_reads, *switches)

    def initial_state(self, batch_size: int) -> DNCState:
        n_slots, word_size, n_reads = self.access.n_slots, self.access.word_size, self.access.n_reads

        def zeros(*shape: int) -> th.Tensor:
            return self.output.weight.new_zeros(batch_size, *shape)

        hidden_size, cell_size = self.controller.state_sizes
        return DNCState(
            hidden=zeros(hidden_size),
            cell=zeros(cell_size),
            reads=zeros(n_reads, word_size),
            memory=zeros(n_slots, word_size),
            usage=zeros(n_slots),
            link=zeros(n_slots, n_slots),
            precedence=zeros(n_slots),
            read_weights=zeros(n_reads, n_slots),
            write_weights=zeros(n_slots),
        )

    @property
    def interface_layer(self) -> nn.Linear:
        return self.access.interface

    def custom_backward(self) -> CustomBackward | None:
        return DNC_BACKWARD if self.controller.is_lstm and self.access.is_plain else None

    def step(self, projected: th.Tensor, state: DNCState) -> tuple[th.Tensor, DNCState]:
        controls, hidden, cell = self.controller(projected, state.reads.flatten(1), state.hidden, state.cell)
        after = self.access(controls, state._replace(hidden=hidden, cell=cell))
        return th.cat((controls, after.reads.flatten(1)), dim=-1), after

    def memory_weights(self, inputs: th.Tensor, state: CoreState) -> dict[str, th.Tensor]:
        _, after = self(inputs, state)
        return {
            "read": after.read_weights,
            "write": after.write_weights.unsqueeze(1),
            "usage": after.usage.unsqueeze(1),
            "link": after.link,
        }


# The backward pass of the step; equations are those of Graves et al. (2016), Methods


class SavedDNC(NamedTuple):
    """Intermediate values of T steps."""

    controller: backward.SavedController
    write_content: backward.SavedContent  # of the memory before the step
    read_content: backward.SavedContent  # of the memory after the step
    allocation: backward.SavedAllocation
    before: DNCState  # each [T, B, ...]
    after: DNCState
    interface_derivatives: th.Tensor  # of the activations of the interface vector's parts, [T, B, I]
    usage_derivatives: th.Tensor  # of the usage w.r.t. the usage before, [T, B, N]
    factor_derivatives: th.Tensor  # of the usage w.r.t. each read head's factor in the retention, [T, B, R, N]
    free_gates: th.Tensor  # [T, B, R, 1]
    write_gate: th.Tensor  # [T, B, 1]
    allocation_gate: th.Tensor  # [T, B, 1]
    mixed_weights: th.Tensor  # the write weights before the write gate, [T, B, N]
    allocation_minus_content: th.Tensor  # allocation weights minus content weights, [T, B, N]
    erase: th.Tensor  # [T, B, W]
    add: th.Tensor  # [T, B, W]
    modes: th.Tensor  # shares of backward, forward and content, [T, B, R, 3, 1]
    directions: th.Tensor  # backward, forward and content weights, [T, B, R, 3, N]


def recompute(core: DNCCore, projected: th.Tensor, states: DNCState) -> SavedDNC:
    """
    Recompute T steps; see ``CustomBackward``.

    :param core: the core
    :param projected: contribution of the inputs to the gates, ``[T, B, 4 C]``
    :param states: before, between and after the steps, ``[T + 1, B, ...]``
    :return: values for T steps
    """
    access = core.access
    before, after = (DNCState._make(field[steps] for field in states) for steps in (slice(-1), slice(1, None)))
    interface = access.split_interface(after.hidden)
    keys = {head: interface[f"{head}_keys"].unflatten(-1, (-1, access.word_size)) for head in ("write", "read")}
    strengths = {head: interface[f"{head}_strengths"].unsqueeze(-1) for head in ("write", "read")}
    modes = interface["read_mode"].unflatten(-1, (access.n_reads, 3)).softmax(dim=-1)
    sigmoids, softpluses, _ = (names for names, _ in access.interface_groups)
    derivatives = {name: th.ones_like(part) for name, part in interface.items()}  # step_backward goes through the softmax
    derivatives |= {name: interface[name] * (1 - interface[name]) for name in sigmoids}
    derivatives |= {name: -th.expm1(-interface[name]) for name in softpluses}  # 1 - e^-y for y = softplus(x)

    # u = (u + w - u w) psi with psi = prod_r (1 - f_r w_r)
    free_gates = interface["free_gate"].unsqueeze(-1)
    factors = (1 - free_gates * before.read_weights).unbind(dim=2)
    ones = th.ones_like(before.usage)
    other_heads_retention = [reduce(th.mul, factors[:head] + factors[head + 1 :], ones) for head in range(access.n_reads)]
    before_freeing = th.lerp(before.usage, ones, before.write_weights)

    # w = g_w (g_a a + (1 - g_a) c)
    write_content = backward.recompute_content(before.memory, keys["write"], strengths["write"])
    allocation = backward.recompute_allocation(after.usage)
    content_weights = write_content.weights.squeeze(2)

    read_content = backward.recompute_content(after.memory, keys["read"], strengths["read"])
    forward_weights, backward_weights = addressing.directional_weights(after.link, before.read_weights)
    return SavedDNC(
        controller=backward.recompute_controller(core.controller, projected, states.reads, states.hidden, states.cell),
        write_content=write_content,
        read_content=read_content,
        allocation=allocation,
        before=before,
        after=after,
        interface_derivatives=th.cat([derivatives[name] for name in access.interface_sizes], dim=-1),
        usage_derivatives=reduce(th.mul, factors, 1 - before.write_weights),
        factor_derivatives=before_freeing.unsqueeze(2) * th.stack(other_heads_retention, dim=2),
        free_gates=free_gates,
        write_gate=interface["write_gate"],
        allocation_gate=interface["allocation_gate"],
        mixed_weights=th.lerp(content_weights, allocation.weights, interface["allocation_gate"]),
        allocation_minus_content=allocation.weights - content_weights,
        erase=interface["erase_vectors"],
        add=interface["write_vectors"],
        modes=modes.unsqueeze(-1),
        directions=th.stack((backward_weights, forward_weights, read_content.weights), dim=3),
    )


def step_backward(
    saved: SavedDNC, d_features: th.Tensor, d_after: DNCState, recurrent_weight: th.Tensor, interface_weight: th.Tensor
) -> tuple[DNCState, th.Tensor, th.Tensor]:
    """
    Go back by one step; see ``CustomBackward``.

    :param saved: of this step
    :param d_features: ``[B, C + R W]``
    :param d_after: with respect to the state after the step
    :param recurrent_weight: ``[4 C, R W + C]``
    :param interface_weight: ``[I, C]``
    :return: gradients with respect to the state before the step, to the controller's gates ``[B, 4 C]`` and to the interface
        vector ``[B, I]``, the last two before their activations
    """
    batch_size, hidden_size = d_after.hidden.shape
    before, after = saved.before, saved.after
    d_hidden = d_after.hidden + d_features[:, :hidden_size]
    d_reads = d_after.reads + d_features[:, hidden_size:].view_as(d_after.reads)

    # Reading: a mix of the slots written before and after those read last, and of content lookup
    d_read_weights = d_after.read_weights + d_reads @ after.memory.transpose(-1, -2)
    d_memory = d_after.memory + after.read_weights.transpose(-1, -2) @ d_reads
    d_modes = (saved.directions @ d_read_weights.unsqueeze(-1)).squeeze(-1)
    d_modes = backward.softmax_backward(saved.modes.squeeze(-1), d_modes)
    d_backward, d_forward, d_content = (saved.modes * d_read_weights.unsqueeze(2)).unbind(dim=2)
    d_read_keys, d_read_strengths, d_memory = backward.content_backward(saved.read_content, d_content, d_memory)
    # f = L w and b = L^T w
    d_previous_read_weights = d_backward @ after.link.transpose(-1, -2) + d_forward @ after.link
    d_link = d_forward.transpose(-1, -2) @ before.read_weights + before.read_weights.transpose(-1, -2) @ d_backward

    # Links and precedence, then the write
    d_link, d_precedence, d_write_weights = backward.linkage_backward(
        before.link, before.precedence, after.write_weights, d_after.link + d_link, d_after.precedence
    )
    write, d_allocation, d_memory = _write_backward(saved, d_write_weights + d_after.write_weights, d_memory)

    # The usage, and each read head's factor 1 - f w in the retention; no gradient flows through the write weights here
    d_usage = d_after.usage + backward.allocation_backward(saved.allocation, d_allocation)
    d_factors = d_usage.unsqueeze(1) * saved.factor_derivatives
    d_free_gate = -(d_factors * before.read_weights).sum(dim=-1)
    d_previous_read_weights = th.addcmul(d_previous_read_weights, d_factors, saved.free_gates, value=-1)
    d_usage = d_usage * saved.usage_derivatives

    # The interface vector, its parts in their order, and the LSTM
    d_gate_parts = (write.d_erase, d_free_gate, write.d_allocation_gate, write.d_gate)
    d_parts = (*d_gate_parts, write.d_strengths, d_read_strengths, write.d_add, write.d_keys, d_read_keys, d_modes)
    d_interface = th.cat([d_part.reshape(batch_size, -1) for d_part in d_parts], dim=-1) * saved.interface_derivatives
    d_reads, d_hidden, d_cell, d_gates = backward.controller_backward(
        saved.controller, th.addmm(d_hidden, d_interface, interface_weight), d_after.cell, recurrent_weight
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
        write_weights=th.zeros_like(before.write_weights),  # only the usage depends on them, and not its gradient
    )
    return d_before, d_gates, d_interface


class WriteGradients(NamedTuple):
    """Gradients with respect to the interface of the write head."""

    d_erase: th.Tensor  # [B, W]
    d_allocation_gate: th.Tensor  # [B, 1]
    d_gate: th.Tensor  # [B, 1]
    d_strengths: th.Tensor  # [B, 1, 1]
    d_add: th.Tensor  # [B, W]
    d_keys: th.Tensor  # [B, 1, W]


def _write_backward(
    saved: SavedDNC, d_write_weights: th.Tensor, d_memory: th.Tensor
) -> tuple[WriteGradients, th.Tensor, th.Tensor]:
    """
    Go back through the write.

    :param saved: of this step
    :param d_write_weights: gradient from links and precedence, ``[B, N]``
    :param d_memory: after the step, ``[B, N, W]``
    :return: gradients with respect to the interface, to the allocation weights, and to the memory before the step
    """
    write_weights = saved.after.write_weights
    d_add = (write_weights.unsqueeze(-2) @ d_memory).squeeze(-2)
    d_write_weights = d_write_weights + (d_memory @ saved.add.unsqueeze(-1)).squeeze(-1)
    d_memory, d_weights_of_erase, d_erase = backward.erase_with_head_backward(
        saved.before.memory, write_weights, saved.erase, d_memory
    )
    d_write_weights = d_write_weights + d_weights_of_erase
    # The write weights, a gated mix of allocation and content weights
    d_gate = (d_write_weights * saved.mixed_weights).sum(dim=-1, keepdim=True)
    d_mixed = d_write_weights * saved.write_gate
    d_allocation_gate = (d_mixed * saved.allocation_minus_content).sum(dim=-1, keepdim=True)
    d_allocation = d_mixed * saved.allocation_gate
    d_content = (d_mixed - d_allocation).unsqueeze(1)
    d_keys, d_strengths, d_memory = backward.content_backward(saved.write_content, d_content, d_memory)
    return WriteGradients(d_erase, d_allocation_gate, d_gate, d_strengths, d_add, d_keys), d_allocation, d_memory


DNC_BACKWARD = CustomBackward(recompute, step_backward)
