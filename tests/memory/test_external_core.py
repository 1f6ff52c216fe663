"""The common part of NTM and DNC: gradients at an empty memory, and compilation."""

import pickle

import pytest
import torch as th
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

from sb3_attn.memory import DNCCore, NTMCore, make_core
from sb3_attn.memory.external.core import has_compiler

INPUT = 5


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


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # those that torch.compile causes inside PyTorch
# Without vector instructions: PyTorch would compile ten programs first, to see which instructions the processor has
@inductor_config.patch({"cpp.simdlen": 1})
@pytest.mark.parametrize(("name", "kwargs"), [("ntm", {}), ("dnc", dict(deallocation=True))])
def test_a_compiled_core_has_the_same_results_and_gradients(name, kwargs):
    kwargs = dict(hidden_size=6, n_slots=7, word_size=4, **kwargs)
    plain, compiled = make_core(name, INPUT, kwargs), make_core(name, INPUT, {**kwargs, "compiled": True})
    compiled.load_state_dict(plain.state_dict())
    inputs, graphs = th.randn(4, 3, INPUT), counters["stats"]["unique_graphs"]
    start = plain.initial_state(3)
    if name == "dnc":  # autograd goes through its steps: with a gradient from the first on, they are compiled once, not twice
        start = start._make(field.detach().clone().requires_grad_() for field in start)
    results = []
    for core in (plain, compiled):
        outputs, end = core.unroll(inputs, start)
        loss = outputs.square().sum() + sum(array.square().sum() for array in end)
        results.append((outputs, *end, *th.autograd.grad(loss, list(core.parameters()))))
    for result, expected in zip(*results, strict=True):
        th.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] > graphs, "nothing was compiled"
    assert pickle.loads(pickle.dumps(compiled)).compiled


@pytest.mark.parametrize("name", ["ntm", "dnc"])
def test_compiled_without_a_compiler_warns_and_is_off(name, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match=r"compiled=True needs a C\+\+ compiler .* install g\+\+"):
        core = make_core(name, INPUT, dict(compiled=True))
    assert not core.compiled
    core.unroll(th.zeros(2, 1, INPUT), core.initial_state(1))
