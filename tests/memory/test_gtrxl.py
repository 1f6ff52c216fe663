"""The gated transformer: what it attends to, and its gates."""

import torch as th

from sb3_attn.memory import GTrXLCore
from sb3_attn.memory.gtrxl import GRUGate

INPUT = 5


def test_attention_covers_the_steps_of_the_episode():
    core = GTrXLCore(INPUT, hidden_size=8, n_layers=3, n_heads=2, memory_length=4)
    _, state = core.unroll(th.randn(2, 3, INPUT), core.initial_state(3))
    weights = core.memory_weights(th.randn(3, INPUT), state)["attention"]
    assert weights.shape == (3, 6, 5) and (weights[..., :2] == 0).all() and (weights[..., 2:] > 0).all()
    th.testing.assert_close(weights.sum(dim=-1), th.ones(3, 6))


def test_a_fresh_gate_lets_little_in():
    gate = GRUGate(4, bias=2.0)
    for parameter in (gate.w_rzg.weight, gate.u_rz.weight):
        th.nn.init.zeros_(parameter)
    x = th.randn(3, 4)
    share = float(th.sigmoid(th.tensor(-2.0)))
    expected = (1 - share) * x + share * (gate.u_g(0.5 * x)).tanh()
    th.testing.assert_close(gate(x, th.randn(3, 4)), expected)
    assert 0.11 < share < 0.12
