"""Sliding-window memories: mask, relative shift, and how far back the cores look."""

import pytest
import torch as th

from sb3_attn.memory import GTrXLCore, KeyValueMemoryCore
from sb3_attn.memory.sliding_window import attention_mask, extend, relative_shift

INPUT = 5


def test_the_mask_is_the_one_drawn_in_its_docstring():
    drawn = ["xxx..", ".xxx.", "..xxx"]
    mask = attention_mask(th.ones(1, 2), n_steps=3, with_present=True)[0]
    assert ["".join(".x"[entry] for entry in row) for row in mask.int().tolist()] == drawn


@pytest.mark.parametrize("with_present", [True, False])
@pytest.mark.parametrize(("length", "n_steps"), [(1, 1), (3, 1), (1, 4), (2, 5), (6, 3)])
def test_each_step_attends_to_the_entries_before_it(length, n_steps, with_present):
    n_valid = th.arange(length + 1)  # one row for each number of steps that the episode has had
    valid = (th.arange(length) >= length - n_valid.unsqueeze(1)).float()
    mask = attention_mask(valid, n_steps, with_present)
    for row in range(length + 1):
        for step in range(n_steps):
            for entry in range(length + n_steps):
                age = length + step - entry
                in_episode = entry >= length - row
                assert mask[row, step, entry] == (in_episode and (0 if with_present else 1) <= age <= length)


@pytest.mark.parametrize(("length", "n_steps"), [(2, 3), (1, 1), (4, 1), (1, 5), (3, 7)])
def test_relative_shift_puts_scores_where_the_entries_are(length, n_steps):
    scores = th.randn(2, 3, n_steps, length + 1)
    shifted = relative_shift(scores)
    assert shifted.shape == (2, 3, n_steps, length + n_steps)
    for step in range(n_steps):
        for entry in range(length + n_steps):
            column = entry - step  # the entry L steps back comes first
            expected = scores[..., step, column] if 0 <= column <= length else th.zeros(2, 3)
            assert shifted[..., step, entry].equal(expected)


def test_the_window_after_some_steps_is_the_end_of_the_extended_one():
    past, present = th.randn(2, 4, 3), th.randn(5, 2, 3)
    extended = extend(past, present)
    assert extended[:, :4].equal(past) and extended[:, -4:].equal(present[1:].transpose(0, 1))


@pytest.mark.parametrize("core_class", [KeyValueMemoryCore, GTrXLCore])
def test_only_what_is_in_the_window_has_an_influence(core_class):
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
