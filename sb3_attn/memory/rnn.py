"""LSTM, GRU and vanilla RNN: one fused call for a sequence, the bare cell for a step."""

from typing import NamedTuple

import torch as th
from torch import nn

from sb3_attn.common.bfloat16 import bfloat16_if
from sb3_attn.common.core_state import CoreState
from sb3_attn.memory.core import MemoryCore, check_finite, check_sizes

#: The largest of the spread forget biases, with a time scale of 1 + e^5 = 149 steps: a little more than a window of training
MAX_FORGET_BIAS = 5.0


NONLINEARITIES = ("tanh", "relu")


def check_nonlinearity(nonlinearity: str) -> None:
    """
    Refuse what is not one of the nonlinearities of a vanilla RNN.

    :param nonlinearity: its name
    :raises ValueError: naming the choices
    """
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"nonlinearity={nonlinearity!r} is unknown; choose one of {list(NONLINEARITIES)}.")


def spread_forget_biases(hidden_size: int) -> th.Tensor:
    """
    Forget biases with which the units of a fresh cell keep their content for 2 to 149 steps on average.

    :param hidden_size: number of units
    :return: biases from 0 to ``MAX_FORGET_BIAS``, ``[hidden_size]``
    """
    return th.linspace(0, MAX_FORGET_BIAS, hidden_size)


def _stack_layers(array: th.Tensor, num_layers: int) -> th.Tensor:
    """Part of a state as torch's fused calls take it: ``[B, L * H]`` -> ``[L, B, H]``."""
    return array.unflatten(-1, (num_layers, -1)).transpose(0, 1).contiguous()


def _flatten_layers(array: th.Tensor) -> th.Tensor:
    """The inverse: ``[L, B, H]`` -> ``[B, L * H]``."""
    return array.transpose(0, 1).flatten(start_dim=1)


def _cat_layers(layers: list[th.Tensor]) -> th.Tensor:
    """L tensors ``[B, H]`` -> ``[B, L * H]``, without a copy of the only one."""
    return th.cat(layers, dim=-1) if len(layers) > 1 else layers[0]


class LSTMState(NamedTuple):
    """State of an LSTM, its layers one after the other."""

    hidden: th.Tensor  # [B, num_layers * hidden_size]
    cell: th.Tensor  # [B, num_layers * hidden_size]


class LSTMCore(MemoryCore):
    """
    Long short-term memory (Hochreiter & Schmidhuber 1997) with the forget gate of Gers et al. (2000).

    The state is ``2 * num_layers * hidden_size`` floats per row.

    :param input_size: size F of an input vector
    :param hidden_size: size of the hidden state of each layer; that of the last one is also the output
    :param forget_bias: initial bias of the forget gate. At a bias of b a fresh cell keeps its content for 1 + e^b steps on
        average: for 2 steps if b = 0, so that the gradient with respect to a cue 30 steps ago shrinks to 1e-9 of its size, and
        for 149 steps if b = 5. ``None`` spreads the units' biases evenly from 0 to 5 and sets those of their input gates to
        -b, so that a cell starts as a running mean, which constant inputs do not saturate: the chrono initialization of Tallec
        & Ollivier (2018), https://arxiv.org/abs/1804.11188, who spread e^b evenly
    :param bf16: whether sequences, which means training, are computed in bfloat16 on processors that have it. Parameters,
        single steps, inputs and outputs stay float32
    :param num_layers: number of layers, each of which sees the outputs of the one before it
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        forget_bias: float | None = None,
        bf16: bool = False,
        num_layers: int = 1,
    ) -> None:
        check_sizes(self, hidden_size=hidden_size, num_layers=num_layers)
        hidden_size, num_layers = int(hidden_size), int(num_layers)  # torch refuses NumPy's integers
        if forget_bias is not None:
            check_finite(self, forget_bias=forget_bias)
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size = hidden_size
        self.forget_bias = forget_bias
        self.bf16 = bf16
        self.num_layers = num_layers
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers)
        # Torch's order of gates; cell and output follow
        input_gate, forget_gate = slice(hidden_size), slice(hidden_size, 2 * hidden_size)
        forget_biases = spread_forget_biases(hidden_size) if forget_bias is None else forget_bias
        with th.no_grad():
            for _, _, bias_ih, bias_hh in self.lstm.all_weights:
                bias_ih[forget_gate], bias_hh[forget_gate] = forget_biases, 0.0
                if forget_bias is None:
                    bias_ih[input_gate], bias_hh[input_gate] = -forget_biases, 0.0

    def initial_state(self, batch_size: int) -> LSTMState:
        # Two tensors rather than the same one twice: an exporter would merge the two into a single input
        return LSTMState(*self.lstm.all_weights[0][0].new_zeros(2, batch_size, self.num_layers * self.hidden_size))

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, LSTMState]:
        # For a single step the bare cell is three times faster than a call of nn.LSTM; and one layer needs no loop
        if self.num_layers == 1:
            hidden, cell = th.lstm_cell(inputs, tuple(state), *self.lstm.all_weights[0])
            return hidden, LSTMState(hidden, cell)
        before = (array.chunk(self.num_layers, dim=-1) for array in state)
        hiddens, cells = [], []
        for weights, *hidden_and_cell in zip(self.lstm.all_weights, *before, strict=True):
            inputs, cell = th.lstm_cell(inputs, hidden_and_cell, *weights)
            hiddens.append(inputs)
            cells.append(cell)
        return inputs, LSTMState(_cat_layers(hiddens), _cat_layers(cells))

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, LSTMState]:
        hidden, cell = (_stack_layers(array, self.num_layers) for array in state)
        with bfloat16_if(self.bf16, inputs.device):
            outputs, after = self.lstm(inputs, (hidden, cell))
        dtype = inputs.dtype
        return outputs.to(dtype), LSTMState(*(_flatten_layers(array).to(dtype) for array in after))


class HiddenState(NamedTuple):
    """State of a core that remembers nothing but its hidden state."""

    hidden: th.Tensor  # [B, hidden_size], or [B, num_layers * hidden_size], layer by layer


class GRUCore(MemoryCore):
    """
    Gated recurrent unit (Cho et al. 2014), ``h' = (1 - z) n + z h``.

    The state is ``num_layers * hidden_size`` floats per row.

    :param input_size: size F of an input vector
    :param hidden_size: size of the hidden state of each layer; that of the last one is also the output
    :param update_bias: initial bias of the update gate z. This one gate decides both what to keep and what to write, so the
        bias must be lower than an LSTM's forget bias: at 1 a fresh cell keeps 73 % of its state and takes in 27 %
    :param num_layers: number of layers, each of which sees the outputs of the one before it
    """

    def __init__(self, input_size: int, hidden_size: int = 64, update_bias: float = 1.0, num_layers: int = 1) -> None:
        check_sizes(self, hidden_size=hidden_size, num_layers=num_layers)
        hidden_size, num_layers = int(hidden_size), int(num_layers)
        check_finite(self, update_bias=update_bias)
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size = hidden_size
        self.update_bias = update_bias
        self.num_layers = num_layers
        self.gru = nn.GRU(input_size, hidden_size, num_layers)
        update_gate = slice(hidden_size, 2 * hidden_size)  # torch's gate order is reset, update, new
        with th.no_grad():
            for _, _, bias_ih, bias_hh in self.gru.all_weights:
                bias_ih[update_gate], bias_hh[update_gate] = update_bias, 0.0

    def initial_state(self, batch_size: int) -> HiddenState:
        return HiddenState(self.gru.all_weights[0][0].new_zeros(batch_size, self.num_layers * self.hidden_size))

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, HiddenState]:
        hiddens = []
        for weights, hidden in zip(self.gru.all_weights, state[0].chunk(self.num_layers, dim=-1), strict=True):
            inputs = th.gru_cell(inputs, hidden, *weights)
            hiddens.append(inputs)
        return inputs, HiddenState(_cat_layers(hiddens))

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, HiddenState]:
        outputs, hidden = self.gru(inputs, _stack_layers(state[0], self.num_layers))
        return outputs, HiddenState(_flatten_layers(hidden))


class RNNCore(MemoryCore):
    """
    Vanilla recurrent network (Elman 1990), ``h' = f(W h + U x + b)``.

    The recurrent weights W start orthogonal, so that a fresh network loses its content slowly (Le et al. 2015,
    https://arxiv.org/abs/1504.00941, had the identity for it): with torch's own the gradient vanishes within some ten steps.

    The state is ``hidden_size`` floats per row.

    :param input_size: size F of an input vector
    :param hidden_size: size of the hidden state, which is also the output
    :param nonlinearity: f, ``"tanh"`` or ``"relu"``
    """

    def __init__(self, input_size: int, hidden_size: int = 64, nonlinearity: str = "tanh") -> None:
        check_sizes(self, hidden_size=hidden_size)
        hidden_size = int(hidden_size)
        check_nonlinearity(nonlinearity)
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size = hidden_size
        self.nonlinearity = nonlinearity
        self.rnn = nn.RNN(input_size, hidden_size, nonlinearity=nonlinearity)
        nn.init.orthogonal_(self.rnn.all_weights[0][1])

    def initial_state(self, batch_size: int) -> HiddenState:
        return HiddenState(self.rnn.all_weights[0][0].new_zeros(batch_size, self.hidden_size))

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, HiddenState]:
        cell = th.rnn_tanh_cell if self.nonlinearity == "tanh" else th.rnn_relu_cell
        hidden = cell(inputs, state[0], *self.rnn.all_weights[0])
        return hidden, HiddenState(hidden)

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, HiddenState]:
        outputs, hidden = self.rnn(inputs, state[0].unsqueeze(0))
        return outputs, HiddenState(hidden.squeeze(0))
