"""The differentiable neural computer."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.common.core_state import CoreState
from sb3_attn.memory.core import WeightsInfo
from sb3_attn.memory.external import addressing, reference_forms
from sb3_attn.memory.external.controlled import ControlledCore
from sb3_attn.memory.external.dnc_gradient import DNC_GRADIENT
from sb3_attn.memory.external.dnc_state import AccessState, DNCState
from sb3_attn.memory.external.gradients import WrittenGradient


class MemoryAccess(nn.Module):
    """
    One write head and R read heads on a memory that knows which slots are free and in which order they were written.

    Graves et al. (2016), Methods, as in DeepMind's code: strengths by softplus, no other function on keys and write vectors.

    :param input_size: size of the controls
    :param n_slots: number N of slots
    :param word_size: size W of a slot
    :param n_reads: number R of read heads
    :param masking: compare only those parts of the words that the controller asks for (Csordás & Schmidhuber 2019, 3.1)
    :param deallocation: erase what is freed (3.2)
    :param link_sharpening: sharpen where the temporal links point to (3.3)
    :param reference_form: cosine similarity exactly as in DeepMind's code, for comparisons with it
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
        self.is_plain = not (masking or deallocation or link_sharpening or reference_form)
        self.similarity = reference_forms.dnc_cosine_similarity if reference_form else addressing.cosine_similarity
        #: Sizes of the parts of the interface, in the order of its rows; those through a sigmoid first, then softplus
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
        runs = (slice(first_positive), slice(first_positive, first_linear), slice(first_linear, None))
        #: Names and sizes of the parts that go through a sigmoid, through softplus, and that stay as they are
        self.interface_runs = [(names[run], sizes[run]) for run in runs]
        self.interface = nn.Linear(input_size, sum(sizes))

    def initial_state(self, batch_size: int) -> AccessState:
        """An empty memory; all fields are 0."""

        def zeros(*shape: int) -> th.Tensor:
            return self.interface.weight.new_zeros(batch_size, *shape)

        slots = self.n_slots
        return AccessState(
            zeros(slots, self.word_size),
            zeros(slots),
            zeros(slots, slots),
            zeros(slots),
            zeros(self.n_reads, slots),
            zeros(slots),
        )

    def forward(self, controls: th.Tensor, state: AccessState) -> tuple[th.Tensor, AccessState]:
        """
        Write, then read.

        :param controls: ``[B, input_size]``
        :param state: before this step
        :return: what was read ``[B, R, W]``, and the state after this step
        """
        told = self.tell(controls)
        retained = addressing.retention(state.read_weights, told["free_gate"].unsqueeze(-1))
        usage = addressing.usage(state.usage, state.write_weights, retained)
        write_weights = self._write_weights(told, state.memory, usage)
        memory = state.memory * retained.unsqueeze(-1) if self.deallocation else state.memory
        memory = addressing.erase_and_add(
            memory, write_weights.unsqueeze(1), told["erase_vectors"].unsqueeze(1), told["write_vectors"].unsqueeze(1)
        )
        link = addressing.temporal_link(state.link, state.precedence, write_weights)
        precedence = addressing.precedence(state.precedence, write_weights)
        read_weights = self._read_weights(told, memory, link, state.read_weights)
        after = AccessState(memory, usage, link, precedence, read_weights, write_weights)
        return addressing.read(memory, read_weights), after

    def tell(self, controls: th.Tensor) -> dict[str, th.Tensor]:
        """
        The interface vector in parts, each through its function.

        :param controls: from the controller, ``[..., input_size]``
        :return: by the names in ``interface_sizes``, ``[..., size]``
        """
        gates, positive, linear = self.interface(controls).split([sum(sizes) for _, sizes in self.interface_runs], dim=-1)
        told: dict[str, th.Tensor] = {}
        values_of_runs = (gates.sigmoid(), F.softplus(positive), linear)
        for (names, sizes), values in zip(self.interface_runs, values_of_runs, strict=True):
            told |= zip(names, values.split(sizes, dim=-1), strict=True)
        return told

    def _write_weights(self, told: dict[str, th.Tensor], memory: th.Tensor, usage: th.Tensor) -> th.Tensor:
        """To what resembles a key, or to a free slot, or nowhere; Graves et al. (2016), Methods, ``[B, N]``."""
        content = self._content_weights(told, "write", memory).squeeze(1)
        allocation = addressing.allocation_weights(usage)
        return told["write_gate"] * th.lerp(content, allocation, told["allocation_gate"])

    def _read_weights(self, told: dict[str, th.Tensor], memory: th.Tensor, link: th.Tensor, previous: th.Tensor) -> th.Tensor:
        """What was written before or after what was read last, or what resembles a key, ``[B, R, N]``."""
        content = self._content_weights(told, "read", memory)
        forward, backward = addressing.directional_weights(link, previous)
        if self.link_sharpening:
            forward = addressing.sharpen_links(forward, 1 + told["forward_exponents"].unsqueeze(-1))
            backward = addressing.sharpen_links(backward, 1 + told["backward_exponents"].unsqueeze(-1))
        modes = told["read_mode"].unflatten(-1, (self.n_reads, 3)).softmax(dim=-1)
        to_backward, to_forward, to_content = modes.split(1, dim=-1)
        return to_backward * backward + to_forward * forward + to_content * content

    def _content_weights(self, told: dict[str, th.Tensor], head: str, memory: th.Tensor) -> th.Tensor:
        keys = told[f"{head}_keys"].unflatten(-1, (-1, self.word_size))
        if self.masking:
            masks = told[f"{head}_masks"].unflatten(-1, (-1, self.word_size))
            similarity = addressing.masked_cosine_similarity(keys, memory, masks)
        else:
            similarity = self.similarity(keys, memory)
        return addressing.content_weights(similarity, told[f"{head}_strengths"].unsqueeze(-1))


class DNCCore(ControlledCore):
    """
    Differentiable neural computer: a controller with a memory that it can allocate, free, and walk in the order of writing.

    Graves et al. (2016), https://doi.org/10.1038/nature20101. The controller gets what was read at the step before at every
    step, also inside an unroll.

    The state is ``2 hidden_size + n_slots (word_size + n_slots + n_reads + 3) + n_reads word_size`` floats per row: 816 with
    16 slots of 16, four read heads and a hidden size of 64; 19,520 with 128 slots.

    :param input_size: size F of an input vector
    :param hidden_size: size C of the controller
    :param n_slots: number N of slots
    :param word_size: size W of a slot
    :param n_reads: number R of read heads
    :param output_size: size D of the output, a layer over controller and reads; ``None`` means ``hidden_size``
    :param controller: ``"lstm"`` or ``"feedforward"``
    :param forget_bias: of the LSTM's forget gate
    :param masking: as for ``MemoryAccess``, as are the others below
    :param deallocation: see there
    :param link_sharpening: see there
    :param reference_form: see there
    :param compiled: compile the steps of an unroll with ``torch.compile``: the first update takes half a minute longer and a
        C++ compiler, the others 0.6 of the time. PyTorch compiles a step for two or three sets of sizes in one process; for
        more it says so, and does not
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
        self._check_sizes(n_slots=n_slots, word_size=word_size, n_reads=n_reads)
        super().__init__(input_size, hidden_size, n_reads * word_size, output_size, controller, forget_bias, compiled)
        switches = (masking, deallocation, link_sharpening, reference_form)
        self.access = MemoryAccess(hidden_size, n_slots, word_size, n_reads, *switches)

    def initial_state(self, batch_size: int) -> DNCState:
        access = self.access.initial_state(batch_size)
        hidden, cell = (access.memory.new_zeros(batch_size, size) for size in self.controller.state_sizes)
        reads = access.memory.new_zeros(batch_size, self.access.n_reads, self.access.word_size)
        return DNCState(hidden, cell, reads, *access)

    @property
    def instructions(self) -> nn.Linear:
        return self.access.interface

    def written_gradient(self) -> WrittenGradient | None:
        return DNC_GRADIENT if self.controller.is_lstm and self.access.is_plain else None

    def step(self, projected: th.Tensor, state: DNCState) -> tuple[th.Tensor, DNCState]:
        hidden, cell, reads, *access = state
        controls, hidden, cell = self.controller(projected, reads.flatten(1), hidden, cell)
        reads, access_state = self.access(controls, AccessState._make(access))
        return th.cat((controls, reads.flatten(1)), dim=-1), DNCState(hidden, cell, reads, *access_state)

    def memory_weights(self, inputs: th.Tensor, state: CoreState) -> dict[str, th.Tensor]:
        _, after = self(inputs, state)
        return {
            "read": after.read_weights,
            "write": after.write_weights.unsqueeze(1),
            "usage": after.usage.unsqueeze(1),
            "link": after.link,
        }
