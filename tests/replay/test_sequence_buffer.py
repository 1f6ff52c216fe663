"""Windows against the history they were cut from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from tests.helpers.episode_player import EpisodePlayer, make_buffer, play

LENGTHS = [(4, 0, None), (4, 3, None), (6, 4, 3), (5, 7, 2), (3, 2, 1), (1, 0, None), (1, 5, 1), (None, 0, None)]


@pytest.mark.parametrize(("trace_length", "burn_in_length", "sequence_period"), LENGTHS)
def test_every_step_of_every_episode_is_trained(trace_length, burn_in_length, sequence_period):
    buffer = make_buffer(400, 2, trace_length=trace_length, burn_in_length=burn_in_length, sequence_period=sequence_period)
    lengths = [1, 13, 2, 4, 1, 7, 3, 5, 12, 6]
    player = play(buffer, lengths)
    windows = player.sampled_windows()
    trained = [
        (env_index, episode, step) for env_index, episode, start, length in windows for step in range(start, start + length)
    ]
    expected = {(env_index, e, step) for env_index in range(2) for e, length in enumerate(lengths) for step in range(length)}
    assert set(trained) == expected
    if sequence_period is None:
        assert len(trained) == len(expected), "each step lies in one window"
    for env_index, episode, start, length in windows:
        last = (env_index, episode, start - buffer.sequence_period, buffer.trace_length)
        assert last not in windows or start + length > last[2] + last[3], "a window that brings no new step"


def random_lengths(rng: np.random.Generator) -> dict:
    trace_length = int(rng.integers(1, 9))
    return dict(
        trace_length=trace_length,
        burn_in_length=int(rng.integers(0, 10)),
        sequence_period=None if rng.random() < 0.3 else int(rng.integers(1, trace_length + 1)),
    )


@pytest.mark.parametrize("buffer_class", [SequenceReplayBuffer, PrioritizedSequenceReplayBuffer])
@pytest.mark.parametrize("seed", range(16))
@pytest.mark.filterwarnings("ignore:trace_length=None takes whole episodes")
def test_windows_stay_whole_when_the_ring_is_overwritten(seed, buffer_class):
    """Random lengths, environments, ends and seams: after every step the windows are just those that lie whole in the ring."""
    rng = np.random.default_rng(seed)
    lengths = random_lengths(rng) if seed % 5 else {}  # now and then whole episodes
    n_envs, longest = int(rng.integers(1, 5)), int(rng.choice([3, 12, 40]))
    buffer = make_buffer(int(rng.integers(1, 40)) * n_envs, n_envs, buffer_class, **lengths)
    player = EpisodePlayer(buffer, lambda: int(rng.integers(1, longest + 1)), seed=seed)
    for _ in range(3 * buffer.buffer_size + 40):
        env_indices = rng.permutation(n_envs)[: rng.integers(1, n_envs + 1)] if rng.random() < 0.7 else None
        if rng.random() < 0.05:
            player.abandon(int(rng.integers(n_envs)))
        player.step(env_indices)
        buffer.check_valid()
        expected = player.expected_windows()
        # Episodes that were abandoned are closed when the next one begins
        pending = [
            env_index
            for env_index in range(n_envs)
            if player.lengths[env_index][-1] == 0 and buffer.open_lengths[env_index] > 0
        ]
        if not pending:
            assert buffer.n_windows == len(expected)
        if buffer.n_windows > 0:
            sampled = player.check(buffer.sample(8))
            assert sampled <= expected
    if buffer_class is SequenceReplayBuffer and buffer.n_windows > 0 and not pending:
        assert player.sampled_windows() == expected


def test_an_episode_is_sampled_no_further_than_it_has_come():
    buffer = make_buffer(trace_length=5, burn_in_length=2)
    player = EpisodePlayer(buffer, lambda: 1000)
    for step in range(1, 31):
        player.step()
        assert buffer.n_windows == step // 5
        if step >= 5:
            player.check(buffer.sample(20))


def test_an_episode_of_one_step_is_a_window():
    buffer = make_buffer(trace_length=5, burn_in_length=3)
    player = play(buffer, [1], truncate=1.0)
    batch = buffer.sample(3)
    assert player.check(batch) == {(0, 0, 0, 1)}
    assert batch.mask.shape == (1, 3) and batch.observations.shape == (2, 3, 3)
    assert batch.burn_in_observations.shape == (0, 3, 3) and batch.episode_starts.all()


def test_a_truncated_episode_ends_with_its_own_final_observation_and_no_termination():
    buffer = make_buffer(trace_length=4)
    player = play(buffer, [6, 3], truncate=1.0)
    batch = buffer.sample(100)
    player.check(batch)
    assert batch.terminations.sum() == 0
    tail = int(((batch.observations[0] == th.tensor([0, 0, 4])).all(dim=-1)).nonzero()[0])
    assert batch.observations[2, tail].tolist() == [0, 0, 6]  # not [0, 1, 0]


def test_a_terminated_episode_says_so_at_its_last_step_only():
    buffer = make_buffer(trace_length=4)
    player = play(buffer, [6], truncate=0.0)
    batch = buffer.sample(100)
    assert player.check(batch) == {(0, 0, 0, 4), (0, 0, 4, 2)}
    tail = batch.mask.sum(dim=0) == 2
    assert batch.terminations[:, ~tail].sum() == 0
    assert (batch.terminations[:2, tail] == th.tensor([[0.0], [1.0]])).all()


@pytest.mark.parametrize("buffer_size", [8, 9, 16])
def test_the_newest_step_is_followed_by_its_own_next_observation(buffer_size):
    """There the ring holds the oldest observation, or nothing yet."""
    buffer = make_buffer(buffer_size, trace_length=4)
    player = EpisodePlayer(buffer, lambda: 1000)
    for _ in range(40):
        player.step()
        if buffer.n_windows:
            player.check(buffer.sample(30))


def test_a_seam_closes_the_open_episode_as_truncated():
    buffer = make_buffer(n_envs=2, trace_length=4)
    player = EpisodePlayer(buffer, lambda: 1000)
    for _ in range(6):
        player.step()
    player.abandon(0)
    for _ in range(6):
        player.step()
    assert player.sampled_windows() == {(0, 0, 0, 4), (0, 0, 4, 2), (0, 1, 0, 4), (1, 0, 0, 4), (1, 0, 4, 4), (1, 0, 8, 4)}
    assert buffer.sample(200).terminations.sum() == 0
    buffer.check_valid()


def test_short_episodes_do_not_use_up_the_room_for_states():
    """Each of them passes a step at which a burn-in could start, but ends before the window that would need it."""
    buffer = make_buffer(80, trace_length=8, burn_in_length=7)
    player = play(buffer, [18] + [2] * 30)
    assert {(0, 0, 8, 8), (0, 0, 16, 2)} <= player.sampled_windows()


def test_batches_have_no_core_state_without_stored_state():
    buffer = make_buffer(trace_length=4, burn_in_length=2, stored_state=False)
    player = play(buffer, [11, 3])
    player.sampled_windows()
    assert buffer.sample(5).core_state == ()


def test_windows_are_drawn_equally_often():
    buffer = make_buffer(n_envs=2, trace_length=3, sequence_period=2)
    play(buffer, [1, 9, 4, 2, 20])
    _, counts = np.unique(buffer.sample(1000 * buffer.n_windows).window_ids, return_counts=True)
    assert len(counts) == buffer.n_windows
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_whole_episodes_are_one_window_each():
    buffer = make_buffer(124, trace_length=None)
    player = play(buffer, [1, 30, 7, 62])
    assert player.sampled_windows() == {(0, 0, 0, 1), (0, 1, 0, 30), (0, 2, 0, 7), (0, 3, 0, 62)}


def test_an_open_episode_is_not_a_window_when_episodes_are_taken_whole():
    buffer = make_buffer(100, trace_length=None)
    player = play(buffer, [7, 50], n_steps=56)
    assert player.sampled_windows() == {(0, 0, 0, 7)}


def test_an_episode_that_outgrows_half_of_its_ring_is_cut_with_a_warning():
    """Else it would be no window before it ends, and lose its first step at once when it is one."""
    buffer = make_buffer(40, 2, trace_length=None)
    player = play(buffer, [10, 1000], n_steps=20)
    with pytest.warns(
        UserWarning, match=r"trace_length=None .* more than 10 steps, half .* buffer_size=40, .* set a trace_length"
    ):
        player.step()
    for _ in range(100):  # without a further warning
        player.step()
        assert buffer.n_windows >= 2
    windows = player.sampled_windows()
    assert windows == player.expected_windows() and {length for *_, length in windows} == {10}


def test_a_pickle_of_an_earlier_version_still_takes_whole_episodes():
    """Its windows were as long as its ring."""
    buffer = SequenceReplayBuffer.__new__(SequenceReplayBuffer)
    state = vars(make_buffer(40, trace_length=40))
    del state["whole_episodes"]
    buffer.__setstate__(state)
    assert buffer.whole_episodes


def test_an_empty_buffer_says_why_it_cannot_be_sampled():
    buffer = make_buffer(trace_length=5)
    play(buffer, [100], n_steps=4)
    with pytest.raises(ValueError, match=r"no complete window yet \(4 steps per environment, trace_length=5\)"):
        buffer.sample(1)


# ---------------------------------------------------------------- memory


def all_arrays(value):
    """Every array that an object holds, wherever."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        return [array for item in value.values() for array in all_arrays(item)]
    if isinstance(value, list | tuple):
        return [array for item in value for array in all_arrays(item)]
    return all_arrays(vars(value)) if type(value).__module__.startswith("sb3_attn.") else []


def has_available(monkeypatch, n_bytes):
    memory = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=n_bytes))
    monkeypatch.setattr("stable_baselines3.common.buffers.psutil", memory)


@pytest.mark.parametrize("buffer_class", [SequenceReplayBuffer, PrioritizedSequenceReplayBuffer])
def test_a_buffer_larger_than_memory_warns(buffer_class, monkeypatch):
    """When it is made, or when it becomes known how large states are; not if it fits exactly."""
    arguments = dict(buffer_class=buffer_class, trace_length=3, burn_in_length=2)
    complete = make_buffer(100, 2, **arguments)
    made = complete.nbytes
    play(complete, [1000], n_steps=1)
    assert (
        complete.nbytes == sum(array.nbytes for array in all_arrays(complete) if array is not complete._burn_in_choices) > made
    )

    has_available(monkeypatch, made - 1)
    with pytest.warns(
        UserWarning, match=r"enough memory to store the complete replay buffer 0.00GB > .*; lower buffer_size=100"
    ):
        buffer = make_buffer(100, 2, **arguments)
    play(buffer, [1000], n_steps=3)  # said once
    has_available(monkeypatch, complete.nbytes - 1)
    buffer = make_buffer(100, 2, **arguments)
    with pytest.warns(UserWarning, match="enough memory"):
        play(buffer, [1000], n_steps=1)
    has_available(monkeypatch, complete.nbytes)
    play(make_buffer(100, 2, **arguments), [1000], n_steps=3)


def test_observations_of_another_shape_are_refused() -> None:
    buffer = SequenceReplayBuffer(40, spaces.Box(0, 255, (3, 4, 5), np.uint8), spaces.Discrete(2), trace_length=2)
    image = np.zeros((1, 4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match=r"observations have shape \(4, 5, 3\), but those of the replay .* \(3, 4, 5\)"):
        buffer.add(image, image, np.zeros(1), np.zeros(1), np.zeros(1, bool), [{}])
