"""Replay of whatever episodes there may be: Hypothesis looks for a history that comes back different."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from tests.helpers.episode_player import EpisodePlayer, make_buffer


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    trace_length = draw(st.none() | st.integers(1, 6))
    windows = {} if trace_length is None else {"burn_in_length": draw(st.integers(0, 5))}
    if trace_length is not None:
        windows["sequence_period"] = draw(st.none() | st.integers(1, trace_length))
    return {"trace_length": trace_length, "stored_state": draw(st.booleans()), **windows}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    arguments=arguments(),
    buffer_class=st.sampled_from([SequenceReplayBuffer, PrioritizedSequenceReplayBuffer]),
    n_envs=st.integers(1, 3),
    buffer_size=st.integers(2, 60),
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=20),
    truncate=st.sampled_from([0.0, 0.5, 1.0]),
    n_steps=st.integers(1, 120),
    seed=st.integers(0, 2**16),  # of which environments step, and which begin anew in the middle of an episode
)
def test_what_is_drawn_is_what_happened(
    arguments: dict[str, Any],
    buffer_class: type[SequenceReplayBuffer],
    n_envs: int,
    buffer_size: int,
    lengths: list[int],
    truncate: float,
    n_steps: int,
    seed: int,
) -> None:
    buffer = make_buffer(n_envs * buffer_size, n_envs, buffer_class, **arguments)
    if arguments["trace_length"] is None:  # longer episodes are cut into windows, with a warning, which has its own tests
        lengths = [min(length, buffer.trace_length) for length in lengths]
    plan = iter(lengths * 20)
    player = EpisodePlayer(buffer, lambda: next(plan, 1), truncate)
    rng = np.random.default_rng(seed)
    for _ in range(n_steps):
        stepping = np.flatnonzero(rng.random(n_envs) < 0.9)
        for env_index in stepping[rng.random(len(stepping)) < 0.02]:
            player.abandon(env_index)
        if len(stepping):
            player.step(stepping)
        buffer.check_valid()
    expected = player.expected_windows()
    assert buffer.n_windows == len(expected)
    if expected:
        drawn = player.check(buffer.sample(200))
        assert drawn <= expected
        if buffer_class is SequenceReplayBuffer:
            assert player.sampled_windows() == expected
