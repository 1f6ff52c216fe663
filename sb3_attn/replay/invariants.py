"""What is always true of a sequence replay buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sb3_attn.replay.sequence_buffer import SequenceReplayBuffer


def check_valid(buffer: SequenceReplayBuffer) -> None:
    """
    Check every invariant of the store; slow, for tests and for debugging.

    :param buffer: the store
    :raises AssertionError: if one is violated
    """
    slots, lanes = np.nonzero(buffer.window_lengths)
    assert len(slots) == buffer.n_windows, "n_windows is not the number of windows"
    assert np.array_equal(np.flatnonzero(buffer._tree[np.arange(buffer._tree.capacity)]), buffer._leaves(slots, lanes)), (
        "the tree's leaves are not the windows"
    )
    states, used_state_rows = buffer._core_states, set()
    for slot, lane in zip(slots, lanes, strict=True):
        first, length = buffer.episode_steps[slot, lane], buffer.window_lengths[slot, lane]
        burn_in = min(first, buffer.burn_in_length)
        rows = np.arange(slot - burn_in, slot + length) % buffer.buffer_size
        oldest = buffer.pos[lane] if buffer.full[lane] else 0
        ages = (rows - oldest) % buffer.buffer_size
        n_steps = buffer.buffer_size if buffer.full[lane] else buffer.pos[lane]
        assert (np.diff(ages) == 1).all() and ages[-1] < n_steps, "a window spans the write position"
        assert (np.diff(buffer.episode_steps[rows, lane]) == 1).all(), "a window crosses episodes"
        assert not buffer.dones[rows[:-1], lane].any(), "a window goes on after an episode's end"
        assert first % buffer.sequence_period == 0, "a window starts off the grid"
        assert length == buffer.trace_length or buffer.dones[rows[-1], lane], "a short window that ends no episode"
        if first > burn_in:
            used_state_rows.add((lane, states.rows[rows[0], lane]))
    n_with_past = (buffer.episode_steps[slots, lanes] > buffer.burn_in_length).sum()
    assert states.arrays is None or len(used_state_rows) == n_with_past, "two windows share a stored state"
    truncated = set(zip(*(axis.tolist() for axis in np.nonzero(buffer.timeouts)), strict=True))
    assert set(buffer._final_observations) == truncated, "final observations are not those of the truncated episodes"
