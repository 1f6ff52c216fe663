"""The key-value memory: what is in it, and how it is found."""

import pytest
import torch as th

from sb3_attn.memory import KeyValueMemoryCore

INPUT = 5


@pytest.mark.parametrize("context", ["mqn", "rmqn", "frmqn"])
def test_an_empty_memory_returns_0_and_the_present_is_not_in_it(context):
    core = KeyValueMemoryCore(INPUT, hidden_size=6, n_slots=4, key_size=3, value_size=2, context=context, n_hops=2)
    inputs = th.randn(3, 2, INPUT)
    outputs, state = core.unroll(inputs, core.initial_state(2))
    assert (outputs[0, :, -2:] == 0).all() and (outputs[1, :, -2:] != 0).all()
    weights = core.memory_weights(inputs[0], state)["retrieval"]
    assert weights.shape == (2, 2, 4) and (weights[..., 0] == 0).all()
    th.testing.assert_close(weights.sum(dim=-1), th.ones(2, 2))


def test_the_value_of_the_matching_key_is_read():
    core = KeyValueMemoryCore(3, hidden_size=3, n_slots=5, key_size=3, value_size=3, context="mqn").double()
    with th.no_grad():
        core.relative_positions.zero_()
        for layer, rows in (
            (core.key_value, th.cat((100 * th.eye(3), th.eye(3)))),
            (core.context, th.eye(3)),
            (core.query, th.eye(3)),
        ):
            layer.weight.copy_(rows)
            layer.bias.zero_()
    words = 5 * th.eye(3).double()
    outputs, _ = core.unroll(words[[0, 1, 2, 1]].unsqueeze(1), core.initial_state(1))
    th.testing.assert_close(outputs[3, 0, 3:], words[1], rtol=0, atol=1e-6)


def test_a_query_can_ask_for_a_relative_position():
    core = KeyValueMemoryCore(3, hidden_size=3, n_slots=5, key_size=3, value_size=3, context="mqn").double()
    with th.no_grad():
        for parameter in core.parameters():
            parameter.zero_()
        core.key_value.weight[3:] = th.eye(3)
        core.query.bias.fill_(1.0)
        core.relative_positions[-2] = 100.0  # two steps ago
    inputs = th.randn(7, 2, 3, dtype=th.float64)
    outputs, _ = core.unroll(inputs, core.initial_state(2))
    th.testing.assert_close(outputs[2:, :, 3:], inputs[:-2])
