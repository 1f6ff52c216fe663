"""minGRU: a GRU whose gate and candidate see the input alone, so that all steps share one matrix product."""

import torch as th
from torch import nn

from sb3_attn.common.core_state import CoreState
from sb3_attn.memory.core import MemoryCore, check_finite, check_sizes
from sb3_attn.memory.rnn import HiddenState, spread_forget_biases


class MinGRUCore(MemoryCore):
    """
    minGRU (Feng et al. 2024, https://arxiv.org/abs/2410.01201, section 3.1), ``h' = (1 - z) h + z n``.

    The gate ``z = sigmoid(W_z x + b_z)`` and the candidate ``n = W_n x + b_n`` depend on the input alone, so what is written
    cannot depend on what is remembered: the state is a weighted mean of the candidates so far. The paper's function g, which
    makes candidates positive for a parallel scan over logarithms, is left out together with the scan.

    The state is ``hidden_size`` floats per row.

    :param input_size: size F of an input vector
    :param hidden_size: size of the hidden state, which is also the output
    :param forget_bias: the initial ``-b_z``, with which a fresh cell keeps ``sigmoid(forget_bias)`` of its state; ``None``
        spreads the biases from 0 to 5, as in ``LSTMCore``. Keeping and writing always add up to 1 here, as they do in a fresh
        LSTM by that default, whose input gates have the biases -b for this purpose
    """

    def __init__(self, input_size: int, hidden_size: int = 64, forget_bias: float | None = None) -> None:
        check_sizes(self, hidden_size=hidden_size)
        if forget_bias is not None:
            check_finite(self, forget_bias=forget_bias)
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size = hidden_size
        self.forget_bias = forget_bias
        self.linear = nn.Linear(input_size, 2 * hidden_size)  # gate, candidate
        with th.no_grad():
            biases = spread_forget_biases(hidden_size) if forget_bias is None else forget_bias
            self.linear.bias[:hidden_size] = -biases

    def initial_state(self, batch_size: int) -> HiddenState:
        return HiddenState(self.linear.weight.new_zeros(batch_size, self.hidden_size))

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, HiddenState]:
        gate, candidate = self._gates_and_candidates(inputs)
        hidden = th.lerp(state[0], candidate, gate)
        return hidden, HiddenState(hidden)

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, HiddenState]:
        gates, candidates = self._gates_and_candidates(inputs)
        hidden, outputs = state[0], []
        for gate, candidate in zip(gates.unbind(0), candidates.unbind(0), strict=True):
            hidden = th.lerp(hidden, candidate, gate)
            outputs.append(hidden)
        return th.stack(outputs), HiddenState(hidden)

    def _gates_and_candidates(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        gates, candidates = self.linear(inputs).chunk(2, dim=-1)
        return gates.sigmoid(), candidates
