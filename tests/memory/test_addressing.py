"""The addressing of external memories against loops over slots, and its properties."""

import numpy as np
import pytest
import torch as th

from sb3_attn.memory.external import addressing

BATCH, HEADS, SLOTS, WORD = 3, 2, 7, 4
TOLERANCE = dict(rtol=1e-12, atol=1e-14)


def normal(*shape: int) -> th.Tensor:
    return th.randn(*shape, dtype=th.float64)


def uniform(*shape: int) -> th.Tensor:
    return th.rand(*shape, dtype=th.float64)


def weights(*shape: int) -> th.Tensor:
    return (2 * normal(*shape)).softmax(dim=-1)


def by_loop(function, *arrays: th.Tensor) -> th.Tensor:
    """Apply a function of numpy arrays to each row of a batch."""
    rows = [function(*(array[row].numpy() for array in arrays)) for row in range(BATCH)]
    return th.from_numpy(np.stack(rows))


def test_cosine_similarity_is_the_cosine_of_the_angle():
    keys, memory = normal(BATCH, HEADS, WORD), normal(BATCH, SLOTS, WORD)

    def cosines(keys, memory):
        return np.array([[k @ m / (np.linalg.norm(k) * np.linalg.norm(m)) for m in memory] for k in keys])

    th.testing.assert_close(addressing.cosine_similarity(keys, memory, eps=0.0), by_loop(cosines, keys, memory), **TOLERANCE)
    th.testing.assert_close(addressing.cosine_similarity(keys, memory), by_loop(cosines, keys, memory), rtol=0, atol=1e-5)


def test_masked_similarity_leaves_parts_of_the_words_out():
    keys, memory = normal(BATCH, HEADS, WORD), normal(BATCH, SLOTS, WORD)
    masks = uniform(BATCH, HEADS, WORD)
    everything = addressing.masked_cosine_similarity(keys, memory, th.ones_like(masks))
    th.testing.assert_close(everything, addressing.cosine_similarity(keys, memory), **TOLERANCE)
    for head in range(HEADS):
        alone = addressing.cosine_similarity((keys * masks)[:, head : head + 1], memory * masks[:, head : head + 1])
        masked = addressing.masked_cosine_similarity(keys, memory, masks)[:, head : head + 1]
        th.testing.assert_close(masked, alone, **TOLERANCE)
    half = (th.arange(WORD) < 2).double().expand_as(masks)
    changed = memory + normal(BATCH, SLOTS, WORD) * (1 - half[:, :1])
    first, second = (addressing.masked_cosine_similarity(keys, m, half) for m in (memory, changed))
    th.testing.assert_close(first, second, **TOLERANCE)


@pytest.mark.parametrize("max_shift", [0, 1, 2, 3])
def test_a_circular_shift_moves_weights_around_the_circle(max_shift):
    start, shifts = weights(BATCH, HEADS, SLOTS), weights(BATCH, HEADS, 2 * max_shift + 1)

    def shift(start, shifts):
        moved = np.zeros_like(start)
        for head in range(HEADS):
            for i in range(SLOTS):
                for index, offset in enumerate(range(-max_shift, max_shift + 1)):
                    moved[head, (i + offset) % SLOTS] += shifts[head, index] * start[head, i]
        return moved

    moved = addressing.circular_shift(start, shifts)
    th.testing.assert_close(moved, by_loop(shift, start, shifts), **TOLERANCE)
    th.testing.assert_close(moved.sum(dim=-1), th.ones(BATCH, HEADS).double(), **TOLERANCE)
    copies = addressing.shifted_copies(start, max_shift)
    th.testing.assert_close((shifts.unsqueeze(-2) @ copies).squeeze(-2), moved, **TOLERANCE)


def test_sharpening_is_a_power_and_keeps_the_order():
    start, exponents = weights(BATCH, HEADS, SLOTS), 1 + 3 * uniform(BATCH, HEADS, 1)
    sharp = addressing.sharpen(start, exponents)
    th.testing.assert_close(sharp, start**exponents / (start**exponents).sum(dim=-1, keepdim=True), **TOLERANCE)
    assert sharp.argsort(dim=-1).equal(start.argsort(dim=-1))
    th.testing.assert_close(addressing.sharpen(start, th.ones_like(exponents)), start, **TOLERANCE)


def test_sharpening_keeps_uniform_weights_over_many_slots_and_heads_on_one_slot():
    even = th.full((1, 1, 128), 1 / 128, requires_grad=True)
    sharp = addressing.sharpen(even, th.full((1, 1, 1), 25.0))
    th.testing.assert_close(sharp, even)
    (gradient,) = th.autograd.grad(sharp[..., 0].sum(), even)
    assert gradient.isfinite().all() and (gradient != 0).any()
    one = th.zeros(1, 1, 128, requires_grad=True)
    one.data[..., 3] = 1.0
    for exponent in (1.0, 25.0):
        sharp = addressing.sharpen(one, th.full((1, 1, 1), exponent))
        assert sharp.isfinite().all() and sharp.argmax() == 3 and sharp.max() == 1.0
        assert th.autograd.grad(sharp.square().sum(), one)[0].isfinite().all()


def test_gradients_at_an_empty_memory_are_finite_and_small():
    memory, keys = th.zeros(1, 128, 20, requires_grad=True), th.full((1, 1, 20), 0.1, requires_grad=True)
    content = addressing.content_weights(addressing.cosine_similarity(keys, memory), th.full((1, 1, 1), 5.0))
    for gradient in th.autograd.grad(content[..., 0].sum(), [memory, keys]):
        assert gradient.isfinite().all() and gradient.abs().max() < 1000


def test_erasing_and_adding_of_several_heads():
    memory, head_weights = normal(BATCH, SLOTS, WORD), weights(BATCH, HEADS, SLOTS)
    erase, add = uniform(BATCH, HEADS, WORD), normal(BATCH, HEADS, WORD)

    def write(memory, head_weights, erase, add):
        memory = memory.copy()
        for head in range(HEADS):
            for slot in range(SLOTS):
                memory[slot] *= 1 - head_weights[head, slot] * erase[head]
        for head in range(HEADS):
            for slot in range(SLOTS):
                memory[slot] += head_weights[head, slot] * add[head]
        return memory

    written = addressing.erase_and_add(memory, head_weights, erase, add)
    th.testing.assert_close(written, by_loop(write, memory, head_weights, erase, add), **TOLERANCE)


def test_a_full_write_is_read_back():
    memory, word = normal(BATCH, SLOTS, WORD), normal(BATCH, 1, WORD)
    slot = th.nn.functional.one_hot(th.tensor([[2], [0], [6]]), SLOTS).double()
    written = addressing.erase_and_add(memory, slot, th.ones_like(word), word)
    th.testing.assert_close(addressing.read(written, slot), word, **TOLERANCE)
    others = slot.squeeze(1) == 0
    assert written[others].equal(memory[others])


def test_usage_rises_by_writing_and_falls_by_freeing():
    previous, written = uniform(BATCH, SLOTS), weights(BATCH, SLOTS)
    nothing_freed = addressing.retention(weights(BATCH, HEADS, SLOTS), th.zeros(BATCH, HEADS, 1).double())
    used = addressing.usage(previous, written, nothing_freed)
    th.testing.assert_close(used, previous + written - previous * written, **TOLERANCE)
    assert (used >= previous).all() and (used <= 1).all()
    full = th.ones(BATCH, SLOTS).double()
    th.testing.assert_close(addressing.usage(previous, full, nothing_freed), full, **TOLERANCE)
    slot = th.nn.functional.one_hot(th.full((BATCH, 1), 4), SLOTS).double()
    freed = addressing.retention(slot, th.ones(BATCH, 1, 1).double())
    assert (addressing.usage(full, written, freed)[:, 4] == 0).all()
    assert (addressing.usage(full, written, freed)[:, :4] == 1).all()


def test_no_gradient_goes_through_the_write_weights_into_the_usage():
    written = weights(BATCH, SLOTS).requires_grad_()
    previous = uniform(BATCH, SLOTS).requires_grad_()
    used = addressing.usage(previous, written, th.ones(BATCH, SLOTS).double())
    gradients = th.autograd.grad(used.sum(), [previous, written], allow_unused=True)
    assert gradients[0] is not None and gradients[1] is None


def test_allocation_goes_to_the_least_used_slots():
    used = uniform(BATCH, SLOTS)

    def allocate(used):
        result, product = np.zeros(SLOTS), 1.0
        for slot in np.argsort(used, kind="stable"):
            result[slot] = (1 - used[slot]) * product
            product *= used[slot]
        return result

    th.testing.assert_close(addressing.allocation_weights(used, eps=0.0), by_loop(allocate, used), **TOLERANCE)
    allocation = addressing.allocation_weights(used)
    assert allocation.argmax(dim=-1).equal(used.argmin(dim=-1))
    assert (allocation >= 0).all() and (allocation.sum(dim=-1) <= 1 + 1e-12).all()


def test_of_free_slots_the_first_is_allocated_and_a_full_memory_gives_none():
    empty = addressing.allocation_weights(th.zeros(1, 128))
    assert empty[0, 0] > 1 - 1e-4 and empty[0, 1:].max() < 1e-4
    assert addressing.allocation_weights(th.ones(1, 128)).max() == 0
    used = th.tensor([[1.0, 0.0, 1.0, 0.0]])
    th.testing.assert_close(addressing.allocation_weights(used), th.tensor([[0.0, 1.0, 0.0, 0.0]]), rtol=0, atol=1e-5)


def test_links_follow_the_order_of_writing():
    link, precedence = th.zeros(1, SLOTS, SLOTS).double(), th.zeros(1, SLOTS).double()
    order = [3, 0, 5]
    for slot in order:
        written = th.nn.functional.one_hot(th.tensor([slot]), SLOTS).double()
        link = addressing.temporal_link(link, precedence, written)
        precedence = addressing.precedence(precedence, written)
    expected = th.zeros(SLOTS, SLOTS).double()
    expected[0, 3] = expected[5, 0] = 1
    assert link[0].equal(expected) and precedence.argmax() == 5
    at = th.nn.functional.one_hot(th.tensor([[0]]), SLOTS).double()
    forward, backward = addressing.directional_weights(link, at)
    assert forward.argmax() == 5 and backward.argmax() == 3


def test_links_equal_the_definition_and_never_point_to_themselves():
    link, precedence = uniform(BATCH, SLOTS, SLOTS) / SLOTS, weights(BATCH, SLOTS) / 2
    written = weights(BATCH, SLOTS)

    def update(link, precedence, written):
        result = np.zeros_like(link)
        for i in range(SLOTS):
            for j in range(SLOTS):
                if i != j:
                    result[i, j] = (1 - written[i] - written[j]) * link[i, j] + written[i] * precedence[j]
        return result

    updated = addressing.temporal_link(link, precedence, written)
    th.testing.assert_close(updated, by_loop(update, link, precedence, written), **TOLERANCE)
    assert (updated.diagonal(dim1=-2, dim2=-1) == 0).all()


def test_rows_and_columns_of_the_links_never_exceed_one():
    link, precedence = th.zeros(BATCH, SLOTS, SLOTS).double(), th.zeros(BATCH, SLOTS).double()
    for _ in range(50):
        written = weights(BATCH, SLOTS) * uniform(BATCH, 1)
        link = addressing.temporal_link(link, precedence, written)
        precedence = addressing.precedence(precedence, written)
        assert (link >= 0).all() and (precedence >= 0).all() and (precedence.sum(dim=-1) <= 1 + 1e-12).all()
        assert (link.sum(dim=-1) <= 1 + 1e-12).all() and (link.sum(dim=-2) <= 1 + 1e-12).all()


def test_sharpened_links_keep_their_sum_and_read_nothing_where_nothing_is_linked():
    start, exponents = weights(BATCH, HEADS, SLOTS) * 0.3, 1 + uniform(BATCH, HEADS, 1)
    sharp = addressing.sharpen_links(start, exponents)
    th.testing.assert_close(sharp.sum(dim=-1), start.sum(dim=-1), **TOLERANCE)
    assert (sharp.amax(dim=-1) >= start.amax(dim=-1)).all()
    assert (addressing.sharpen_links(th.zeros(1, 1, SLOTS), th.full((1, 1, 1), 3.0)) == 0).all()
