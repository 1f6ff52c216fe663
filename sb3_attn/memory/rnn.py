"""LSTM and GRU: one fused call for a sequence, the bare cell for a step."""

from typing import NamedTuple

import torch as th
from torch import nn

from sb3_attn.common.bfloat16 import bfloat16_if
from sb3_attn.common.core_state import CoreState
from sb3_attn.memory.core import MemoryCore, check_finite, check_sizes

#: The largest of the spread forget biases, with a time scale of 1 + e^5 = 149 steps: a little more than a window of training
MAX_FORGET_BIAS = 5.0


class LSTMState(NamedTuple):
    """State of an LSTM."""

    hidden: th.Tensor  # [B, hidden_size]
    cell: th.Tensor  # [B, hidden_size]


class LSTMCore(MemoryCore):
    """
    Long short-term memory (Hochreiter & Schmidhuber 1997) with the forget gate of Gers et al. (2000).

    The state is ``2 * hidden_size`` floats per row.

    :param input_size: size F of an input vector
    :param hidden_size: size of the hidden state, which is also the output
    :param forget_bias: initial bias of the forget gate; ``None`` gives the units different ones. At a bias of b a fresh
        cell keeps its content for 1 + e^b steps on average: for 2 at 0, so that the gradient with respect to a cue 30 steps
        ago shrinks to 1e-9 of its size, for 149 at 5. By default the biases are spread evenly from 0 to 5, and those of the
        input gates are -b, so that a cell starts as a running mean, which inputs that stay the same do not fill to saturation:
        the chrono initialization of Tallec & Ollivier (2018), https://arxiv.org/abs/1804.11188, who spread e^b evenly
    :param bf16: whether sequences, which means training, are computed in bfloat16 on processors that have it. Parameters,
        single steps, inputs and outputs stay float32
    """

    def __init__(self, input_size: int, hidden_size: int = 64, forget_bias: float | None = None, bf16: bool = False) -> None:
        check_sizes(self, hidden_size=hidden_size)
        if forget_bias is not None:
            check_finite(self, forget_bias=forget_bias)
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size = hidden_size
        self.forget_bias = forget_bias
        self.bf16 = bf16
        self.lstm = nn.LSTM(input_size, hidden_size)
        # Torch's order of gates; cell and output follow
        input_gate, forget_gate = slice(hidden_size), slice(hidden_size, 2 * hidden_size)
        with th.no_grad():
            _, _, bias_ih, bias_hh = self.lstm.all_weights[0]
            if forget_bias is not None:
                bias_ih[forget_gate], bias_hh[forget_gate] = forget_bias, 0.0
            else:
                forget_biases = th.linspace(0, MAX_FORGET_BIAS, hidden_size)
                bias_ih[forget_gate], bias_hh[forget_gate] = forget_biases, 0.0
                bias_ih[input_gate], bias_hh[input_gate] = -forget_biases, 0.0

    def initial_state(self, batch_size: int) -> LSTMState:
        # Two tensors rather than the same one twice: an exporter would merge the two into a single input
        return LSTMState(*self.lstm.all_weights[0][0].new_zeros(2, batch_size, self.hidden_size))

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, LSTMState]:
        # For a single step the bare cell is three times faster than a call of nn.LSTM
        hidden, cell = th.lstm_cell(inputs, tuple(state), *self.lstm.all_weights[0])
        return hidden, LSTMState(hidden, cell)

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, LSTMState]:
        hidden, cell = state
        with bfloat16_if(self.bf16, inputs.device):
            outputs, (hidden, cell) = self.lstm(inputs, (hidden.unsqueeze(0), cell.unsqueeze(0)))
        dtype = inputs.dtype
        return outputs.to(dtype), LSTMState(hidden.squeeze(0).to(dtype), cell.squeeze(0).to(dtype))


class GRUState(NamedTuple):
    """State of a GRU."""

    hidden: th.Tensor  # [B, hidden_size]


class GRUCore(MemoryCore):
    """
    Gated recurrent unit (Cho et al. 2014), ``h' = (1 - z) n + z h``.

    The state is ``hidden_size`` floats per row.

    :param input_size: size F of an input vector
    :param hidden_size: size of the hidden state, which is also the output
    :param update_bias: initial bias of the update gate z. This one gate decides both what to keep and what to write, so the
        bias must be lower than an LSTM's forget bias: at 1 a fresh cell keeps 73 % of its state and takes in 27 %
    """

    def __init__(self, input_size: int, hidden_size: int = 64, update_bias: float = 1.0) -> None:
        check_sizes(self, hidden_size=hidden_size)
        check_finite(self, update_bias=update_bias)
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size = hidden_size
        self.update_bias = update_bias
        self.gru = nn.GRU(input_size, hidden_size)
        update_gate = slice(hidden_size, 2 * hidden_size)  # torch's gate order is reset, update, new
        with th.no_grad():
            _, _, bias_ih, bias_hh = self.gru.all_weights[0]
            bias_ih[update_gate], bias_hh[update_gate] = update_bias, 0.0

    def initial_state(self, batch_size: int) -> GRUState:
        return GRUState(hidden=self.gru.all_weights[0][0].new_zeros(batch_size, self.hidden_size))

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, GRUState]:
        hidden = th.gru_cell(inputs, state[0], *self.gru.all_weights[0])
        return hidden, GRUState(hidden)

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, GRUState]:
        outputs, hidden = self.gru(inputs, state[0].unsqueeze(0))
        return outputs, GRUState(hidden.squeeze(0))
