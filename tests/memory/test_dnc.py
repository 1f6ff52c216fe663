"""The differentiable neural computer: its weights, and what is freed."""

import pytest
import torch as th

from sb3_attn.memory import DNCCore

INPUT = 5


def test_weights_sum_to_at_most_one():
    core = DNCCore(INPUT, masking=True, deallocation=True, link_sharpening=True)
    _, state = core.unroll(3 * th.randn(30, 4, INPUT), core.initial_state(4))
    for weights in (state.read_weights, state.write_weights, state.precedence):
        assert (weights >= 0).all() and (weights.sum(dim=-1) <= 1 + 1e-5).all()
    assert (state.usage >= 0).all() and (state.usage <= 1 + 1e-6).all()
    assert (state.link.diagonal(dim1=-2, dim2=-1) == 0).all()


@pytest.mark.parametrize("deallocation", [False, True])
def test_deallocation_erases_what_is_freed_as_far_as_it_was_read_and_before_the_write(deallocation):
    core = DNCCore(INPUT, n_slots=4, word_size=3, n_reads=1, deallocation=deallocation)
    access = core.access
    sizes = access.interface_sizes
    with th.no_grad():  # frees all that was read, erases nothing, and writes 5 to the slot that is free
        access.interface.weight.zero_()
        bias = dict(zip(sizes, access.interface.bias.zero_().split(list(sizes.values())), strict=True))
        for gate in ("free_gate", "write_gate", "allocation_gate"):
            bias[gate].fill_(100.0)
        bias["erase_vectors"].fill_(-100.0)
        bias["write_vectors"].fill_(5.0)
    read = th.tensor([[[1.0, 0.5, 0.0, 0.0]]])
    start = core.initial_state(1)._replace(memory=th.randn(1, 4, 3), usage=th.ones(1, 4), read_weights=read)
    end = access(th.zeros(1, access.interface.in_features), start)
    kept = 1 - read.mT if deallocation else 1.0
    expected = start.memory * kept + 5 * th.tensor([1.0, 0.0, 0.0, 0.0]).unsqueeze(-1)
    th.testing.assert_close(end.memory, expected, rtol=0, atol=1e-4)
