"""LSTM and GRU: the initial biases of their gates."""

import pytest
import torch as th

from sb3_attn.common.core_state import map_state
from sb3_attn.memory import GRUCore, LSTMCore

INPUT = 5


@pytest.mark.parametrize("bias", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("core_class", "name"), [(LSTMCore, "forget_bias"), (GRUCore, "update_bias")])
def test_a_fresh_cell_keeps_the_share_that_its_bias_implies(core_class, name, bias):
    core = core_class(INPUT, hidden_size=8, **{name: bias})
    recurrent_weights = next(p for parameter_name, p in core.named_parameters() if "weight_hh" in parameter_name)
    th.nn.init.zeros_(recurrent_weights)  # so that only the gate passes the old content on
    start = map_state(lambda array: array.requires_grad_(), core.initial_state(1))
    _, after = core(th.zeros(1, INPUT), start)
    (kept,) = th.autograd.grad(after[-1].sum(), start[-1])  # the cell of an LSTM, the hidden state of a GRU
    th.testing.assert_close(kept, th.sigmoid(th.tensor(bias)).expand(1, 8))


def test_the_default_biases_let_memories_last():
    assert LSTMCore(INPUT).lstm.bias_ih_l0[64:128].unique().tolist() == [3.0]
    assert GRUCore(INPUT).gru.bias_ih_l0[64:128].unique().tolist() == [1.0]
