"""The neural Turing machine: its state, its step, and the backward pass of the step."""

from __future__ import annotations

from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.common.checks import check_whole
from sb3_attn.common.core_state import CoreState
from sb3_attn.common.former_names import FormerParameterNames
from sb3_attn.memory.core import WeightsInfo, check_finite, check_sizes
from sb3_attn.memory.external import addressing, backward, reference_forms
from sb3_attn.memory.external.core import CustomBackward, ExternalMemoryCore

#: Value of every entry of a constant initial memory, the best of those that Collier & Beel (2018) compared
INITIAL_MEMORY = 1e-6


class NTMState(NamedTuple):
    """State of controller, memory and heads. C is 0 with a feed-forward controller."""

    hidden: th.Tensor  # [B, C]
    cell: th.Tensor  # [B, C]
    memory: th.Tensor  # [B, N, W]
    reads: th.Tensor  # [B, R, W]
    read_weights: th.Tensor  # [B, R, N]
    write_weights: th.Tensor  # [B, H, N]


class HeadParameters(NamedTuple):
    """The interface vector in parts. All read heads come before all write heads."""

    keys: th.Tensor  # [B, R + H, W]
    add: th.Tensor  # [B, H, W]
    shifts: th.Tensor  # [B, R + H, 2 k + 1]
    strengths: th.Tensor  # [B, R + H, 1]
    exponents: th.Tensor  # [B, R + H, 1]
    gates: th.Tensor  # [B, R + H, 1]
    erase: th.Tensor  # [B, H, W]


class NTMCore(FormerParameterNames, ExternalMemoryCore):
    """
    Neural Turing machine: a controller that reads and writes a memory by content and by location.

    Graves, Wayne & Danihelka (2014), https://arxiv.org/abs/1410.5401. Read heads read the memory as it was before this
    step's write. The paper does not say where the heads start. Here all start at the first slot: this gives location-based
    writing a place to begin, and makes the slots of a constant memory distinguishable.

    The state is ``2 hidden_size + n_slots word_size + n_read_heads word_size + (n_read_heads + n_write_heads) n_slots``
    floats per row: 3,036 with 128 slots of 20 and a hidden size of 100.

    :param input_size: size F of an input vector
    :param hidden_size: size C of the controller
    :param n_slots: number N of slots
    :param word_size: size W of a slot
    :param n_read_heads: number R of read heads
    :param n_write_heads: number H of write heads
    :param shift_range: largest number of slots k by which a head moves in one step
    :param output_size: size D of the output, a layer over controller and reads; ``None`` means ``hidden_size``
    :param controller: ``"lstm"`` or ``"feedforward"``
    :param forget_bias: initial bias of the LSTM's forget gate
    :param gate_bias: added to the initial biases of the gates between content and location (eq. 7). Negative values make the
        heads start with location-based addressing, so that still meaningless keys do not spread them over all slots
    :param memory_initialisation: ``"constant"``, ``"random"`` (drawn once, for all episodes) or ``"learned"``
    :param reference_form: use cosine similarity and sharpening exactly as the implementation that most others copy, for
        comparisons with it. Their gradients are not finite everywhere
    :param compiled: compile the steps of an unroll with ``torch.compile``. Needs a C++ compiler. The first update takes
        about 30 s longer, later ones 0.6 of the time. PyTorch compiles a step for two or three sets of sizes per
        process, then warns and runs it uncompiled
    :raises ValueError: if a size is not positive, or a name is unknown
    """

    state_class = NTMState
    weights_info = {"read": WeightsInfo(), "write": WeightsInfo()}
    former_parameters = {"heads": "interface"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        n_slots: int = 32,
        word_size: int = 16,
        n_read_heads: int = 1,
        n_write_heads: int = 1,
        shift_range: int = 1,
        output_size: int | None = None,
        controller: str = "lstm",
        forget_bias: float = 1.0,
        gate_bias: float = 0.0,
        memory_initialisation: str = "constant",
        reference_form: bool = False,
        compiled: bool = False,
    ) -> None:
        check_sizes(self, n_slots=n_slots, word_size=word_size, n_read_heads=n_read_heads, n_write_heads=n_write_heads)
        check_finite(self, gate_bias=gate_bias)
        sizes = (n_slots, word_size, n_read_heads, n_write_heads)
        n_slots, word_size, n_read_heads, n_write_heads = map(int, sizes)  # th.split refuses NumPy's integers
        super().__init__(input_size, hidden_size, n_read_heads * word_size, output_size, controller, forget_bias, compiled)
        max_shift = (n_slots - 1) // 2
        check_whole("shift_range", shift_range)
        if shift_range < 0 or (shift_range > max_shift and not reference_form):
            raise ValueError(
                f"shift_range={shift_range} does not fit n_slots={n_slots}; give 0 to {max_shift}, so that no slot "
                "is reached both ways round."
            )
        self.n_slots = n_slots
        self.word_size = word_size
        self.n_read_heads = n_read_heads
        self.n_write_heads = n_write_heads
        self.n_heads = n_read_heads + n_write_heads
        self.reference_form = reference_form
        #: Sizes of the parts of the interface vector, in its order; parts with the same activation are neighbours
        self.interface_sizes = dict(
            keys=self.n_heads * word_size,
            add=n_write_heads * word_size,
            shifts=self.n_heads * (2 * shift_range + 1),
            strengths=self.n_heads,
            exponents=self.n_heads,
            gates=self.n_heads,
            erase=n_write_heads * word_size,
        )
        self.interface = nn.Linear(hidden_size, sum(self.interface_sizes.values()))
        with th.no_grad():
            biases = self.interface.bias.split(list(self.interface_sizes.values()))
            dict(zip(self.interface_sizes, biases, strict=True))["gates"].add_(gate_bias)
        memory = th.full((n_slots, word_size), INITIAL_MEMORY)
        if memory_initialisation == "constant":
            self.register_buffer("initial_memory", memory)
        elif memory_initialisation == "random":
            self.register_buffer("initial_memory", th.randn_like(memory) * word_size**-0.5)
        elif memory_initialisation == "learned":
            self.initial_memory = nn.Parameter(th.randn_like(memory) * word_size**-0.5)
        else:
            raise ValueError(
                f"memory_initialisation={memory_initialisation!r} is unknown; choose 'constant', 'random' or 'learned'."
            )

    def initial_state(self, batch_size: int) -> NTMState:
        hidden, cell = (self.initial_memory.new_zeros(batch_size, size) for size in self.controller.state_sizes)
        memory = self.initial_memory.expand(batch_size, -1, -1)
        reads = memory.new_zeros(batch_size, self.n_read_heads, self.word_size)
        weights = memory.new_zeros(batch_size, self.n_heads, self.n_slots)
        weights[..., 0] = 1.0
        return NTMState(hidden, cell, memory, reads, *self._split_heads(weights))

    @property
    def interface_layer(self) -> nn.Linear:
        return self.interface

    def custom_backward(self) -> CustomBackward | None:
        return NTM_BACKWARD if self.controller.is_lstm and not self.reference_form else None

    def step(self, projected: th.Tensor, state: NTMState) -> tuple[th.Tensor, NTMState]:
        controls, hidden, cell = self.controller(projected, state.reads.flatten(1), state.hidden, state.cell)
        heads = self.split_interface(controls)
        previous = th.cat((state.read_weights, state.write_weights), dim=1)
        read_weights, write_weights = self._split_heads(self._address(heads, state.memory, previous))
        reads = addressing.read(state.memory, read_weights)
        memory = addressing.erase_and_add(state.memory, write_weights, heads.erase, heads.add)
        features = th.cat((controls, reads.flatten(1)), dim=-1)
        return features, NTMState(hidden, cell, memory, reads, read_weights, write_weights)

    def split_interface(self, controls: th.Tensor) -> HeadParameters:
        """
        Compute the interface vector, split it, and apply the activation of each part.

        :param controls: output of the controller, ``[..., C]``
        :return: parts with the leading axes of ``controls``
        """
        sizes = self.interface_sizes
        linear, shifts, positive, gates = self.interface(controls).split(
            (
                sizes["keys"] + sizes["add"],
                sizes["shifts"],
                sizes["strengths"] + sizes["exponents"],
                sizes["gates"] + sizes["erase"],
            ),
            dim=-1,
        )
        keys, add = linear.unflatten(-1, (-1, self.word_size)).split((self.n_heads, self.n_write_heads), dim=-2)
        strengths, exponents = F.softplus(positive).unsqueeze(-1).split(self.n_heads, dim=-2)
        gates, erase = gates.sigmoid().split((self.n_heads, sizes["erase"]), dim=-1)
        return HeadParameters(
            keys,
            add,
            shifts.unflatten(-1, (self.n_heads, -1)).softmax(dim=-1),
            strengths,
            1 + exponents,
            gates.unsqueeze(-1),
            erase.unflatten(-1, (-1, self.word_size)),
        )

    def _address(self, heads: HeadParameters, memory: th.Tensor, previous: th.Tensor) -> th.Tensor:
        """Weights of all heads, ``[B, R + H, N]``; Graves et al. (2014), figure 2."""
        form = reference_forms if self.reference_form else addressing
        content = addressing.content_weights(form.cosine_similarity(heads.keys, memory), heads.strengths)
        weights = addressing.interpolate(content, previous, heads.gates)
        return form.sharpen(addressing.circular_shift(weights, heads.shifts), heads.exponents)

    def _split_heads(self, weights: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        read_weights, write_weights = weights.split((self.n_read_heads, self.n_write_heads), dim=1)
        return read_weights, write_weights

    def memory_weights(self, inputs: th.Tensor, state: CoreState) -> dict[str, th.Tensor]:
        _, after = self(inputs, state)
        return {"read": after.read_weights, "write": after.write_weights}


# The backward pass of the step; equations are those of Graves et al. (2014)


class SavedNTM(NamedTuple):
    """Intermediate values of T steps."""

    controller: backward.SavedController
    content: backward.SavedContent  # of the memory before the step
    interface_derivatives: th.Tensor  # of the activations of the interface vector's parts, [T, B, I]
    gates: th.Tensor  # [T, B, R + H, 1]
    content_minus_previous: th.Tensor  # content weights minus the weights of the step before, [T, B, R + H, N]
    shifts: th.Tensor  # [T, B, R + H, 2 k + 1]
    shifted_copies: th.Tensor  # the interpolated weights, moved by each shift, [T, B, R + H, 2 k + 1, N]
    logarithms: th.Tensor  # of the shifted weights, [T, B, R + H, N]
    score_derivatives: th.Tensor  # of exponent * logarithm w.r.t. the shifted weights, [T, B, R + H, N]
    weights: th.Tensor  # [T, B, R + H, N]
    erase: th.Tensor  # [T, B, H, W]
    add: th.Tensor  # [T, B, H, W]


def recompute(core: NTMCore, projected: th.Tensor, states: NTMState) -> SavedNTM:
    """
    Recompute T steps; see ``CustomBackward``.

    :param core: the core
    :param projected: contribution of the inputs to the gates, ``[T, B, 4 C]``
    :param states: before, between and after the steps, ``[T + 1, B, ...]``
    :return: values for T steps
    """
    heads = core.split_interface(states.hidden[1:])
    interface_derivatives = (
        th.ones_like(heads.keys),
        th.ones_like(heads.add),
        th.ones_like(heads.shifts),  # step_backward goes through their softmax
        # y = softplus(x) = log(1 + e^x) has the derivative 1 - e^-y
        -th.expm1(-heads.strengths),
        -th.expm1(1 - heads.exponents),
        heads.gates * (1 - heads.gates),
        heads.erase * (1 - heads.erase),
    )
    content = backward.recompute_content(states.memory[:-1], heads.keys, heads.strengths)
    weights = th.cat((states.read_weights, states.write_weights), dim=2)
    interpolated = addressing.interpolate(content.weights, weights[:-1], heads.gates)
    shifted_copies = addressing.shifted_copies(interpolated, heads.shifts.shape[-1] // 2)
    shifted = (heads.shifts.unsqueeze(-2) @ shifted_copies).squeeze(-2) + addressing.LOG_EPS
    return SavedNTM(
        controller=backward.recompute_controller(core.controller, projected, states.reads, states.hidden, states.cell),
        content=content,
        interface_derivatives=th.cat([part.flatten(2) for part in interface_derivatives], dim=-1),
        gates=heads.gates,
        content_minus_previous=content.weights - weights[:-1],
        shifts=heads.shifts,
        shifted_copies=shifted_copies,
        logarithms=shifted.log(),
        score_derivatives=heads.exponents / shifted,
        weights=weights[1:],
        erase=heads.erase,
        add=heads.add,
    )


def step_backward(
    saved: SavedNTM, d_features: th.Tensor, d_after: NTMState, recurrent_weight: th.Tensor, interface_weight: th.Tensor
) -> tuple[NTMState, th.Tensor, th.Tensor]:
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
    d_hidden = d_after.hidden + d_features[:, :hidden_size]
    d_reads = d_after.reads + d_features[:, hidden_size:].view_as(d_after.reads)
    n_heads = (d_after.read_weights.shape[1], d_after.write_weights.shape[1])
    read_weights, write_weights = saved.weights.split(n_heads, dim=1)

    # Eqs. (2) to (4): the heads read, then write
    memory = saved.content.memory
    d_memory, d_write_weights, d_erase, d_add = backward.erase_and_add_backward(
        memory, write_weights, saved.erase, saved.add, d_after.memory
    )
    d_memory = d_memory + read_weights.transpose(-1, -2) @ d_reads
    d_read_weights = d_after.read_weights + d_reads @ memory.transpose(-1, -2)
    d_weights = th.cat((d_read_weights, d_after.write_weights + d_write_weights), dim=1)
    # Eq. (9): sharpening is a softmax of scores, exponent * logarithm
    d_scores = backward.softmax_backward(saved.weights, d_weights)
    d_exponents = (d_scores * saved.logarithms).sum(dim=-1)
    d_shifted = d_scores * saved.score_derivatives
    # Eq. (8): shifting back is shifting by the mirrored shifts
    d_shifts = backward.softmax_backward(saved.shifts, (saved.shifted_copies @ d_shifted.unsqueeze(-1)).squeeze(-1))
    d_interpolated = addressing.circular_shift(d_shifted, saved.shifts.flip(-1))
    # Eq. (7)
    d_content = d_interpolated * saved.gates
    d_gates = (d_interpolated * saved.content_minus_previous).sum(dim=-1)
    d_previous = (d_interpolated - d_content).split(n_heads, dim=1)
    # Eqs. (5) and (6)
    d_keys, d_strengths, d_memory = backward.content_backward(saved.content, d_content, d_memory)

    # The interface vector, its parts in their order, and the LSTM
    d_parts = (d_keys, d_add, d_shifts, d_strengths, d_exponents, d_gates, d_erase)
    d_interface = th.cat([d_part.reshape(batch_size, -1) for d_part in d_parts], dim=-1) * saved.interface_derivatives
    d_reads, d_hidden, d_cell, d_lstm_gates = backward.controller_backward(
        saved.controller, th.addmm(d_hidden, d_interface, interface_weight), d_after.cell, recurrent_weight
    )
    d_before = NTMState(d_hidden, d_cell, d_memory, d_reads.view_as(d_after.reads), *d_previous)
    return d_before, d_lstm_gates, d_interface


NTM_BACKWARD = CustomBackward(recompute, step_backward)
