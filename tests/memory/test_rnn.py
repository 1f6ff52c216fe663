"""LSTM, GRU and vanilla RNN: their layers, the initial biases of their gates, and bfloat16."""

import warnings

import pytest
import torch as th
from torch import nn

from sb3_attn.common import bfloat16
from sb3_attn.common.core_state import map_state
from sb3_attn.memory import GRUCore, LSTMCore, MinGRUCore, make_core

INPUT = 5


@pytest.mark.parametrize(
    ("name", "module_class", "kwargs"),
    [
        *(("lstm", nn.LSTM, dict(num_layers=num_layers)) for num_layers in (1, 2, 3)),
        *(("gru", nn.GRU, dict(num_layers=num_layers)) for num_layers in (1, 2, 3)),
        *(("rnn", nn.RNN, dict(nonlinearity=nonlinearity)) for nonlinearity in ("tanh", "relu")),
    ],
)
def test_a_sequence_is_that_of_torch(name, module_class, kwargs):
    """Also the state, whose layers torch has on an axis of their own, before the rows."""
    core, module = make_core(name, INPUT, dict(hidden_size=4) | kwargs), module_class(INPUT, 4, **kwargs)
    module.load_state_dict(getattr(core, name).state_dict())
    inputs, start = th.randn(7, 3, INPUT), map_state(th.randn_like, core.initial_state(3))
    in_layers = tuple(th.stack(array.split(4, dim=-1)) for array in start)
    outputs, end = core.unroll(inputs, start)
    expected_outputs, expected_end = module(inputs, in_layers if name == "lstm" else in_layers[0])
    assert outputs.equal(expected_outputs)
    for array, expected in zip(end, expected_end if name == "lstm" else [expected_end], strict=True):
        assert array.equal(th.cat(list(expected), dim=-1))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_one_layer_is_drawn_as_before_there_were_more(name):
    th.manual_seed(0)
    weights = getattr(make_core(name, INPUT), name).all_weights[0][:2]
    th.manual_seed(0)
    for weight, expected in zip(weights, {"lstm": nn.LSTM, "gru": nn.GRU}[name](INPUT, 64).all_weights[0], strict=False):
        assert weight.equal(expected)


@pytest.mark.parametrize("core", ["rnn", "ctrnn"])
def test_the_recurrent_weights_of_a_fresh_vanilla_rnn_are_orthogonal(core):
    (weight,) = (p for name, p in make_core(core, INPUT).named_parameters() if "weight_hh" in name)
    th.testing.assert_close(weight @ weight.t(), th.eye(64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(
    ("core_class", "name", "kwargs"),
    [
        (LSTMCore, "forget_bias", {}),
        (LSTMCore, "forget_bias", dict(num_layers=3)),
        (GRUCore, "update_bias", {}),
        (GRUCore, "update_bias", dict(num_layers=3)),
        (MinGRUCore, "forget_bias", {}),
    ],
)
def test_a_fresh_cell_keeps_the_share_that_its_bias_implies(core_class, name, kwargs, bias):
    core = core_class(INPUT, hidden_size=8, **{name: bias}, **kwargs)
    for parameter_name, parameter in core.named_parameters():
        if "weight" in parameter_name:
            nn.init.zeros_(parameter)  # so that only the gate passes the old content on
    start = map_state(lambda array: array.requires_grad_(), core.initial_state(1))
    _, after = core(th.zeros(1, INPUT), start)
    (kept,) = th.autograd.grad(after[-1].sum(), start[-1])  # the cell of an LSTM, the hidden state of a GRU
    th.testing.assert_close(kept, th.sigmoid(th.tensor(bias)).expand(kept.shape))


def test_by_default_a_fresh_mingru_forgets_at_many_rates_and_writes_what_it_does_not_keep():
    core = MinGRUCore(INPUT, hidden_size=11)
    nn.init.zeros_(core.linear.weight)
    nn.init.ones_(core.linear.bias[11:])  # candidates
    forget_biases = th.arange(11) / 2
    _, (written,) = core(th.randn(1, INPUT), core.initial_state(1))
    th.testing.assert_close(written, th.sigmoid(-forget_biases).unsqueeze(0))
    _, (mean,) = core(th.randn(1, INPUT), core.initial_state(1)._replace(hidden=th.full((1, 11), 3.0)))
    th.testing.assert_close(mean, 1 + 2 * th.sigmoid(forget_biases).unsqueeze(0))


def test_by_default_all_layers_of_a_fresh_lstm_have_the_biases_of_the_first():
    first, *others = LSTMCore(INPUT, hidden_size=11, num_layers=3).lstm.all_weights
    for layer in others:
        for bias, expected in zip(layer[2:], first[2:], strict=True):
            assert bias[:22].equal(expected[:22])


def test_by_default_a_fresh_lstm_forgets_at_many_rates_and_writes_less_the_longer_it_keeps():
    core = LSTMCore(INPUT, hidden_size=11)
    th.nn.init.zeros_(core.lstm.weight_ih_l0)
    th.nn.init.zeros_(core.lstm.weight_hh_l0)
    start = map_state(lambda array: array + 1, core.initial_state(1))
    kept = core(th.zeros(1, INPUT), start)[1].cell - core(th.zeros(1, INPUT), core.initial_state(1))[1].cell
    biases = th.arange(11) / 2
    th.testing.assert_close(kept, th.sigmoid(biases).unsqueeze(0))
    with th.no_grad():  # candidates of almost 1
        core.lstm.bias_ih_l0[22:33] = 20.0
    written = core(th.zeros(1, INPUT), core.initial_state(1))[1].cell
    th.testing.assert_close(written, th.sigmoid(-biases).unsqueeze(0))


def test_by_default_a_fresh_gru_keeps_most():
    assert GRUCore(INPUT).gru.bias_ih_l0[64:128].unique().tolist() == [1.0]


def test_bfloat16_rounds_sequences_but_not_steps_parameters_or_results():
    th.manual_seed(0)
    core, rounded = LSTMCore(INPUT, hidden_size=8), LSTMCore(INPUT, hidden_size=8, bf16=True)
    rounded.load_state_dict(core.state_dict())
    inputs, start = th.randn(40, 3, INPUT), core.initial_state(3)
    gradients = []
    for lstm in (core, rounded):
        outputs, after = lstm.unroll(inputs, start)
        assert {array.dtype for array in (outputs, *after, *lstm.parameters())} == {th.float32}
        gradients.append(th.autograd.grad(outputs.square().sum(), lstm.parameters()))
    outputs, rounded_outputs = core.unroll(inputs, start)[0], rounded.unroll(inputs, start)[0]
    assert not outputs.equal(rounded_outputs)
    th.testing.assert_close(rounded_outputs, outputs, rtol=0, atol=0.02)  # bfloat16 has 8 bits: 2^-8 = 0.004
    for rounded_gradient, gradient in zip(*reversed(gradients), strict=True):
        assert (rounded_gradient - gradient).norm() < 0.05 * gradient.norm()
    for array, expected in zip(rounded(inputs[0], start)[1], core(inputs[0], start)[1], strict=True):
        assert array.equal(expected)


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_warns_once_where_the_processor_does_not_have_it(monkeypatch, supported):
    monkeypatch.setattr(th.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    bfloat16._warn_if_slow.cache_clear()
    core = LSTMCore(INPUT, hidden_size=8, bf16=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            core.unroll(th.zeros(4, 1, INPUT), core.initial_state(1))
    assert [str(warning.message)[:9] for warning in caught] == ([] if supported else ["bf16=True"])
    bfloat16._warn_if_slow.cache_clear()
