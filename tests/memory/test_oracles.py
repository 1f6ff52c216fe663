"""Every core that is not torch's against the loops in ``helpers/oracles.py``."""

from collections.abc import Callable

import numpy as np
import pytest
import torch as th

from sb3_attn.common.core_state import CoreState, map_state, where_rows
from sb3_attn.memory import MemoryCore, make_core
from tests.helpers import oracles

INPUT, BATCH = 3, 3
TOLERANCE = dict(rtol=1e-9, atol=1e-11)
ALL_SWITCHES = dict(masking=True, deallocation=True, link_sharpening=True)

#: An oracle, the core's name, its sizes, and the arguments that the oracle needs to know too
CASES: list[tuple[Callable[..., oracles.Result], str, dict, dict]] = [
    *(
        (oracles.ctrnn, "ctrnn", dict(hidden_size=4), dict(tau=tau, dt=dt, nonlinearity=nonlinearity))
        for tau, dt in [(100.0, 20.0), (2.0, 2.0)]
        for nonlinearity in ("tanh", "relu")
    ),
    (oracles.min_gru, "mingru", dict(hidden_size=4), {}),
    *(
        (oracles.gtrxl, "gtrxl", sizes, dict(n_heads=n_heads))
        for sizes, n_heads in [
            (dict(hidden_size=4, memory_length=3), 1),
            (dict(hidden_size=8, memory_length=4, n_layers=2, feedforward_size=5), 2),
            (dict(hidden_size=6, memory_length=1, n_layers=3), 3),
            (dict(hidden_size=4, memory_length=12), 4),
        ]
    ),
    *(
        (oracles.key_value, "key_value", sizes, dict(context=context, n_hops=n_hops))
        for context in ("mqn", "rmqn", "frmqn")
        for sizes, n_hops in [
            (dict(hidden_size=4, n_slots=3, key_size=3, value_size=2), 3),
            (dict(hidden_size=3, n_slots=1, key_size=2, value_size=4), 2),
            (dict(hidden_size=5, n_slots=12, key_size=4, value_size=3), 1),
        ]
    ),
    *(
        (oracles.ntm, "ntm", sizes, dict(controller=controller, shift_range=shift_range))
        for controller in ("lstm", "feedforward")
        for sizes, shift_range in [
            (dict(hidden_size=5, n_slots=6, word_size=4), 1),
            (dict(hidden_size=4, n_slots=7, word_size=3, n_read_heads=2, n_write_heads=3, output_size=2), 2),
            (dict(hidden_size=4, n_slots=3, word_size=2, n_read_heads=2, memory_initialisation="learned"), 0),
        ]
    ),
    *(
        (oracles.dnc, "dnc", sizes, dict(controller=controller, **switches))
        for controller in ("lstm", "feedforward")
        for sizes in [
            dict(hidden_size=5, n_slots=7, word_size=4, n_reads=2),
            dict(hidden_size=4, n_slots=3, word_size=1, n_reads=1, output_size=2),
        ]
        for switches in [{}, *({name: True} for name in ALL_SWITCHES), ALL_SWITCHES]
    ),
]


def name_of(case: tuple) -> str:
    _, name, sizes, arguments = case
    return "-".join([name, *(f"{key}={value}" for key, value in (sizes | arguments).items())])


@pytest.fixture(params=CASES, ids=name_of)
def case(request) -> tuple[MemoryCore, Callable[..., oracles.Result]]:
    """A core, and its oracle for inputs ``[T, F]`` and a state without batch axis."""
    oracle, name, sizes, arguments = request.param
    core = make_core(name, INPUT, sizes | arguments).double()
    with th.no_grad():  # many parameters start at 0 or 1, where it does not matter what is done with them
        for parameter in core.parameters():
            parameter.normal_(std=0.7)
    parameters = {name: parameter.detach().numpy() for name, parameter in core.named_parameters()}
    return core, lambda inputs, state: oracle(parameters, inputs, state, **arguments)


def random_inputs(n_steps: int) -> th.Tensor:
    return 2 * th.randn(n_steps, BATCH, INPUT, dtype=th.float64)


def start_state(core: MemoryCore) -> CoreState:
    """An empty memory in the first row, and in the others one that has been in use."""
    empty = map_state(th.Tensor.detach, core.initial_state(BATCH))
    if hasattr(empty, "usage"):
        # Of slots used alike the first is allocated; rounding would break such ties in one way here, in another there
        empty = empty._replace(usage=th.rand_like(empty.usage))
    start = empty._replace(memory=th.randn_like(empty.memory)) if hasattr(empty, "memory") else empty
    used = core.unroll(random_inputs(2), start)[1]
    return map_state(th.Tensor.detach, where_rows(th.arange(BATCH) == 0, empty, used))


def row_of(state: CoreState, row: int) -> dict[str, np.ndarray]:
    return {name: array[row].detach().numpy() for name, array in state._asdict().items()}


def assert_equal_to_the_oracle(outputs: th.Tensor, end: CoreState, expected: list[oracles.Result]) -> None:
    for row, result in enumerate(expected):
        np.testing.assert_allclose(outputs[:, row].detach(), result.outputs, **TOLERANCE, err_msg="outputs")
        arrays = row_of(end, row)
        assert arrays.keys() == result.state.keys()
        for name, array in arrays.items():
            np.testing.assert_allclose(array, result.state[name], **TOLERANCE, err_msg=name)


@pytest.mark.parametrize("n_steps", [1, 9])  # 9 steps are more than most windows hold
def test_unroll_and_forward_are_the_papers_equations(case, n_steps):
    core, oracle = case
    inputs, start = random_inputs(n_steps), start_state(core)
    expected = [oracle(inputs[:, row].numpy(), row_of(start, row)) for row in range(BATCH)]
    assert_equal_to_the_oracle(*core.unroll(inputs, start), expected=expected)
    outputs, state = [], start
    for step_inputs in inputs:
        output, state = core(step_inputs, state)
        outputs.append(output)
    assert_equal_to_the_oracle(th.stack(outputs), state, expected)


def test_weights_for_pictures_are_those_that_the_step_used(case):
    core, oracle = case
    inputs, start = random_inputs(1), start_state(core)
    weights = core.memory_weights(inputs[0], start)
    for row in range(BATCH):
        expected = oracle(inputs[:, row].numpy(), row_of(start, row)).weights
        assert weights.keys() == expected.keys()
        for name, array in weights.items():
            np.testing.assert_allclose(array[row].detach(), expected[name], **TOLERANCE, err_msg=name)
