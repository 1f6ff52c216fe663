"""The continuous-time RNN of computational neuroscience, in Euler steps."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.common.core_state import CoreState
from sb3_attn.memory.core import MemoryCore, check_finite, check_sizes
from sb3_attn.memory.rnn import HiddenState, check_nonlinearity


class CTRNNCore(MemoryCore):
    """
    Continuous-time recurrent network, ``tau dh/dt = -h + f(W h + U x + b)``, in Euler steps of ``dt``.

    A step is ``h' = (1 - dt / tau) h + dt / tau f(W h + U x + b)``; at ``dt = tau`` that is ``RNNCore``. h are firing rates,
    as in Yang et al. (2019), https://doi.org/10.1038/s41593-018-0310-2, without their noise. The recurrent weights W start
    orthogonal, as in ``RNNCore``.

    The state is ``hidden_size`` floats per row.

    :param input_size: size F of an input vector
    :param hidden_size: size of the hidden state, which is also the output
    :param tau: time constant of the units, in any unit of time, such as milliseconds
    :param dt: duration of an environment step in the same unit, at most ``tau``
    :param nonlinearity: f, ``"tanh"`` or ``"relu"``
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        tau: float = 100.0,
        dt: float = 20.0,
        nonlinearity: str = "tanh",
    ) -> None:
        check_sizes(self, hidden_size=hidden_size)
        check_finite(self, tau=tau, dt=dt)
        if not 0 < dt <= tau:
            raise ValueError(f"dt={dt} and tau={tau} of {type(self).__name__} do not fit; give a dt above 0 and up to tau.")
        check_nonlinearity(nonlinearity)
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size = hidden_size
        self.tau = tau
        self.dt = dt
        self.nonlinearity = nonlinearity
        # nn.RNNCell has the parameters by their usual names
        self.cell = nn.RNNCell(input_size, hidden_size, nonlinearity=nonlinearity)
        nn.init.orthogonal_(self.cell.weight_hh)

    def initial_state(self, batch_size: int) -> HiddenState:
        return HiddenState(self.cell.weight_hh.new_zeros(batch_size, self.hidden_size))

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, HiddenState]:
        hidden = th.lerp(state[0], self.cell(inputs, state[0]), self.dt / self.tau)
        return hidden, HiddenState(hidden)

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, HiddenState]:
        # U x + b of all steps in one matrix product, two thirds of the time of T calls of forward
        cell, hidden, outputs = self.cell, state[0], []
        activation = th.tanh if self.nonlinearity == "tanh" else th.relu
        for current in F.linear(inputs, cell.weight_ih, cell.bias_ih + cell.bias_hh).unbind(0):
            target = activation(th.addmm(current, hidden, cell.weight_hh.t()))
            hidden = th.lerp(hidden, target, self.dt / self.tau)
            outputs.append(hidden)
        return th.stack(outputs), HiddenState(hidden)
