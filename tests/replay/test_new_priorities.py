"""The priorities that windows of the prioritized replay begin with."""

from typing import Any

import numpy as np
import pytest

from sb3_attn.replay import PrioritizedSequenceReplayBuffer
from sb3_attn.replay.prioritized import MIN_PRIORITY
from tests.helpers.episode_player import ACTION_SPACE, OBSERVATION_SPACE, EpisodePlayer

ETA = 0.9


class Noted:
    """
    A buffer whose steps come with errors, and what these were, as well as the largest priority before each window was added.

    :param known: probability that the errors of an add are known
    :param kwargs: of the buffer
    """

    def __init__(self, n_envs: int = 1, known: float = 1.0, buffer_size: int = 60, **kwargs: Any) -> None:
        self.buffer = PrioritizedSequenceReplayBuffer(
            buffer_size * n_envs, OBSERVATION_SPACE, ACTION_SPACE, "cpu", n_envs=n_envs, priority_exponent=1.0, **kwargs
        )
        rng = np.random.default_rng(0)
        #: By environment and number of the step in it
        self.errors: list[list[float]] = [[] for _ in range(n_envs)]
        #: By number of the window
        self.largest: dict[int, float] = {}
        add, add_windows = self.buffer.add, self.buffer._add_windows

        def add_with_errors(*args: Any, **kwargs: Any) -> None:
            env_indices = np.arange(n_envs) if kwargs.get("env_indices") is None else kwargs["env_indices"]
            errors = rng.exponential(size=len(env_indices)).astype(np.float32)
            is_known = rng.random() < known
            for env_index, error in zip(env_indices, errors, strict=True):
                self.errors[env_index].append(float(error) if is_known else np.nan)
            add(*args, **kwargs, **(dict(td_errors=errors) if is_known else {}))

        def add_windows_and_note(*args: Any) -> None:
            starts, env_indices = np.nonzero(self.buffer.window_lengths)
            largest = max(self.buffer._tree[starts * n_envs + env_indices], default=1.0)
            n_before = self.buffer.n_windows_added
            add_windows(*args)
            self.largest |= dict.fromkeys(range(n_before, self.buffer.n_windows_added), largest)

        self.buffer.add = add_with_errors  # type: ignore[method-assign]
        self.buffer._add_windows = add_windows_and_note  # type: ignore[method-assign]

    def check(self) -> int:
        """Compare the priorities of all windows with the definition; returns the number of windows."""
        buffer = self.buffer
        buffer.check_valid()
        windows = np.argwhere(buffer.window_lengths > 0)
        for position, env_index in windows:
            n_steps = len(self.errors[env_index])
            first = position + (n_steps - 1 - position) // buffer.buffer_size * buffer.buffer_size
            errors = [self.errors[env_index][first + i] for i in range(buffer.window_lengths[position, env_index])]
            expected = self.largest[buffer.window_ids[position, env_index]]
            if not np.isnan(errors).any():
                expected = ETA * max(errors) + (1 - ETA) * sum(errors) / len(errors)
            assert buffer._tree[position * buffer.n_envs + env_index] == pytest.approx(expected, rel=1e-5), (
                position,
                env_index,
            )
        return len(windows)


WINDOWS = [
    dict(trace_length=1),
    dict(trace_length=4),
    dict(trace_length=4, sequence_period=1),
    dict(trace_length=5, sequence_period=2, burn_in_length=3),
    dict(trace_length=None),
]


@pytest.mark.parametrize("known", [1.0, 0.8])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_the_priority_of_a_new_window_comes_from_its_own_errors(windows: dict[str, Any], n_envs: int, known: float) -> None:
    """Overlapping windows, short tails, windows that are older than the ring is long, unknown errors."""
    noted = Noted(n_envs, known, **windows)
    rng = np.random.default_rng(1)
    player = EpisodePlayer(noted.buffer, lambda: int(rng.integers(1, 14)))
    for i in range(200):
        player.step()
        if i % 20 == 19:
            assert noted.check() > 0
    assert noted.buffer.full.all()


def test_environments_of_different_pace_keep_their_errors_apart() -> None:
    noted = Noted(4, trace_length=3, sequence_period=2)
    rng = np.random.default_rng(1)
    player = EpisodePlayer(noted.buffer, lambda: int(rng.integers(1, 9)))
    for _ in range(150):
        player.step(rng.permutation(4)[: rng.integers(1, 4)])
    assert noted.check() > 50


def test_an_abandoned_episode_closes_with_the_errors_of_its_own_steps() -> None:
    noted = Noted(trace_length=4)
    player = EpisodePlayer(noted.buffer, lambda: 100)
    for _ in range(3):
        for _ in range(6):
            player.step()
        player.abandon(0)
    assert noted.check() == 5


def test_windows_without_errors_get_the_largest_priority_that_an_update_gave() -> None:
    noted = Noted(known=0.0, trace_length=2)
    player = EpisodePlayer(noted.buffer, lambda: 100)
    for _ in range(4):
        player.step()
    assert noted.check() == 2 and set(noted.largest.values()) == {1.0}
    noted.buffer.update_priorities(noted.buffer.sample(8), np.full(8, 7.0))
    noted.errors[0] = [7.0] * 4
    for _ in range(2):
        player.step()
    assert noted.check() == 3 and noted.largest[2] == 7.0


def test_errors_may_come_after_steps_without() -> None:
    """A window with steps of both kinds has no priority of its own."""
    buffer = PrioritizedSequenceReplayBuffer(20, OBSERVATION_SPACE, ACTION_SPACE, "cpu", trace_length=2, priority_exponent=1.0)
    code = np.zeros((1, 3))
    for i, errors in enumerate([None, 5.0, 5.0, 5.0, None, 2.0]):
        given = {} if errors is None else dict(td_errors=np.array([errors]))
        buffer.add(code, code, np.zeros(1), np.zeros(1), np.zeros(1, bool), [{}], episode_starts=np.array([i == 0]), **given)
    np.testing.assert_allclose(buffer._tree[np.array([0, 2, 4])], [1.0, 5.0, 5.0])


def test_the_exponent_is_applied_and_no_priority_is_zero() -> None:
    buffer = PrioritizedSequenceReplayBuffer(20, OBSERVATION_SPACE, ACTION_SPACE, "cpu", trace_length=1, priority_exponent=0.5)
    code = np.zeros((2, 1, 3))
    for error in (16.0, 0.0):
        args = (*code, np.zeros(1), np.zeros(1), np.ones(1, bool), [{}])
        buffer.add(*args, td_errors=np.array([error]))
    np.testing.assert_allclose(buffer._tree[np.arange(2)], [4.0, MIN_PRIORITY**0.5])
    buffer.check_valid()


def test_an_update_replaces_the_priority_from_the_actor() -> None:
    noted = Noted(trace_length=2)
    player = EpisodePlayer(noted.buffer, lambda: 100)
    for _ in range(2):
        player.step()
    noted.buffer.update_priorities(noted.buffer.sample(1), np.array([0.25]))
    assert noted.buffer._tree[np.array([0])] == 0.25
