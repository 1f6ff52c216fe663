"""Prioritized replay: the frequencies of windows and the weights of their losses."""

import numpy as np
import pytest

from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBufferSamples
from tests.helpers.episode_player import ACTION_SPACE, OBSERVATION_SPACE, EpisodePlayer

N_WINDOWS = 8


def filled(
    n_windows: int = N_WINDOWS, buffer_size: int = 8, **kwargs
) -> tuple[PrioritizedSequenceReplayBuffer, EpisodePlayer]:
    """A buffer of one-step episodes: the window of episode i lies at position i."""
    buffer = PrioritizedSequenceReplayBuffer(buffer_size, OBSERVATION_SPACE, ACTION_SPACE, "cpu", trace_length=1, **kwargs)
    player = EpisodePlayer(buffer, lambda: 1)
    for _ in range(n_windows):
        player.step()
    return buffer, player


def one_of_each(buffer: PrioritizedSequenceReplayBuffer) -> SequenceReplayBufferSamples:
    """A batch's identity, with every window once and in the order of their positions."""
    batch = buffer.sample(2000)
    indices, first = np.unique(batch.indices, return_index=True)
    assert len(indices) == buffer.n_windows
    return batch._replace(indices=indices, window_ids=batch.window_ids[first])


def frequencies(buffer: PrioritizedSequenceReplayBuffer, n_draws: int = 20_000) -> np.ndarray:
    """Share of the draws that each position gets, over many batches."""
    counts = sum(np.bincount(buffer.sample(50).indices, minlength=buffer.buffer_size) for _ in range(n_draws // 50))
    return counts / n_draws


def shares(weights) -> np.ndarray:
    return np.asarray(weights) / np.sum(weights)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.9, 1.0])
def test_windows_are_drawn_in_proportion_to_their_priorities(exponent):
    buffer, _ = filled(priority_exponent=exponent)
    priorities = np.arange(1.0, N_WINDOWS + 1)
    buffer.update_priorities(one_of_each(buffer), priorities)
    np.testing.assert_allclose(frequencies(buffer), shares(priorities**exponent), atol=0.01)
    buffer.check_valid()


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0])
def test_importance_weights_follow_from_the_priorities(exponent):
    buffer, _ = filled(importance_exponent=exponent)
    priorities = np.arange(1.0, N_WINDOWS + 1)
    buffer.update_priorities(one_of_each(buffer), priorities)
    batch = buffer.sample(20)
    probabilities = shares(priorities**0.9)[batch.indices]
    expected = (N_WINDOWS * probabilities) ** -exponent
    np.testing.assert_allclose(batch.importance_weights, expected / expected.max(), rtol=1e-5)
    assert batch.importance_weights.shape == (20,) and len(set(batch.indices)) > 1


def test_windows_without_a_priority_are_equally_likely():
    buffer, _ = filled()
    assert (buffer.sample(20).importance_weights == 1).all()
    np.testing.assert_allclose(frequencies(buffer), shares(np.ones(N_WINDOWS)), atol=0.01)


@pytest.mark.parametrize("largest", [0.5, 20.0])
def test_a_new_window_is_as_important_as_the_largest(largest):
    buffer, player = filled(N_WINDOWS - 1, priority_exponent=1.0)
    buffer.update_priorities(one_of_each(buffer), np.array([largest] + [0.25] * (N_WINDOWS - 2)))
    player.step()
    expected = [largest] + [0.25] * (N_WINDOWS - 2) + [largest]
    np.testing.assert_allclose(frequencies(buffer), shares(expected), atol=0.01)


@pytest.mark.parametrize("end", ["estimated again", "overwritten"])
def test_an_outlier_makes_no_window_important_after_it_is_gone(end):
    buffer, player = filled(priority_exponent=1.0)
    batch = one_of_each(buffer)
    buffer.update_priorities(batch, np.array([1000.0] + [0.25] * (N_WINDOWS - 1)))
    if end == "estimated again":
        buffer.update_priorities(batch, np.full(N_WINDOWS, 0.25))
    for _ in range(3):  # over positions 0 to 2
        player.step()
    np.testing.assert_allclose(frequencies(buffer), shares(np.ones(N_WINDOWS)), atol=0.01)


@pytest.mark.parametrize("buffer_size", [1, 7, 100])
def test_new_windows_are_as_important_as_the_largest_by_brute_force(buffer_size):
    """Windows are added, overwritten and estimated again in a random order; a dict remembers their priorities."""
    buffer, player = filled(0, buffer_size, priority_exponent=1.0)
    rng, priorities = np.random.default_rng(0), {}
    for n_added in range(300):
        priorities.pop(n_added % buffer_size, None)
        priorities[n_added % buffer_size] = max(priorities.values(), default=1.0)
        player.step()
        if rng.random() < 0.5:
            batch = buffer.sample(5)
            ids = np.unique(batch.window_ids)
            estimates = 10 ** rng.uniform(-3, 3, len(ids))
            buffer.update_priorities(batch._replace(indices=ids % buffer_size, window_ids=ids), estimates)
            priorities.update(zip(ids % buffer_size, estimates, strict=True))
        leaves = buffer._tree[np.arange(buffer_size)]
        np.testing.assert_array_equal(leaves, [priorities.get(position, 0.0) for position in range(buffer_size)])


def test_a_stale_priority_is_not_written_over_another_window():
    buffer, player = filled(priority_exponent=1.0)
    batch = one_of_each(buffer)
    for _ in range(3):  # meanwhile positions 0 to 2 are overwritten
        player.step()
    buffer.update_priorities(batch, np.array([50.0, 50.0, 50.0, 2.0, 2.0, 2.0, 2.0, 2.0]))
    np.testing.assert_allclose(frequencies(buffer), shares([1, 1, 1, 2, 2, 2, 2, 2]), atol=0.01)
    player.step()  # nor is it the largest seen
    np.testing.assert_allclose(frequencies(buffer), shares([1, 1, 1, 2, 2, 2, 2, 2]), atol=0.01)
    buffer.check_valid()


def test_a_stale_priority_does_not_revive_a_withdrawn_window():
    buffer = PrioritizedSequenceReplayBuffer(12, OBSERVATION_SPACE, ACTION_SPACE, "cpu", trace_length=4, burn_in_length=4)
    player = EpisodePlayer(buffer, lambda: 1000)
    for _ in range(12):
        player.step()
    batch = buffer.sample(100)
    assert len(set(batch.indices)) == 3
    for _ in range(2):  # overwrites the past of windows 0 and 1, and completes no other
        player.step()
    buffer.update_priorities(batch, np.full(100, 7.0))
    assert buffer.n_windows == 1
    buffer.check_valid()
    assert player.check(buffer.sample(50)) == {(0, 0, 8, 4)}


def test_a_window_without_error_can_still_be_drawn():
    buffer, _ = filled()
    buffer.update_priorities(one_of_each(buffer), np.zeros(N_WINDOWS))
    np.testing.assert_allclose(frequencies(buffer), shares(np.ones(N_WINDOWS)), atol=0.01)
    buffer.check_valid()


def test_a_batch_is_spread_over_the_priorities():
    """A window with a third of all priority gets a third of every batch, give or take one at each side."""
    buffer, _ = filled(4, priority_exponent=1.0)
    buffer.update_priorities(one_of_each(buffer), np.array([1.0, 1.0, 2.0, 2.0]))
    for _ in range(50):
        counts = np.bincount(buffer.sample(60).indices, minlength=4)
        assert np.abs(counts[:4] - [10, 10, 20, 20]).max() <= 2


def test_errors_belong_to_the_environments_given_by_position():
    buffer = PrioritizedSequenceReplayBuffer(8, OBSERVATION_SPACE, ACTION_SPACE, "cpu", n_envs=2, trace_length=1)

    def add(env_indices, td_errors):
        n = len(td_errors)
        obs, zeros = np.zeros((n, 3)), np.zeros(n)
        arguments = obs, obs, zeros, zeros, zeros.astype(bool), [{}] * n, None, None, env_indices
        buffer.add(*arguments, td_errors=np.array(td_errors))

    add(None, [0.5, 2.0])
    add(np.array([1, 0]), [4.0, 8.0])
    expected = np.array([0.5, 2.0, 8.0, 4.0]) ** buffer.priority_exponent  # positions 0 and 1, environments 0 and 1
    np.testing.assert_allclose(buffer._tree[np.arange(4)], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["priority_exponent", "importance_exponent"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_exponents_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must lie between 0 and 1"):
        filled(**{name: value})


def test_the_prioritized_buffer_checks_its_lengths_too():
    with pytest.raises(ValueError, match="trace_length=0"):
        PrioritizedSequenceReplayBuffer(8, OBSERVATION_SPACE, ACTION_SPACE, "cpu", trace_length=0)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_negative_and_non_finite_priorities_are_refused(value):
    buffer, _ = filled()
    with pytest.raises(ValueError, match="must be finite and at least 0"):
        buffer.update_priorities(one_of_each(buffer), np.array([value] + [1.0] * (N_WINDOWS - 1)))
    assert buffer.sample(5).importance_weights.isfinite().all()
