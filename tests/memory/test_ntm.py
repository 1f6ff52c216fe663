"""The neural Turing machine: where heads start, gates, learned memories."""

import pytest
import torch as th

from sb3_attn.memory import NTMCore
from sb3_attn.memory.external.ntm import NTMState

INPUT = 5


def test_heads_start_at_the_first_slot_and_their_weights_sum_to_one():
    core = NTMCore(INPUT, n_read_heads=2)
    state = core.initial_state(3)
    assert isinstance(state, NTMState) and (state.read_weights[..., 0] == 1).all() and state.write_weights.sum() == 3
    _, state = core.unroll(th.randn(20, 3, INPUT), state)
    for weights in (state.read_weights, state.write_weights):
        th.testing.assert_close(weights.sum(dim=-1), th.ones(weights.shape[:2]))


@pytest.mark.parametrize(("gate_bias", "first"), [(-20.0, 1.0), (20.0, 1 / 128)])
def test_gate_bias_selects_location_or_content(gate_bias, first):
    core = NTMCore(INPUT, n_slots=128, shift_range=0, gate_bias=gate_bias)
    _, state = core(th.randn(2, INPUT), core.initial_state(2))  # no slot differs from the others yet
    for weights in (state.read_weights, state.write_weights):
        th.testing.assert_close(weights[..., 0], th.full((2, 1), first), rtol=0, atol=1e-4)


def test_a_learned_initial_memory_has_a_gradient():
    core = NTMCore(INPUT, hidden_size=6, n_slots=7, word_size=4, memory_initialisation="learned")
    outputs, _ = core.unroll(th.randn(3, 2, INPUT), core.initial_state(2))
    outputs.sum().backward()
    assert core.initial_memory.grad is not None and (core.initial_memory.grad != 0).any()


def test_gradients_are_finite_at_uniform_weights_with_strong_sharpening():
    core = NTMCore(INPUT, hidden_size=16, n_slots=128, word_size=8)
    first = sum(core.interface_sizes[name] for name in ("keys", "add", "shifts", "strengths"))
    with th.no_grad():
        core.interface.bias[first : first + core.interface_sizes["exponents"]] = 24.0
    start = core.initial_state(2)
    uniform = start._replace(
        read_weights=th.full_like(start.read_weights, 1 / 128), write_weights=th.full_like(start.write_weights, 1 / 128)
    )
    assert (core.split_interface(th.zeros(1, 16)).exponents >= 25).all()
    outputs, end = core.unroll(th.randn(8, 2, INPUT), uniform)
    th.testing.assert_close(end.read_weights.sum(dim=-1), th.ones(2, 1))
    gradients = th.autograd.grad(outputs.square().sum(), list(core.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
