"""The contract of memory cores, checked for all cores of the registry."""

import copy

import numpy as np
import pytest
import torch as th

from sb3_attn.common.core_state import map_state, state_from_arrays, where_rows
from sb3_attn.memory import (
    CORES,
    DNCCore,
    GTrXLCore,
    IdentityCore,
    KeyValueMemoryCore,
    LSTMCore,
    MemoryCore,
    NTMCore,
    make_core,
)

TIME, BATCH, INPUT = 6, 4, 5
TOLERANCE = dict(rtol=1e-10, atol=1e-12)


NTM = dict(hidden_size=6, n_slots=5, word_size=4)
DNC = dict(hidden_size=6, n_slots=5, word_size=3, n_reads=2)
KEY_VALUE = dict(hidden_size=6, n_slots=6, key_size=3, value_size=2)
#: Every core by its name, small; then what a switch turns into something else
VARIANTS: list[tuple[str, dict]] = [
    ("ctrnn", dict(hidden_size=6)),
    ("dnc", DNC),
    ("gtrxl", dict(hidden_size=8, n_layers=2, n_heads=2, memory_length=4)),
    ("gru", dict(hidden_size=6)),
    ("identity", {}),
    ("key_value", KEY_VALUE),
    ("lstm", dict(hidden_size=6)),
    ("mingru", dict(hidden_size=6)),
    ("ntm", NTM),
    ("rnn", dict(hidden_size=6)),
    ("ctrnn", dict(hidden_size=6, dt=80.0, nonlinearity="relu")),
    ("dnc", DNC | dict(masking=True, deallocation=True, link_sharpening=True, controller="feedforward")),
    ("dnc", DNC | dict(reference_form=True, output_size=3)),
    ("gru", dict(hidden_size=6, num_layers=2)),
    ("key_value", KEY_VALUE | dict(context="frmqn", n_hops=3)),
    ("key_value", KEY_VALUE | dict(context="rmqn", n_hops=2)),
    ("lstm", dict(hidden_size=6, num_layers=3)),
    ("ntm", NTM | dict(n_read_heads=2, n_write_heads=3, shift_range=2, memory_initialisation="learned")),
    ("ntm", NTM | dict(controller="feedforward", memory_initialisation="random", output_size=3)),
    ("rnn", dict(hidden_size=6, nonlinearity="relu")),
]


def variant_name(variant: tuple[str, dict]) -> str:
    name, kwargs = variant
    common = dict(item for other, sizes in VARIANTS[: len(CORES)] if other == name for item in sizes.items())
    return "-".join([name, *(f"{key}={value}" for key, value in kwargs.items() if key not in common)])


@pytest.fixture(params=VARIANTS, ids=variant_name)
def core(request) -> MemoryCore:
    th.manual_seed(0)
    name, kwargs = request.param
    return make_core(name, INPUT, kwargs).double()


def test_every_core_is_tested():
    assert sorted(name for name, _ in VARIANTS[: len(CORES)]) == sorted(CORES)


def random_inputs(*shape: int) -> th.Tensor:
    return th.randn(*shape, INPUT, dtype=th.float64)


def used_state(core: MemoryCore, batch_size: int = BATCH):
    """A state after some steps."""
    return core.unroll(random_inputs(3, batch_size), core.initial_state(batch_size))[1]


def assert_states_close(state, expected, **tolerance) -> None:
    assert type(state) is type(expected)
    for array, expected_array in zip(state, expected, strict=True):
        th.testing.assert_close(array, expected_array, **tolerance)


def test_unroll_equals_repeated_forward(core):
    inputs, start = random_inputs(TIME, BATCH), used_state(core)
    outputs, end = core.unroll(inputs, start)
    state, by_steps = start, []
    for step_inputs in inputs:
        output, state = core(step_inputs, state)
        by_steps.append(output)
    th.testing.assert_close(outputs, th.stack(by_steps), **TOLERANCE)
    assert_states_close(end, state, **TOLERANCE)


def test_unroll_and_repeated_forward_have_the_same_gradients(core):
    gradients = []
    inputs, weights = random_inputs(TIME, BATCH).requires_grad_(), th.randn(TIME, BATCH, core.output_size).double()
    for unroll in (core.unroll, lambda inputs, state: MemoryCore.unroll(core, inputs, state)):
        outputs, _ = unroll(inputs, core.initial_state(BATCH))
        gradients.append(th.autograd.grad((outputs * weights).sum(), [inputs, *core.parameters()]))
    for gradient, expected in zip(*gradients, strict=True):
        th.testing.assert_close(gradient, expected, **TOLERANCE)


def test_an_unroll_can_be_cut_anywhere(core):
    inputs, start = random_inputs(TIME, BATCH), used_state(core)
    whole, end = core.unroll(inputs, start)
    for cut in range(1, TIME):
        first, state = core.unroll(inputs[:cut], start)
        second, state = core.unroll(inputs[cut:], state)
        th.testing.assert_close(th.cat([first, second]), whole, **TOLERANCE)
        assert_states_close(state, end, **TOLERANCE)


@pytest.mark.parametrize("window_length", [2, 70])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v[0] in ("gtrxl", "key_value")], ids=variant_name)
def test_an_unroll_in_blocks_is_that_of_all_steps_at_once(variant, window_length):
    name, kwargs = variant
    core = make_core(name, INPUT, kwargs | CORES[name].window_kwargs(window_length)).double()
    inputs = random_inputs(150, BATCH).requires_grad_()
    outputs, end = core.unroll(inputs, core.initial_state(BATCH))
    (*results, _, at_once_end) = core._unroll(inputs, core.initial_state(BATCH))
    at_once = results[0] if name == "gtrxl" else th.cat(results, dim=-1)
    th.testing.assert_close(outputs, at_once, **TOLERANCE)
    assert_states_close(end, at_once_end, **TOLERANCE)
    weights, parameters = th.randn_like(outputs), [inputs, *core.parameters()]
    gradients = (th.autograd.grad((array * weights).sum(), parameters) for array in (outputs, at_once))
    for gradient, expected in zip(*gradients, strict=True):
        th.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


def test_rows_are_independent(core):
    inputs, start = random_inputs(TIME, BATCH), used_state(core)
    outputs, end = core.unroll(inputs, start)
    for row in range(BATCH):
        alone = slice(row, row + 1)
        output, state = core.unroll(inputs[:, alone], map_state(lambda array, alone=alone: array[alone], start))
        th.testing.assert_close(output, outputs[:, alone], **TOLERANCE)
        assert_states_close(state, map_state(lambda array, alone=alone: array[alone], end), **TOLERANCE)


def test_gradient_of_the_last_output_reaches_the_first_input_and_the_state(core):
    start = map_state(lambda array: array.detach().requires_grad_(), used_state(core))
    inputs = random_inputs(TIME, BATCH).requires_grad_()
    outputs, _ = core.unroll(inputs, start)
    # A field without a gradient (the DNC's last write weights, which entries are valid) has the gradient 0
    gradients = th.autograd.grad(outputs[-1].sum(), [inputs, *start], materialize_grads=True)
    has_memory = len(start) > 0
    assert bool((gradients[0][0] != 0).any()) == has_memory
    assert bool((gradients[0][-1] != 0).any())
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any((gradient != 0).any() for gradient in gradients[1:]) == has_memory


def test_double_precision_gradients_match_finite_differences(core):
    inputs = random_inputs(3, 2).requires_grad_()
    assert th.autograd.gradcheck(lambda inputs: core.unroll(inputs, core.initial_state(2))[0], [inputs])


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_dtype_and_shapes(core, dtype):
    core = core.to(dtype)
    outputs, state = core.unroll(random_inputs(TIME, BATCH).to(dtype), core.initial_state(BATCH))
    assert outputs.shape == (TIME, BATCH, core.output_size) and outputs.dtype == dtype
    output, step_state = core(random_inputs(BATCH).to(dtype), state)
    assert output.shape == (BATCH, core.output_size) and output.dtype == dtype
    for after, before in zip(step_state, core.initial_state(BATCH), strict=True):
        assert after.shape == before.shape and after.dtype == before.dtype


def test_state_is_a_flat_named_tuple_with_the_batch_first(core):
    for state in (core.initial_state(BATCH), used_state(core)):
        assert isinstance(state, tuple) and len(state._fields) == len(state)
        assert all(isinstance(array, th.Tensor) and array.shape[0] == BATCH for array in state)
    one = core.initial_state(1)
    assert_states_close(core.initial_state(BATCH), map_state(lambda array: array.expand(BATCH, *array.shape[1:]), one))


def test_weights_for_pictures_mean_what_the_core_says(core):
    weights = core.memory_weights(random_inputs(BATCH), used_state(core))
    assert weights.keys() == core.weights_info.keys()
    for name, array in weights.items():
        info = core.weights_info[name]
        n_slots = array.shape[-1]
        assert array.dim() == 3 and len(array) == BATCH
        assert info.pair_label is None or array.shape[1] == n_slots
        assert not info.is_distribution or ((array >= 0).all() and (array.sum(dim=-1) < 1 + 1e-6).all())


def test_a_call_changes_neither_the_core_nor_its_arguments(core):
    inputs, start = random_inputs(TIME, BATCH), used_state(core)
    before = copy.deepcopy((core.state_dict(), sorted(core.__dict__), inputs, [array.detach() for array in start]))
    first = core.unroll(inputs, start)[0]
    core(inputs[0], start)
    after = core.state_dict(), sorted(core.__dict__), inputs, [array.detach() for array in start]
    assert after[1] == before[1]
    for index in (0, 2, 3):
        th.testing.assert_close(after[index], before[index], rtol=0, atol=0)
    th.testing.assert_close(core.unroll(inputs, start)[0], first, rtol=0, atol=0)


def test_a_state_survives_numpy(core):
    state = map_state(lambda array: array.detach(), used_state(core))
    arrays = tuple(array.numpy().copy() for array in state)
    back = state_from_arrays(arrays, like=core.initial_state(BATCH))
    assert_states_close(back, state, rtol=0, atol=0)
    inputs = random_inputs(BATCH)
    th.testing.assert_close(core(inputs, back)[0], core(inputs, state)[0], rtol=0, atol=0)


def test_arrays_of_another_state_are_refused():
    like = LSTMCore(INPUT, hidden_size=3).initial_state(2)
    arrays = tuple(array.numpy() for array in like)
    for wrong in (arrays[:1], tuple(array[:1] for array in arrays), tuple(array[:, :2] for array in arrays), ()):
        with pytest.raises(ValueError, match=r"expected|has arrays of shapes"):
            state_from_arrays(wrong, like)


def test_rows_are_taken_from_one_of_two_states(core):
    state, other = used_state(core), used_state(core)
    rows = th.tensor([True, False, False, True])
    mixed = where_rows(rows, state, other)
    for array, yes, no in zip(mixed, state, other, strict=True):
        assert array[rows].equal(yes[rows]) and array[~rows].equal(no[~rows])
    assert len(state) == 0 or any(not yes.equal(no) for yes, no in zip(state, other, strict=True))


def test_identity_core_remembers_nothing():
    core, inputs = IdentityCore(INPUT), th.randn(TIME, BATCH, INPUT)
    outputs, state = core.unroll(inputs, core.initial_state(BATCH))
    assert outputs.equal(inputs) and len(state) == 0 and core.output_size == INPUT


def n_floats(core: MemoryCore) -> int:
    return sum(array[0].numel() for array in core.initial_state(1))


@pytest.mark.parametrize(
    ("core", "size"),
    [
        (LSTMCore(INPUT, hidden_size=256), 512),
        (LSTMCore(INPUT, hidden_size=64, num_layers=3), 384),
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
        ("lstm", dict(num_layers=0), r"num_layers=0 of LSTMCore must be at least 1"),
        ("gru", dict(num_layers=1.0), r"num_layers=1.0 of GRUCore must be at least 1"),
        ("rnn", dict(nonlinearity="gelu"), r"nonlinearity='gelu' is unknown; choose one of \['tanh', 'relu'\]"),
        ("ctrnn", dict(nonlinearity="gelu"), r"nonlinearity='gelu' is unknown"),
        ("ctrnn", dict(dt=0.0), r"dt=0.0 and tau=100.0 of CTRNNCore do not fit"),
        ("ctrnn", dict(dt=20.0, tau=10.0), r"dt=20.0 and tau=10.0 of CTRNNCore do not fit"),
    ],
)
def test_wrong_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_core(name, INPUT, kwargs)


@pytest.mark.parametrize("core", sorted(CORES))
def test_make_core_refuses_sizes_that_are_not_positive(core):
    with pytest.raises(ValueError, match=r"input_size=0 .* must be at least 1"):
        make_core(core, 0)


@pytest.mark.parametrize("core", sorted(set(CORES) - {"identity"}))
def test_sizes_may_be_integers_of_numpy(core):
    assert make_core(core, 3, dict(hidden_size=np.int64(8))).input_size == 3


def test_a_shift_range_may_be_an_integer_of_numpy():
    assert make_core("ntm", 3, dict(shift_range=np.int64(2))).interface_sizes["shifts"] == 2 * 5


@pytest.mark.parametrize("core", sorted(set(CORES) - {"identity"}))
@pytest.mark.parametrize("size", [0, -64, 8.0, "8", True, float("nan")])
def test_sizes_are_positive_integers(core, size):
    with pytest.raises(ValueError, match=f"hidden_size={size!r} of .* must be at least 1"):
        make_core(core, 3, dict(hidden_size=size))


@pytest.mark.parametrize(
    ("core", "name"),
    [
        ("lstm", "forget_bias"),
        ("gru", "update_bias"),
        ("ntm", "forget_bias"),
        ("ntm", "gate_bias"),
        ("dnc", "forget_bias"),
        ("key_value", "forget_bias"),
        ("gtrxl", "gate_bias"),
        ("mingru", "forget_bias"),
        ("ctrnn", "tau"),
        ("ctrnn", "dt"),
    ],
)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), "1"])
def test_numbers_are_finite(core, name, number):
    with pytest.raises(ValueError, match=f"{name}={number!r} of .* is not finite"):
        make_core(core, 3, {name: number})


@pytest.mark.parametrize(
    ("core", "sizes"),
    [
        ("ntm", ("hidden_size", "n_slots", "word_size")),
        ("dnc", ("hidden_size", "n_slots", "word_size")),
        ("key_value", ("hidden_size", "n_slots", "key_size")),
        ("gtrxl", ("hidden_size", "memory_length")),
    ],
)
def test_numpy_integers_are_sizes(core, sizes):
    made = make_core(core, 3, {name: np.int64(8) for name in sizes})
    made.unroll(th.zeros(2, 1, 3), made.initial_state(1))
