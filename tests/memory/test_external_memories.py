"""What is particular to the cores with an external memory."""

import pickle

import pytest
import torch as th
from torch._dynamo.utils import counters

from sb3_attn.common.core_state import map_state
from sb3_attn.memory import DNCCore, GTrXLCore, KeyValueMemoryCore, LSTMCore, MemoryCore, NTMCore, make_core
from sb3_attn.memory.external.gradients import has_compiler
from sb3_attn.memory.external.ntm import NTMState
from sb3_attn.memory.gtrxl import GRUGate

INPUT = 5


@pytest.fixture(autouse=True)
def _seed():
    th.manual_seed(0)


def n_floats(core: MemoryCore) -> int:
    return sum(array[0].numel() for array in core.initial_state(1))


@pytest.mark.parametrize(
    ("core", "size"),
    [
        (LSTMCore(INPUT, hidden_size=256), 512),
        (NTMCore(INPUT, hidden_size=100, n_slots=128, word_size=20), 3036),
        (DNCCore(INPUT, hidden_size=64, n_slots=16, word_size=16, n_reads=4), 816),
        (DNCCore(INPUT, hidden_size=64, n_slots=128, word_size=16, n_reads=4), 19520),
        (KeyValueMemoryCore(INPUT), 4160),
        (GTrXLCore(INPUT), 4160),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_states_have_the_documented_sizes(core, size):
    assert n_floats(core) == size
    assert f"{size:,}" in (type(core).__doc__ or "") or isinstance(core, LSTMCore)


@pytest.mark.parametrize("core_class", [NTMCore, DNCCore])
@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_gradients_are_finite_at_an_empty_memory_of_many_slots(core_class, controller):
    core = core_class(INPUT, hidden_size=16, n_slots=128, word_size=8, controller=controller)
    start = core.initial_state(2)
    start = start._replace(memory=th.zeros_like(start.memory).requires_grad_())
    outputs, end = core.unroll(th.randn(8, 2, INPUT), start)
    loss = outputs.square().sum() + sum(array.square().sum() for array in end)
    gradients = th.autograd.grad(loss, [start.memory, *core.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_gradients_are_finite_at_even_weights_with_much_sharpening():
    core = NTMCore(INPUT, hidden_size=16, n_slots=128, word_size=8)
    first = sum(core.head_sizes[name] for name in ("keys", "add", "shifts", "strengths"))
    with th.no_grad():
        core.heads.bias[first : first + core.head_sizes["exponents"]] = 24.0
    start = core.initial_state(2)
    even = start._replace(
        read_weights=th.full_like(start.read_weights, 1 / 128), write_weights=th.full_like(start.write_weights, 1 / 128)
    )
    assert (core.tell_heads(th.zeros(1, 16)).exponents >= 25).all()
    outputs, end = core.unroll(th.randn(8, 2, INPUT), even)
    th.testing.assert_close(end.read_weights.sum(dim=-1), th.ones(2, 1))
    gradients = th.autograd.grad(outputs.square().sum(), list(core.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("ntm", dict(n_slots=7, word_size=4)),
        ("ntm", dict(n_slots=7, word_size=4, n_read_heads=3, n_write_heads=2, shift_range=2)),
        ("dnc", dict(n_slots=5, word_size=3, n_reads=1)),
        ("dnc", dict(n_slots=6, word_size=4, n_reads=3)),
    ],
)
def test_a_written_gradient_equals_autograd(name, kwargs):
    core = make_core(name, INPUT, dict(hidden_size=6, **kwargs)).double()
    assert core.written_gradient() is not None
    inputs = th.randn(6, 3, INPUT, dtype=th.float64, requires_grad=True)
    with th.no_grad():
        used = core.unroll(th.randn(4, 3, INPUT, dtype=th.float64), core.initial_state(3))[1]
    start = map_state(lambda array: array.detach().requires_grad_(), used)
    wanted = [inputs, *start, *core.parameters()]
    targets, gradients = None, []
    for unroll in (core.unroll, lambda inputs, state: MemoryCore.unroll(core, inputs, state)):
        outputs, end = unroll(inputs, start)
        results = [outputs, *end]
        targets = [th.randn_like(result) for result in results] if targets is None else targets
        loss = sum((result * target).sum() for result, target in zip(results, targets, strict=True))
        gradients.append(th.autograd.grad(loss, wanted, materialize_grads=True))
    for gradient, expected in zip(*gradients, strict=True):
        th.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # those that torch.compile causes inside PyTorch
@pytest.mark.parametrize(("name", "kwargs"), [("ntm", {}), ("dnc", dict(deallocation=True))])
def test_a_compiled_core_is_the_same(name, kwargs):
    kwargs = dict(hidden_size=6, n_slots=7, word_size=4, **kwargs)
    plain, compiled = make_core(name, INPUT, kwargs), make_core(name, INPUT, {**kwargs, "compiled": True})
    compiled.load_state_dict(plain.state_dict())
    inputs, graphs = th.randn(4, 3, INPUT), counters["stats"]["unique_graphs"]
    results = []
    for core in (plain, compiled):
        outputs, end = core.unroll(inputs, core.initial_state(3))
        loss = outputs.square().sum() + sum(array.square().sum() for array in end)
        results.append((outputs, *end, *th.autograd.grad(loss, list(core.parameters()))))
    for result, expected in zip(*results, strict=True):
        th.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] > graphs, "nothing was compiled"
    assert pickle.loads(pickle.dumps(compiled)).compiled


def test_a_learned_initial_memory_has_a_gradient():
    core = NTMCore(INPUT, hidden_size=6, n_slots=7, word_size=4, memory_initialisation="learned")
    outputs, _ = core.unroll(th.randn(3, 2, INPUT), core.initial_state(2))
    outputs.sum().backward()
    assert core.initial_memory.grad is not None and (core.initial_memory.grad != 0).any()


@pytest.mark.parametrize("name", ["ntm", "dnc"])
def test_without_a_compiler_it_is_said_and_not_compiled(name, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match=r"compiled=True needs a C\+\+ compiler .* install g\+\+"):
        core = make_core(name, INPUT, dict(compiled=True))
    assert not core.compiled
    core.unroll(th.zeros(2, 1, INPUT), core.initial_state(1))


@pytest.mark.parametrize(("gate_bias", "first"), [(-20.0, 1.0), (20.0, 1 / 128)])
def test_a_gate_bias_leaves_the_heads_to_location_or_to_content(gate_bias, first):
    core = NTMCore(INPUT, n_slots=128, shift_range=0, gate_bias=gate_bias)
    _, state = core(th.randn(2, INPUT), core.initial_state(2))  # no slot differs from the others yet
    for weights in (state.read_weights, state.write_weights):
        th.testing.assert_close(weights[..., 0], th.full((2, 1), first), rtol=0, atol=1e-4)


def test_the_heads_of_an_ntm_start_at_the_first_slot_and_their_weights_sum_to_one():
    core = NTMCore(INPUT, n_read_heads=2)
    state = core.initial_state(3)
    assert isinstance(state, NTMState) and (state.read_weights[..., 0] == 1).all() and state.write_weights.sum() == 3
    _, state = core.unroll(th.randn(20, 3, INPUT), state)
    for weights in (state.read_weights, state.write_weights):
        th.testing.assert_close(weights.sum(dim=-1), th.ones(weights.shape[:2]))


def test_weights_of_a_dnc_sum_to_at_most_one():
    core = DNCCore(INPUT, masking=True, deallocation=True, link_sharpening=True)
    _, state = core.unroll(3 * th.randn(30, 4, INPUT), core.initial_state(4))
    for weights in (state.read_weights, state.write_weights, state.precedence):
        assert (weights >= 0).all() and (weights.sum(dim=-1) <= 1 + 1e-5).all()
    assert (state.usage >= 0).all() and (state.usage <= 1 + 1e-6).all()
    assert (state.link.diagonal(dim1=-2, dim2=-1) == 0).all()


@pytest.mark.parametrize("deallocation", [False, True])
def test_deallocation_erases_what_is_freed_as_far_as_it_was_read_and_before_the_write(deallocation):
    access = DNCCore(INPUT, n_slots=4, word_size=3, n_reads=1, deallocation=deallocation).access
    sizes = access.interface_sizes
    with th.no_grad():  # frees all that was read, erases nothing, and writes 5 to the slot that is free
        access.interface.weight.zero_()
        bias = dict(zip(sizes, access.interface.bias.zero_().split(list(sizes.values())), strict=True))
        for gate in ("free_gate", "write_gate", "allocation_gate"):
            bias[gate].fill_(100.0)
        bias["erase_vectors"].fill_(-100.0)
        bias["write_vectors"].fill_(5.0)
    read = th.tensor([[[1.0, 0.5, 0.0, 0.0]]])
    start = access.initial_state(1)._replace(memory=th.randn(1, 4, 3), usage=th.ones(1, 4), read_weights=read)
    _, end = access(th.zeros(1, access.interface.in_features), start)
    kept = 1 - read.mT if deallocation else 1.0
    expected = start.memory * kept + 5 * th.tensor([1.0, 0.0, 0.0, 0.0]).unsqueeze(-1)
    th.testing.assert_close(end.memory, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("context", ["mqn", "rmqn", "frmqn"])
def test_an_empty_key_value_memory_answers_nothing_and_the_present_is_not_in_it(context):
    core = KeyValueMemoryCore(INPUT, hidden_size=6, n_slots=4, key_size=3, value_size=2, context=context, n_hops=2)
    inputs = th.randn(3, 2, INPUT)
    outputs, state = core.unroll(inputs, core.initial_state(2))
    assert (outputs[0, :, -2:] == 0).all() and (outputs[1, :, -2:] != 0).all()
    weights = core.memory_weights(inputs[0], state)["retrieval"]
    assert weights.shape == (2, 2, 4) and (weights[..., 0] == 0).all()
    th.testing.assert_close(weights.sum(dim=-1), th.ones(2, 2))


def test_a_key_value_memory_finds_the_value_of_the_key_that_fits():
    core = KeyValueMemoryCore(3, hidden_size=3, n_slots=5, key_size=3, value_size=3, context="mqn").double()
    with th.no_grad():
        core.ages.zero_()
        for layer, rows in (
            (core.pair, th.cat((100 * th.eye(3), th.eye(3)))),
            (core.context, th.eye(3)),
            (core.question, th.eye(3)),
        ):
            layer.weight.copy_(rows)
            layer.bias.zero_()
    words = 5 * th.eye(3).double()
    outputs, _ = core.unroll(words[[0, 1, 2, 1]].unsqueeze(1), core.initial_state(1))
    th.testing.assert_close(outputs[3, 0, 3:], words[1], rtol=0, atol=1e-6)


def test_a_key_value_memory_can_ask_for_an_age():
    core = KeyValueMemoryCore(3, hidden_size=3, n_slots=5, key_size=3, value_size=3, context="mqn").double()
    with th.no_grad():
        for parameter in core.parameters():
            parameter.zero_()
        core.pair.weight[3:] = th.eye(3)
        core.question.bias.fill_(1.0)
        core.ages[-2] = 100.0  # two steps ago
    inputs = th.randn(7, 2, 3, dtype=th.float64)
    outputs, _ = core.unroll(inputs, core.initial_state(2))
    th.testing.assert_close(outputs[2:, :, 3:], inputs[:-2])


@pytest.mark.parametrize("core_class", [KeyValueMemoryCore, GTrXLCore])
def test_what_left_the_window_has_no_influence_and_what_is_in_it_has(core_class):
    if core_class is KeyValueMemoryCore:
        core = core_class(INPUT, hidden_size=6, n_slots=4, context="mqn")
    else:
        core = core_class(INPUT, hidden_size=8, n_heads=2, memory_length=4)
    inputs = th.randn(8, 1, INPUT)
    expected = core.unroll(inputs, core.initial_state(1))[0][-1]
    for step in range(7):
        changed = inputs.clone()
        changed[step] += 1
        output = core.unroll(changed, core.initial_state(1))[0][-1]
        assert th.equal(output, expected) == (step < 3)


def test_attention_of_a_gated_transformer_covers_the_steps_there_were():
    core = GTrXLCore(INPUT, hidden_size=8, n_layers=3, n_heads=2, memory_length=4)
    _, state = core.unroll(th.randn(2, 3, INPUT), core.initial_state(3))
    weights = core.memory_weights(th.randn(3, INPUT), state)["attention"]
    assert weights.shape == (3, 6, 5) and (weights[..., :2] == 0).all() and (weights[..., 2:] > 0).all()
    th.testing.assert_close(weights.sum(dim=-1), th.ones(3, 6))


def test_a_fresh_gate_lets_little_in():
    gate = GRUGate(4, bias=2.0)
    for parameter in (gate.of_new.weight, gate.of_old.weight):
        th.nn.init.zeros_(parameter)
    old = th.randn(3, 4)
    share = float(th.sigmoid(th.tensor(-2.0)))
    kept = (1 - share) * old + share * (gate.of_reset(0.5 * old)).tanh()
    th.testing.assert_close(gate(old, th.randn(3, 4)), kept)
    assert 0.11 < share < 0.12


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("ntm", dict(n_slots=0), r"n_slots=0 of NTMCore must be at least 1"),
        ("ntm", dict(n_slots=4, shift_range=2), r"shift_range=2 does not fit n_slots=4; give 0 to 1"),
        ("ntm", dict(controller="gru"), r"controller='gru' is unknown; choose one of \['lstm', 'feedforward'\]"),
        ("ntm", dict(memory_initialisation="ones"), r"memory_initialisation='ones' is unknown"),
        ("dnc", dict(n_reads=0), r"n_reads=0 of DNCCore"),
        ("dnc", dict(masking=True, reference_form=True), r"masking=True has no reference form"),
        ("key_value", dict(context="lstm"), r"context='lstm' is unknown; choose one of \['mqn', 'rmqn', 'frmqn'\]"),
        ("key_value", dict(n_hops=0), r"n_hops=0 of KeyValueMemoryCore"),
        ("gtrxl", dict(n_heads=3), r"n_heads=3 does not divide hidden_size=64"),
        ("gtrxl", dict(memory_length=0), r"memory_length=0 of GTrXLCore"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_core(name, INPUT, kwargs)
