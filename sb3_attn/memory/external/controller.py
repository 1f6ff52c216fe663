"""The controller of an external memory: it sees the inputs and the last reads, and decides what to read and write next."""

import torch as th
from torch import nn
from torch.nn import functional as F

CONTROLLERS = ("lstm", "feedforward")


class Controller(nn.Module):
    """
    An LSTM, or one layer with ReLU, over the inputs and the vectors read at the step before.

    :param input_size: size F of an input vector
    :param read_size: size R W of the vectors read in one step, concatenated
    :param hidden_size: size C of the hidden state, which is also the output
    :param kind: ``"lstm"`` or ``"feedforward"``; the latter has no state, so the external memory is the only one
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
        #: Sizes of hidden state and cell
        self.state_sizes = (hidden_size, hidden_size) if self.is_lstm else (0, 0)
        n_gates = 4 if self.is_lstm else 1
        # Gates in the order input, forget, output, candidate (torch's has candidate third): the first three share one sigmoid
        self.linear = nn.Linear(input_size + read_size + self.state_sizes[0], n_gates * hidden_size)
        if self.is_lstm:
            with th.no_grad():
                self.linear.bias[hidden_size : 2 * hidden_size] = forget_bias

    @property
    def recurrent_weight(self) -> th.Tensor:
        """The columns for reads and hidden state of the step before, ``[gates * C, R W + C]``."""
        return self.linear.weight[:, self.input_size :]

    def project(self, inputs: th.Tensor) -> th.Tensor:
        """
        Compute the contribution of the inputs to the gates, for all steps in one product.

        :param inputs: ``[..., F]``
        :return: ``[..., gates * C]``
        """
        return F.linear(inputs, self.linear.weight[:, : self.input_size], self.linear.bias)

    def forward(
        self, projected: th.Tensor, reads: th.Tensor, hidden: th.Tensor, cell: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Advance by one step.

        :param projected: contribution of the inputs, from ``project``, ``[B, gates * C]``
        :param reads: the vectors read at the step before, ``[B, R W]``
        :param hidden: ``[B, C]``, or ``[B, 0]`` without an LSTM
        :param cell: likewise
        :return: outputs ``[B, C]``, and the next hidden state and cell
        """
        if not self.is_lstm:
            return F.relu(th.addmm(projected, reads, self.recurrent_weight.t())), hidden, cell
        i, f, o, g = self.gates(th.addmm(projected, th.cat((reads, hidden), dim=-1), self.recurrent_weight.t()))
        cell = th.addcmul(f * cell, i, g)
        hidden = o * cell.tanh()
        return hidden, hidden, cell

    def gates(self, linear: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        Apply the activations of the LSTM.

        :param linear: gates before their activations, ``[..., 4 C]``
        :return: input, forget and output gate, and the candidate, each ``[..., C]``
        """
        i_f_o, g = linear.split((3 * self.hidden_size, self.hidden_size), dim=-1)
        return *i_f_o.sigmoid().chunk(3, dim=-1), g.tanh()
