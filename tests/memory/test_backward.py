"""
The custom backward passes of NTM and DNC against autograd.

Also in hard places: many slots, ties between them, float32 with gates that are nearly open or closed.
"""

import pytest
import torch as th

from sb3_attn.common.core_state import CoreState, map_state
from sb3_attn.memory import MemoryCore, make_core
from sb3_attn.memory.external.core import ExternalMemoryCore

INPUT, BATCH, TIME = 5, 2, 12


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("ntm", dict(n_slots=7, word_size=4)),
        ("ntm", dict(n_slots=7, word_size=4, n_read_heads=3, n_write_heads=2, shift_range=2)),
        ("dnc", dict(n_slots=5, word_size=3, n_reads=1)),
        ("dnc", dict(n_slots=6, word_size=4, n_reads=3)),
    ],
)
def test_gradients_equal_autograd(name, kwargs):
    core = make_core(name, INPUT, dict(hidden_size=6, **kwargs)).double()
    assert core.custom_backward() is not None
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


def gradients_of_both(core: ExternalMemoryCore, start: CoreState, monkeypatch) -> list[dict[str, th.Tensor]]:
    """
    Gradients of the custom backward pass and of autograd, by the names of parameters and of the first state's fields.

    Both follow the same forward pass, bit for bit: otherwise rounding would break ties between slots differently, and the
    two memories would be written in different places.
    """
    inputs = th.randn(TIME, BATCH, INPUT, dtype=start.memory.dtype)
    start = map_state(lambda array: array.detach().clone().requires_grad_(), start)
    wanted = dict(core.named_parameters()) | start._asdict()
    results, gradients, targets = [], [], None
    assert core.custom_backward() is not None
    for _ in range(2):
        outputs, end = core.unroll(inputs, start)
        results.append([outputs, *end])
        targets = [th.randn_like(array) for array in results[-1]] if targets is None else targets
        loss = sum((array * target).sum() for array, target in zip(results[-1], targets, strict=True))
        found = th.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
        gradients.append(dict(zip(wanted, found, strict=True)))
        monkeypatch.setattr(core, "custom_backward", lambda: None)
    assert all(first.equal(second) for first, second in zip(*results, strict=True))
    return gradients


def relative_error(gradient: th.Tensor, expected: th.Tensor) -> float:
    return ((gradient - expected).norm() / expected.norm()).item()


def start_of(core: ExternalMemoryCore, ties: bool) -> CoreState:
    """The state before an episode, or one in which each usage is that of several slots."""
    start = core.initial_state(BATCH)
    return start._replace(usage=th.rand_like(start.usage).round(decimals=1)) if ties else start


@pytest.mark.parametrize(("name", "ties"), [("ntm", False), ("dnc", False), ("dnc", True)])
def test_gradients_over_128_slots_equal_autograd(name, ties, monkeypatch):
    core = make_core(name, INPUT, dict(hidden_size=16, n_slots=128, word_size=8)).double()
    gradients, expected = gradients_of_both(core, start_of(core, ties), monkeypatch)
    for key, gradient in gradients.items():
        th.testing.assert_close(gradient, expected[key], rtol=1e-8, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("ties", [False, True])
def test_the_allocation_of_free_and_full_slots_has_an_accurate_gradient_in_float32(ties, monkeypatch):
    """It divides sums over slots by usages down to 1e-6; a sum that lost digits was off by 0.5 %."""
    core = make_core("dnc", INPUT, dict(hidden_size=16, n_slots=32, word_size=8, n_reads=2))
    interface, sizes = core.access.interface, core.access.interface_sizes
    rows = dict(zip(sizes, th.arange(interface.out_features).split(list(sizes.values())), strict=True))
    with th.no_grad():
        interface.weight.mul_(10)  # decided gates leave slots either free or full
        for gate in ("allocation_gate", "write_gate"):
            interface.bias[rows[gate]] = 4.0
    gradients, expected = gradients_of_both(core, start_of(core, ties), monkeypatch)
    assert relative_error(gradients["usage"], expected["usage"]) < 1e-5
    of_free_gates = [found["access.interface.bias"][rows["free_gate"]] for found in (gradients, expected)]
    assert relative_error(*of_free_gates) < 1e-5
