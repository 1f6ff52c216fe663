"""Uniform replay of sequences."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attn.common.sum_tree import SumTree
from sb3_attn.replay.core_states import CoreStateStore
from sb3_attn.replay.samples import SequenceReplayBufferSamples

#: The key under which an observation that is no Dict is kept: a Box is a Dict of one key
SINGLE_KEY = "observation"

Observation = np.ndarray | dict[str, np.ndarray]


def as_dict(observation: Any) -> dict[str, Any]:
    """An observation as the replay keeps it, whether it is a Dict or not."""
    return observation if isinstance(observation, dict) else {SINGLE_KEY: observation}


def check_lengths(trace_length: int | None, burn_in_length: int, sequence_period: int | None) -> None:
    """
    Check that windows of these lengths cover every step.

    :raises ValueError: if they do not; the sentence says what to change
    """
    if trace_length is not None and trace_length < 1:
        raise ValueError(
            f"trace_length={trace_length} leaves no step to learn from; give at least 1, or None for whole episodes."
        )
    if burn_in_length < 0:
        raise ValueError(f"burn_in_length={burn_in_length} is negative; give 0 for no burn-in.")
    if sequence_period is not None and sequence_period < 1:
        raise ValueError(f"sequence_period={sequence_period} must be at least 1, or None for trace_length.")
    if trace_length is None and (burn_in_length > 0 or sequence_period is not None):
        raise ValueError(
            f"trace_length=None takes whole episodes, which start at their first step, but burn_in_length={burn_in_length} "
            f"and sequence_period={sequence_period}; set a trace_length, or use burn_in_length=0 and sequence_period=None."
        )
    if trace_length is not None and sequence_period is not None and sequence_period > trace_length:
        raise ValueError(
            f"sequence_period={sequence_period} is larger than trace_length={trace_length}, so some steps would never be "
            "trained; lower sequence_period or raise trace_length."
        )


class SequenceReplayBuffer(ReplayBuffer):
    """
    Replay of windows of consecutive steps, for agents with a memory.

    Steps lie in one ring per environment (a *lane*), and each observation is stored once: the next observation of a step
    is the observation of the following one. The exceptions lie aside: that of a lane's newest step, and the final
    observations of truncated episodes, from which their value is bootstrapped.

    A window is known by its first trained step. Trained parts start at steps 0, p, 2p, ... of an episode (p is the
    ``sequence_period``) and are ``trace_length`` long, or shorter at the episode's end; before them lie
    ``min(burn_in_length, steps available)`` steps of burn-in. So every step of every episode is trained, also its first
    and its last, and no window crosses episodes. A window can be drawn once its last step is there.

    Core states are kept only where a window with a past can start (one in ``sequence_period`` steps).

    :param buffer_size: number of steps over all lanes; each lane holds at least one whole sequence
    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these
    :param action_space: Discrete
    :param device: where samples go
    :param n_envs: number of lanes
    :param optimize_memory_usage: changes nothing; every observation is stored once anyway
    :param handle_timeout_termination: bootstrap where an episode was truncated, rather than take it for terminated
    :param trace_length: number of trained steps in a window; ``None`` means whole episodes
    :param burn_in_length: largest number of steps before the trained ones that warm the memory up
    :param sequence_period: distance of the starts of two trained parts; ``None`` means ``trace_length``, so that each step
        lies in one window
    :param stored_state: keep core states; otherwise ``SequenceReplayBufferSamples.core_state`` is empty
    :raises ValueError: if a length is not positive, or the period leaves steps out
    """

    #: Next slot to write in each lane, and whether it has come round, ``[n_envs]``
    pos: np.ndarray  # type: ignore[assignment]
    full: np.ndarray  # type: ignore[assignment]

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        trace_length: int | None = None,
        burn_in_length: int = 0,
        sequence_period: int | None = None,
        stored_state: bool = True,
    ) -> None:
        # Not ReplayBuffer's own constructor: it allocates every observation twice
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs)
        check_lengths(trace_length, burn_in_length, sequence_period)
        self.buffer_size = max(buffer_size // n_envs, (trace_length or 1) + burn_in_length)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.trace_length = trace_length or self.buffer_size
        self.burn_in_length = burn_in_length
        self.sequence_period = sequence_period or self.trace_length
        self.stored_state = stored_state

        lanes = (self.buffer_size, n_envs)
        shapes = self.obs_shape if isinstance(self.obs_shape, dict) else {SINGLE_KEY: self.obs_shape}
        obs_spaces = as_dict(getattr(observation_space, "spaces", observation_space))
        self._observations = {key: np.zeros((*lanes, *shapes[key]), obs_spaces[key].dtype) for key in shapes}
        self.actions = np.zeros((*lanes, self.action_dim), self._maybe_cast_dtype(action_space.dtype))
        self.rewards = np.zeros(lanes, np.float32)
        self.dones = np.zeros(lanes, bool)
        self.timeouts = np.zeros(lanes, bool)
        #: Position of each step in its episode
        self.episode_steps = np.zeros(lanes, np.int32)
        #: Number of trained steps of the window that starts at each step, 0 where none does
        self.window_lengths = np.zeros(lanes, np.int32)
        self.window_ids = np.zeros(lanes, np.int64)

        # Where next observations lie that no ring holds
        self._newest_next_observations = {key: np.zeros_like(ring[0]) for key, ring in self._observations.items()}
        self._final_observations: dict[tuple[int, int], dict[str, np.ndarray]] = {}

        self._core_states = CoreStateStore(self.buffer_size, n_envs, burn_in_length, self.sequence_period)

        # The possible distances from a window's first burn-in step to its first trained step
        self._burn_in_choices = np.unique([*range(0, burn_in_length, self.sequence_period), burn_in_length])
        # A leaf for every step, 1 (or a priority) where a window starts
        self._tree = SumTree(self.buffer_size * n_envs)
        #: Number of windows that could ever be drawn
        self.n_windows_added = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.pos = np.zeros(self.n_envs, np.int64)
        self.full = np.zeros(self.n_envs, bool)
        #: Length so far of the episode that is open in each lane, 0 if none is
        self.open_lengths = np.zeros(self.n_envs, np.int64)
        self.n_windows = 0
        starts = np.nonzero(self.window_lengths)
        self.window_lengths[starts] = 0
        self._tree.update(self._leaves(*starts), 0.0)
        self.timeouts[:] = False
        self._final_observations.clear()

    @property
    def observations(self) -> Observation:  # type: ignore[override]
        """The stored observations ``[buffer_size, n_envs, ...]``."""
        return self._observations if isinstance(self.observation_space, spaces.Dict) else self._observations[SINGLE_KEY]

    def size(self) -> int:
        """Number of steps in the fullest lane."""
        return int(np.where(self.full, self.buffer_size, self.pos).max())

    # ---------------------------------------------------------------- writing

    def add(
        self,
        obs: Observation,
        next_obs: Observation,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
        core_state: tuple[Any, ...] | None = None,
        episode_starts: np.ndarray | None = None,
        lanes: np.ndarray | None = None,
    ) -> None:
        """
        Append one step to each of n lanes.

        :param obs: observations before the step, ``[n, ...]``
        :param next_obs: observations after it; where an episode ended its own last one, ``[n, ...]``
        :param action: ``[n, 1]`` or ``[n]``
        :param reward: ``[n]``
        :param done: whether the episode ended, ``[n]``
        :param infos: ``TimeLimit.truncated`` says that an end is no termination
        :param core_state: the state *before* the step, flat arrays or tensors ``[n, ...]``; ``None`` counts as zeros
        :param episode_starts: whether ``obs`` is an episode's first, ``[n]``. A lane whose last episode did not end is
            then closed as if that had been truncated. ``None`` means: where the last episode ended.
        :param lanes: the lanes to write, each at most once, ``[n]``; ``None`` means all, in order
        """
        lanes = np.arange(self.n_envs) if lanes is None else np.asarray(lanes)
        if episode_starts is not None:
            for lane in lanes[np.asarray(episode_starts, bool) & (self.open_lengths[lanes] > 0)]:
                self._close_episode(lane, timeout=True)
        slots, steps = self.pos[lanes], self.open_lengths[lanes]
        self._discard(slots, lanes)

        for key, ring in self._observations.items():
            shape = (len(lanes), *ring.shape[2:])
            ring[slots, lanes] = np.reshape(as_dict(obs)[key], shape)
            self._newest_next_observations[key][lanes] = np.reshape(as_dict(next_obs)[key], shape)
        self.actions[slots, lanes] = np.reshape(action, (len(lanes), self.action_dim))
        self.rewards[slots, lanes] = reward
        self.dones[slots, lanes] = False
        self.timeouts[slots, lanes] = False
        self.episode_steps[slots, lanes] = steps
        if self.stored_state:
            self._core_states.keep(core_state, slots, lanes, steps)

        self.pos[lanes] = (slots + 1) % self.buffer_size
        self.full[lanes] |= self.pos[lanes] == 0
        self.open_lengths[lanes] += 1
        self._register_complete(slots, lanes, steps)
        for i in np.flatnonzero(done):
            timeout = self.handle_timeout_termination and infos[i].get("TimeLimit.truncated", False)
            self._close_episode(lanes[i], timeout=bool(timeout))

    def _register_complete(self, slots: np.ndarray, lanes: np.ndarray, steps: np.ndarray) -> None:
        """Make windows available whose last step was just written."""
        first_steps = steps - self.trace_length + 1
        complete = (first_steps >= 0) & (first_steps % self.sequence_period == 0)
        if complete.any():
            starts = (slots[complete] - self.trace_length + 1) % self.buffer_size
            self._register(starts, lanes[complete], self.trace_length)

    def _close_episode(self, lane: int, timeout: bool) -> None:
        """End the lane's open episode at its newest step and make its last, shorter windows available."""
        length = int(self.open_lengths[lane])
        newest = (self.pos[lane] - 1) % self.buffer_size
        self.dones[newest, lane] = True
        self.timeouts[newest, lane] = timeout
        if timeout:
            final = {key: array[lane].copy() for key, array in self._newest_next_observations.items()}
            self._final_observations[int(newest), int(lane)] = final

        period, trace = self.sequence_period, self.trace_length
        first_open = max(-(-(length - trace + 1) // period) * period, 0)  # the first start whose window is not complete
        starts = np.arange(first_open, length, period)
        # A tail that lies whole within the window before it would only be trained twice
        starts = starts[(starts == 0) | (starts + trace - period < length)]
        slots = (newest - (length - 1) + starts) % self.buffer_size
        self._register(slots, np.full_like(slots, lane), length - starts)

        self._core_states.close_episode(lane, length)
        self.open_lengths[lane] = 0

    def _register(self, slots: np.ndarray, lanes: np.ndarray, lengths: np.ndarray | int) -> None:
        """Let windows be drawn from now on."""
        self.window_lengths[slots, lanes] = lengths
        self.window_ids[slots, lanes] = self.n_windows_added + np.arange(len(slots))
        self.n_windows_added += len(slots)
        self.n_windows += len(slots)
        self._tree.update(self._leaves(slots, lanes), self._new_leaves(slots, lanes, lengths))

    def _new_leaves(self, slots: np.ndarray, lanes: np.ndarray, lengths: np.ndarray | int) -> np.ndarray | float:
        """What a window weighs in the draw when it comes: the slot and the lane of its first trained step, its length."""
        return 1.0

    def _discard(self, slots: np.ndarray, lanes: np.ndarray) -> None:
        """Withdraw the windows, and the final observations, that need the steps about to be overwritten."""
        if not self.full[lanes].any():
            return
        choices = self._burn_in_choices[:, None]
        starts = (slots + choices) % self.buffer_size
        lanes_ = np.broadcast_to(lanes, starts.shape)
        burn_in_lengths = np.minimum(self.episode_steps[starts, lanes_], self.burn_in_length)
        stale = (self.window_lengths[starts, lanes_] > 0) & (burn_in_lengths == choices)
        if stale.any():
            starts, stale_lanes = starts[stale], lanes_[stale]
            self.window_lengths[starts, stale_lanes] = 0
            self.n_windows -= len(starts)
            self._tree.update(self._leaves(starts, stale_lanes), 0.0)
        for i in np.flatnonzero(self.timeouts[slots, lanes]):
            self._final_observations.pop((int(slots[i]), int(lanes[i])), None)

    def _leaves(self, slots: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        return slots * self.n_envs + lanes

    # ---------------------------------------------------------------- reading

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> SequenceReplayBufferSamples:  # type: ignore[override]
        """
        Draw windows, with replacement.

        :param batch_size: number of windows B
        :param env: normalizes observations and rewards, if given
        :return: the batch
        :raises ValueError: if no window is complete yet
        """
        if self.n_windows == 0:
            raise ValueError(
                f"the replay buffer holds no complete window yet ({self.size()} steps per lane, trace_length="
                f"{self.trace_length}); collect more steps or lower trace_length."
            )
        return self._get_samples(self._draw(batch_size), env)

    def _draw(self, batch_size: int) -> np.ndarray:
        """Leaves of the windows to take. All leaves are 0 or 1, so a rank is a prefix sum."""
        return self._tree.find(np.random.randint(0, self.n_windows, size=batch_size))

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> SequenceReplayBufferSamples:
        slots, lanes = np.divmod(batch_inds, self.n_envs)
        lengths = self.window_lengths[slots, lanes]
        first_steps = self.episode_steps[slots, lanes]
        burn_in_lengths = np.minimum(first_steps, self.burn_in_length)
        burn_in_slots = slots - burn_in_lengths

        time = np.arange(lengths.max())[:, None]
        mask = time < lengths
        rows = (slots + np.minimum(time, lengths - 1)) % self.buffer_size  # padding repeats the last step
        burn_in_time = np.arange(burn_in_lengths.max())[:, None]
        burn_in_rows = (burn_in_slots + np.minimum(burn_in_time, burn_in_lengths)) % self.buffer_size

        rewards = self._normalize_reward(self.rewards[rows, lanes], env)
        terminations = self.dones[rows, lanes] & ~self.timeouts[rows, lanes] & mask

        return SequenceReplayBufferSamples(
            burn_in_observations=self._obs_to_torch(
                {key: ring[burn_in_rows, lanes] for key, ring in self._observations.items()}, env
            ),
            burn_in_lengths=burn_in_lengths,
            core_state=tuple(map(self._tensor, self._core_states.get(burn_in_slots % self.buffer_size, lanes))),
            episode_starts=self._tensor(first_steps == burn_in_lengths),
            observations=self._obs_to_torch(self._trained_observations(slots, lanes, lengths), env),
            actions=self._tensor(self.actions[rows, lanes, 0]).long(),
            rewards=self._tensor(np.where(mask, rewards, 0.0).astype(np.float32)),
            terminations=self._tensor(terminations.astype(np.float32)),
            mask=self._tensor(mask),
            importance_weights=self._tensor(self._importance_weights(batch_inds)),
            indices=batch_inds,
            window_ids=self.window_ids[slots, lanes],
        )

    def _trained_observations(self, slots: np.ndarray, lanes: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Observations of the trained steps and the one after the last, ``[T + 1, B, ...]``; padding repeats that one."""
        time = np.arange(lengths.max() + 1)[:, None]
        rows = (slots + np.minimum(time, lengths)) % self.buffer_size
        observations = {key: ring[rows, lanes] for key, ring in self._observations.items()}

        last_slots = (slots + lengths - 1) % self.buffer_size
        is_newest = (last_slots + 1) % self.buffer_size == self.pos[lanes]
        for i in np.flatnonzero(is_newest | self.timeouts[last_slots, lanes]):
            lane = int(lanes[i])
            aside = self._final_observations.get((int(last_slots[i]), lane))
            for key, array in observations.items():
                array[lengths[i] :, i] = self._newest_next_observations[key][lane] if aside is None else aside[key]
        return observations

    def _importance_weights(self, batch_inds: np.ndarray) -> np.ndarray:
        return np.ones(len(batch_inds), np.float32)

    def _tensor(self, array: np.ndarray) -> th.Tensor:
        return self.to_torch(array, copy=False)  # every array here is fresh

    def _obs_to_torch(self, observations: dict[str, np.ndarray], env: VecNormalize | None) -> PyTorchObs:
        if isinstance(self.observation_space, spaces.Dict):
            return {key: self._tensor(array) for key, array in self._normalize_obs(observations, env).items()}  # type: ignore[union-attr]
        return self._tensor(self._normalize_obs(observations[SINGLE_KEY], env))  # type: ignore[arg-type]

    def check_valid(self) -> None:
        """
        Check every invariant of the store; slow, for tests and for debugging.

        :raises AssertionError: if one is violated
        """
        slots, lanes = np.nonzero(self.window_lengths)
        assert len(slots) == self.n_windows, "n_windows is not the number of windows"
        assert np.array_equal(np.flatnonzero(self._tree[np.arange(self._tree.capacity)]), self._leaves(slots, lanes)), (
            "the tree's leaves are not the windows"
        )
        states, used_state_rows = self._core_states, set()
        for slot, lane in zip(slots, lanes, strict=True):
            first, length = self.episode_steps[slot, lane], self.window_lengths[slot, lane]
            burn_in = min(first, self.burn_in_length)
            rows = np.arange(slot - burn_in, slot + length) % self.buffer_size
            oldest = self.pos[lane] if self.full[lane] else 0
            ages = (rows - oldest) % self.buffer_size
            n_steps = self.buffer_size if self.full[lane] else self.pos[lane]
            assert (np.diff(ages) == 1).all() and ages[-1] < n_steps, "a window spans the write position"
            assert (np.diff(self.episode_steps[rows, lane]) == 1).all(), "a window crosses episodes"
            assert not self.dones[rows[:-1], lane].any(), "a window goes on after an episode's end"
            assert first % self.sequence_period == 0, "a window starts off the grid"
            assert length == self.trace_length or self.dones[rows[-1], lane], "a short window that ends no episode"
            if first > burn_in:
                used_state_rows.add((lane, states.rows[rows[0], lane]))
        n_with_past = (self.episode_steps[slots, lanes] > self.burn_in_length).sum()
        assert states.arrays is None or len(used_state_rows) == n_with_past, "two windows share a stored state"
        truncated = set(zip(*(axis.tolist() for axis in np.nonzero(self.timeouts)), strict=True))
        assert set(self._final_observations) == truncated, "final observations are not those of the truncated episodes"
