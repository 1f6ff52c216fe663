"""The neural Turing machine."""

from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.common.core_state import CoreState
from sb3_attn.memory.core import WeightsInfo
from sb3_attn.memory.external import addressing, reference_forms
from sb3_attn.memory.external.controlled import ControlledCore
from sb3_attn.memory.external.gradients import WrittenGradient
from sb3_attn.memory.external.ntm_gradient import NTM_GRADIENT
from sb3_attn.memory.external.ntm_state import NTMState

#: Of a constant initial memory; the best of those that Collier & Beel (2018) compared
CONSTANT = 1e-6


class HeadInstructions(NamedTuple):
    """What the controller tells the heads, all read heads before all write heads."""

    keys: th.Tensor  # [B, R + H, W]
    add: th.Tensor  # [B, H, W]
    shifts: th.Tensor  # [B, R + H, 2 k + 1]
    strengths: th.Tensor  # [B, R + H, 1]
    exponents: th.Tensor  # [B, R + H, 1]
    gates: th.Tensor  # [B, R + H, 1]
    erase: th.Tensor  # [B, H, W]


class NTMCore(ControlledCore):
    """
    Neural Turing machine: a controller that reads and writes a memory by content and by location.

    Graves, Wayne & Danihelka (2014), https://arxiv.org/abs/1410.5401. Read heads read the memory as it was before this
    step's write. The paper does not say where the heads start; here all are at the first slot, so that what is written by
    location has a place to begin and the slots of a constant memory can be told apart.

    The state is ``2 hidden_size + n_slots word_size + n_read_heads word_size + (n_read_heads + n_write_heads) n_slots``
    floats per row: 3,036 with 128 slots of 20 and a hidden size of 100.

    :param input_size: size F of an input vector
    :param hidden_size: size C of the controller
    :param n_slots: number N of slots
    :param word_size: size W of a slot
    :param n_read_heads: number R of read heads
    :param n_write_heads: number H of write heads
    :param shift_range: by how many slots k a head moves at most in one step
    :param output_size: size D of the output, a layer over controller and reads; ``None`` means ``hidden_size``
    :param controller: ``"lstm"`` or ``"feedforward"``
    :param forget_bias: of the LSTM's forget gate
    :param gate_bias: added to the initial biases of the gates between content and location (eq. 7). Below 0 the heads begin
        with location, and contents that say nothing yet do not spread them over all slots
    :param memory_initialisation: ``"constant"``, ``"random"`` (drawn once, for all episodes) or ``"learned"``
    :param reference_form: cosine similarity, sharpening and initial weights (0) exactly as in the implementation that most
        others copy, for comparisons with it. Its gradients are not finite everywhere
    :param compiled: compile the steps of an unroll with ``torch.compile``: the first update takes half a minute longer and a
        C++ compiler, the others 0.6 of the time. PyTorch compiles a step for two or three sets of sizes in one process; for
        more it says so, and does not
    :raises ValueError: if a size is not positive, or a name is unknown
    """

    state_class = NTMState
    weights_info = {"read": WeightsInfo(), "write": WeightsInfo()}

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
        self._check_sizes(n_slots=n_slots, word_size=word_size, n_read_heads=n_read_heads, n_write_heads=n_write_heads)
        self._check_finite(gate_bias=gate_bias)
        sizes = (n_slots, word_size, n_read_heads, n_write_heads)
        n_slots, word_size, n_read_heads, n_write_heads = map(int, sizes)  # th.split refuses NumPy's integers
        super().__init__(input_size, hidden_size, n_read_heads * word_size, output_size, controller, forget_bias, compiled)
        farthest = (n_slots - 1) // 2
        if not isinstance(shift_range, int) or shift_range < 0 or (shift_range > farthest and not reference_form):
            raise ValueError(
                f"shift_range={shift_range!r} does not fit n_slots={n_slots}; give 0 to {farthest}, so that no slot "
                "is reached both ways round."
            )
        self.n_slots = n_slots
        self.word_size = word_size
        self.n_read_heads = n_read_heads
        self.n_write_heads = n_write_heads
        self.n_heads = n_read_heads + n_write_heads
        self.reference_form = reference_form
        #: What the heads are told; what goes through the same function lies side by side
        self.head_sizes = dict(
            keys=self.n_heads * word_size,
            add=n_write_heads * word_size,
            shifts=self.n_heads * (2 * shift_range + 1),
            strengths=self.n_heads,
            exponents=self.n_heads,
            gates=self.n_heads,
            erase=n_write_heads * word_size,
        )
        self.heads = nn.Linear(hidden_size, sum(self.head_sizes.values()))
        with th.no_grad():
            biases = dict(zip(self.head_sizes, self.heads.bias.split(list(self.head_sizes.values())), strict=True))
            biases["gates"].add_(gate_bias)
        memory = th.full((n_slots, word_size), CONSTANT)
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
    def instructions(self) -> nn.Linear:
        return self.heads

    def written_gradient(self) -> WrittenGradient | None:
        return NTM_GRADIENT if self.controller.is_lstm and not self.reference_form else None

    def step(self, projected: th.Tensor, state: NTMState) -> tuple[th.Tensor, NTMState]:
        features, hidden, cell = self.controller(projected, state.reads.flatten(1), state.hidden, state.cell)
        told = self.tell_heads(features)
        previous = th.cat((state.read_weights, state.write_weights), dim=1)
        read_weights, write_weights = self._split_heads(self._address(told, state.memory, previous))
        reads = addressing.read(state.memory, read_weights)
        memory = addressing.erase_and_add(state.memory, write_weights, told.erase, told.add)
        features = th.cat((features, reads.flatten(1)), dim=-1)
        return features, NTMState(hidden, cell, memory, reads, read_weights, write_weights)

    def tell_heads(self, controls: th.Tensor) -> HeadInstructions:
        """
        What the heads are to do.

        :param controls: from the controller, ``[..., C]``
        :return: without leading axes for ``[C]``, with the same ones otherwise
        """
        sizes = self.head_sizes
        linear, shifts, positive, gates = self.heads(controls).split(
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
        return HeadInstructions(
            keys,
            add,
            shifts.unflatten(-1, (self.n_heads, -1)).softmax(dim=-1),
            strengths,
            1 + exponents,
            gates.unsqueeze(-1),
            erase.unflatten(-1, (-1, self.word_size)),
        )

    def _address(self, told: HeadInstructions, memory: th.Tensor, previous: th.Tensor) -> th.Tensor:
        """The weights of all heads, figure 2 of Graves et al. (2014), ``[B, R + H, N]``."""
        form = reference_forms if self.reference_form else addressing
        content = addressing.content_weights(form.cosine_similarity(told.keys, memory), told.strengths)
        weights = addressing.interpolate(content, previous, told.gates)
        return form.sharpen(addressing.circular_shift(weights, told.shifts), told.exponents)

    def _split_heads(self, weights: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        read_weights, write_weights = weights.split((self.n_read_heads, self.n_write_heads), dim=1)
        return read_weights, write_weights

    def memory_weights(self, inputs: th.Tensor, state: CoreState) -> dict[str, th.Tensor]:
        _, after = self(inputs, state)
        return {"read": after.read_weights, "write": after.write_weights}
