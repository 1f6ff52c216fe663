"""The network that runs a memory: it sees the inputs and what was read, and says what to read and write next."""

import torch as th
from torch import nn
from torch.nn import functional as F

CONTROLLERS = ("lstm", "feedforward")


class Controller(nn.Module):
    """
    An LSTM, or one layer with ReLU, over the inputs and what was read at the step before.

    :param input_size: size F of an input vector
    :param read_size: size of all that was read, side by side
    :param hidden_size: size C of the hidden state, which is also the output
    :param kind: ``"lstm"`` or ``"feedforward"``; the latter has no state, so all that is remembered is in the memory
    :param forget_bias: initial bias of the LSTM's forget gate (see ``LSTMCore``)
    :raises ValueError: if the kind is unknown
    """

    def __init__(
        self, input_size: int, read_size: int, hidden_size: int, kind: str = "lstm", forget_bias: float = 1.0
    ) -> None:
        super().__init__()
        if kind not in CONTROLLERS:
            raise ValueError(f"controller={kind!r} is unknown; choose one of {list(CONTROLLERS)}.")
        self.input_size = input_size
        self.read_size = read_size
        self.hidden_size = hidden_size
        self.is_lstm = kind == "lstm"
        #: Sizes of the state's two arrays
        self.state_sizes = (hidden_size, hidden_size) if self.is_lstm else (0, 0)
        n_gates = 4 if self.is_lstm else 1
        # The gates are those of inputs, forgetting and outputs, then the candidate: three neighbours share one sigmoid
        self.linear = nn.Linear(input_size + read_size + self.state_sizes[0], n_gates * hidden_size)
        if self.is_lstm:
            with th.no_grad():
                self.linear.bias[hidden_size : 2 * hidden_size] = forget_bias

    @property
    def recurrent_weight(self) -> th.Tensor:
        """For what was read before and the hidden state before, ``[gates * C, R W + C]``."""
        return self.linear.weight[:, self.input_size :]

    def project(self, inputs: th.Tensor) -> th.Tensor:
        """
        What the inputs contribute, for all steps in one product.

        :param inputs: ``[..., F]``
        :return: ``[..., gates * C]``
        """
        return F.linear(inputs, self.linear.weight[:, : self.input_size], self.linear.bias)

    def forward(
        self, projected: th.Tensor, reads: th.Tensor, hidden: th.Tensor, cell: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        One step.

        :param projected: of this step, from ``project``, ``[B, gates * C]``
        :param reads: what was read at the step before, ``[B, read_size]``
        :param hidden: ``[B, C]``, or ``[B, 0]`` without an LSTM
        :param cell: likewise
        :return: outputs ``[B, C]``, and the next hidden and cell
        """
        if not self.is_lstm:
            return F.relu(th.addmm(projected, reads, self.recurrent_weight.t())), hidden, cell
        i, f, o, g = self.gates(th.addmm(projected, th.cat((reads, hidden), dim=-1), self.recurrent_weight.t()))
        cell = th.addcmul(f * cell, i, g)
        hidden = o * cell.tanh()
        return hidden, hidden, cell

    def gates(self, linear: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        Gates of input, forgetting and output, and the candidate.

        :param linear: before their sigmoids and tanh, ``[..., 4 C]``
        :return: each ``[..., C]``
        """
        squashed, candidate = linear.split((3 * self.hidden_size, self.hidden_size), dim=-1)
        return *squashed.sigmoid().chunk(3, dim=-1), candidate.tanh()
