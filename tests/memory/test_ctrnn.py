"""The continuous-time RNN against its differential equation and the vanilla RNN."""

import math

import pytest
import torch as th

from sb3_attn.memory import CTRNNCore, RNNCore

INPUT = 5


@pytest.mark.parametrize(("steps_per_tau", "is_close"), [(1000, True), (2, False)])
def test_small_steps_leak_as_the_differential_equation_does(steps_per_tau, is_close):
    """Without weights h goes from h_0 to f(b) as exp(-t / tau)."""
    core = CTRNNCore(INPUT, hidden_size=6, tau=10.0, dt=10.0 / steps_per_tau).double()
    for weight in (core.cell.weight_ih, core.cell.weight_hh):
        th.nn.init.zeros_(weight)
    rest = th.tanh(core.cell.bias_ih + core.cell.bias_hh)
    start = core.initial_state(1)._replace(hidden=th.full((1, 6), 3.0, dtype=th.float64))
    outputs, _ = core.unroll(th.randn(3 * steps_per_tau, 1, INPUT, dtype=th.float64), start)
    for n_taus in (1, 2, 3):
        expected = rest + (3.0 - rest) * math.exp(-n_taus)
        assert th.allclose(outputs[n_taus * steps_per_tau - 1, 0], expected, rtol=0, atol=2e-3) is is_close


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_steps_of_the_time_constant_are_those_of_a_vanilla_rnn(nonlinearity):
    core = CTRNNCore(INPUT, hidden_size=6, tau=4.0, dt=4.0, nonlinearity=nonlinearity)
    rnn = RNNCore(INPUT, hidden_size=6, nonlinearity=nonlinearity)
    rnn.rnn.load_state_dict({f"{name}_l0": parameter for name, parameter in core.cell.state_dict().items()})
    inputs = th.randn(9, 3, INPUT)
    th.testing.assert_close(core.unroll(inputs, core.initial_state(3)), rnn.unroll(inputs, rnn.initial_state(3)))
