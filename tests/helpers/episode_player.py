"""A player of made-up episodes into a sequence buffer, in which every number encodes its origin."""

from collections.abc import Callable

import numpy as np
from gymnasium import spaces

from sb3_attn.replay import SequenceReplayBuffer, SequenceReplayBufferSamples

#: (environment, episode, episode step)
OBSERVATION_SPACE = spaces.Box(-1, 1e6, (3,), np.float64)
N_ACTIONS = 7
ACTION_SPACE = spaces.Discrete(N_ACTIONS)

#: (environment, episode, first trained step, number of trained steps)
Window = tuple[int, int, int, int]


class EpisodePlayer:
    """
    Steps the environments of a buffer, and remembers what it did.

    :param buffer: where the steps go; observations are (environment, episode, step)
    :param draw_length: gives the length of the next episode
    :param truncate: probability that an episode is cut off rather than terminated
    :param seed: of all that is random here
    """

    def __init__(
        self, buffer: SequenceReplayBuffer, draw_length: Callable[[], int], truncate: float = 0.5, seed: int = 0
    ) -> None:
        self.buffer, self.draw_length, self.truncate = buffer, draw_length, truncate
        self.rng = np.random.default_rng(seed)
        env_indices = range(buffer.n_envs)
        self.planned = [draw_length() for _ in env_indices]
        #: Lengths so far of the episodes of each environment, the last of which may be open
        self.lengths: list[list[int]] = [[0] for _ in env_indices]
        #: Environment and number of the episodes that have ended, and whether by termination
        self.terminated: dict[tuple[int, int], bool] = {}

    def step(self, env_indices: np.ndarray | None = None) -> None:
        """One step of some environments, or of all."""
        indices = np.arange(self.buffer.n_envs) if env_indices is None else env_indices
        code = self._codes(indices)
        next_code = code + np.array([0.0, 0.0, 1.0])
        done = np.array([self.lengths[env_index][-1] + 1 == self.planned[env_index] for env_index in indices])
        truncated = done & (self.rng.random(len(indices)) < self.truncate)
        self.buffer.add(
            code,
            next_code,
            self.action(code).reshape(-1, 1),
            self.reward(code),
            done,
            [{"TimeLimit.truncated": bool(cut)} for cut in truncated],
            core_state=self.core_state(code),
            episode_starts=code[:, 2] == 0,
            env_indices=env_indices,
        )
        for env_index, ended, cut in zip(indices, done, truncated, strict=True):
            self.lengths[env_index][-1] += 1
            if ended:
                self._end(env_index, terminated=not cut)

    def abandon(self, env_index: int) -> None:
        """Begin a new episode although the last one did not end, as a second call of ``learn`` does."""
        if self.lengths[env_index][-1] > 0:
            self._end(env_index, terminated=False)

    def _end(self, env_index: int, terminated: bool) -> None:
        self.terminated[env_index, len(self.lengths[env_index]) - 1] = terminated
        self.lengths[env_index].append(0)
        self.planned[env_index] = self.draw_length()

    def _codes(self, env_indices: np.ndarray) -> np.ndarray:
        return np.array(
            [(env_index, len(self.lengths[env_index]) - 1, self.lengths[env_index][-1]) for env_index in env_indices],
            np.float64,
        )

    @staticmethod
    def action(code: np.ndarray) -> np.ndarray:
        return (code @ [1, 2, 3]).astype(np.int64) % N_ACTIONS

    @staticmethod
    def reward(code: np.ndarray) -> np.ndarray:
        return (code @ [1e5, 1e2, 1.0] + 0.5).astype(np.float32)

    @staticmethod
    def core_state(code: np.ndarray) -> tuple[np.ndarray, ...]:
        return code + 1, (code[:, :, None] * [1.0, -1.0]).astype(np.float32)

    def expected_windows(self) -> set[Window]:
        """All windows whose steps and burn-in the buffer still holds, found by going through each environment's history."""
        buffer, windows = self.buffer, set()
        trace, period = buffer.trace_length, buffer.sequence_period
        for env_index, lengths in enumerate(self.lengths):
            begin, oldest = 0, sum(lengths) - buffer.buffer_size
            for episode, length in enumerate(lengths):
                for start in range(0, length, period):
                    n_steps = min(trace, length - start)
                    is_open = (env_index, episode) not in self.terminated
                    within_the_last = start > 0 and start - period + trace >= length
                    if n_steps < trace and (is_open or within_the_last):
                        continue
                    if begin + start - min(start, buffer.burn_in_length) >= oldest:
                        windows.add((env_index, episode, start, n_steps))
                begin += length
        return windows

    def check(self, batch: SequenceReplayBufferSamples) -> set[Window]:
        """Compare everything in a batch with the history; returns its windows."""
        buffer, observations, mask = self.buffer, batch.observations.numpy(), batch.mask.numpy()
        time, lengths = np.arange(len(observations))[:, None], mask.sum(axis=0)
        np.testing.assert_array_equal(mask, time[:-1] < lengths)
        assert (lengths > 0).all() and lengths.max() == len(mask)

        first = observations[0]
        starts = first[:, 2].astype(int)
        ids = [(int(env_index), int(episode)) for env_index, episode, _ in first]
        ends = np.array([self.lengths[env_index][episode] for env_index, episode in ids])
        ended = np.array([key in self.terminated for key in ids])
        terminated = np.array([self.terminated.get(key, False) for key in ids])
        reaches_the_end = starts + lengths == ends
        assert (starts + lengths <= ends).all() and (lengths <= buffer.trace_length).all()
        assert ((lengths == buffer.trace_length) | (reaches_the_end & ended)).all()
        assert (starts % buffer.sequence_period == 0).all()

        codes = first + time[:, :, None] * np.array([0.0, 0.0, 1.0])
        # The observation after a terminal step has no value, so it may be anything
        matters = time < lengths + 1 - (terminated & reaches_the_end)
        np.testing.assert_array_equal(observations[matters], codes[matters])
        codes = codes[:-1]
        np.testing.assert_array_equal(batch.actions.numpy()[mask], self.action(codes)[mask])
        np.testing.assert_array_equal(batch.rewards.numpy()[mask], self.reward(codes)[mask])
        is_terminal = terminated & (codes[:, :, 2] + 1 == ends)
        np.testing.assert_array_equal(batch.terminations.numpy()[mask], is_terminal[mask])

        burn_in_lengths = batch.burn_in_lengths
        np.testing.assert_array_equal(burn_in_lengths, np.minimum(starts, buffer.burn_in_length))
        before = first - burn_in_lengths[:, None] * np.array([0.0, 0.0, 1.0])  # where the burn-in begins
        past = batch.burn_in_observations.numpy()
        assert len(past) == burn_in_lengths.max()
        burn_in_time = np.arange(len(past))[:, None]
        is_past = burn_in_time < burn_in_lengths
        np.testing.assert_array_equal(past[is_past], (before + burn_in_time[:, :, None] * np.array([0.0, 0.0, 1.0]))[is_past])
        from_the_start = before[:, 2] == 0
        np.testing.assert_array_equal(batch.episode_starts.numpy(), from_the_start)
        if buffer.stored_state:
            for array, expected in zip(batch.core_state, self.core_state(before), strict=True):
                np.testing.assert_array_equal(array.numpy()[~from_the_start], expected[~from_the_start])
        return {(*key, int(start), int(length)) for key, start, length in zip(ids, starts, lengths, strict=True)}

    def sampled_windows(self) -> set[Window]:
        """Draw so often that no window of a uniform buffer is missed (each with odds of e^-25), and check all."""
        return self.check(self.buffer.sample(25 * self.buffer.n_windows))


def make_buffer(buffer_size=200, n_envs=1, buffer_class=SequenceReplayBuffer, **kwargs) -> SequenceReplayBuffer:
    return buffer_class(buffer_size, OBSERVATION_SPACE, ACTION_SPACE, device="cpu", n_envs=n_envs, **kwargs)


def play(buffer, lengths, n_steps=None, truncate=0.5) -> EpisodePlayer:
    """Play episodes of the given lengths, one after the other in every environment, or only ``n_steps`` of them."""
    plan = iter([length for length in lengths for _ in range(buffer.n_envs)])
    player = EpisodePlayer(buffer, lambda: next(plan, 10**6), truncate)
    for _ in range(sum(lengths) if n_steps is None else n_steps):
        player.step()
    return player
