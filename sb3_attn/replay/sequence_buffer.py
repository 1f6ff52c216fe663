"""Uniform replay of windows of consecutive steps."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import buffers
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attn.common.action_masks import leave_valid, numbers_of_choices
from sb3_attn.common.checks import check_whole, optional
from sb3_attn.common.former_names import FormerAttributeNames
from sb3_attn.common.sum_tree import SumTree
from sb3_attn.replay.core_states import CoreStateStore
from sb3_attn.replay.observation_store import MASKS_KEY, SINGLE_KEY, Observation, ObservationStore, as_dict
from sb3_attn.replay.samples import SequenceReplayBufferSamples

#: Attributes of the buffer that are arrays and change
STATE_ARRAYS = (
    # [buffer_size, n_envs, ...], then [n_envs]
    *("actions", "rewards", "dones", "timeouts", "episode_steps", "window_lengths", "window_ids"),
    *("pos", "full", "open_lengths"),
)


def take_rows(value: Any, rows: np.ndarray) -> Any:
    """
    Select environments in all arrays of the arguments of ``SequenceReplayBuffer.add``.

    :param value: an argument, or a dict of arguments
    :param rows: numbers of the environments, ``[n]``
    :return: the same, with these rows only
    """
    if isinstance(value, dict):
        return {key: take_rows(item, rows) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(take_rows(item, rows) for item in value)
    if isinstance(value, list):
        return [value[row] for row in rows]
    return None if value is None else value[rows]


def check_lengths(trace_length: int | None, burn_in_length: int, sequence_period: int | None) -> None:
    """
    Check that windows of these lengths cover every step.

    :param trace_length: as for ``SequenceReplayBuffer``
    :param burn_in_length: as for ``SequenceReplayBuffer``
    :param sequence_period: as for ``SequenceReplayBuffer``
    :raises ValueError: if they do not; the sentence says what to change
    """
    optional(check_whole)("trace_length", trace_length)
    check_whole("burn_in_length", burn_in_length)
    optional(check_whole)("sequence_period", sequence_period)
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


class SequenceReplayBuffer(FormerAttributeNames, ReplayBuffer):
    """
    Replay of windows of consecutive steps, for agents with a memory.

    A window lies within one episode: up to ``burn_in_length`` steps that only warm the memory up, then up to
    ``trace_length`` steps that are trained. The trained parts start every ``sequence_period`` steps. So an episode of 11
    steps is cut into these windows by ``burn_in_length=2, trace_length=4, sequence_period=3`` (b: burn-in, t: trained):

        step          0  1  2  3  4  5  6  7  8  9 10
        window at 0   t  t  t  t
        window at 3      b  b  t  t  t  t
        window at 6               b  b  t  t  t  t
        window at 9                        b  b  t  t

    Every step of every episode is trained, including the first and the last. The burn-in is shorter where the episode has
    fewer steps before the window, the trained part where it has fewer steps left; a last window whose steps all lie in the
    one before is left out (the fourth, if the episode had 10 steps). A window is identified by its first trained step, and
    can be drawn as soon as its last step is stored.

    The steps of each environment lie in a ring of their own, in which ``pos`` is the next position to write. Each
    observation is stored once (see ``ObservationStore``).

    Core states are stored only before steps at which a window can start, one in ``sequence_period``.

    :param buffer_size: number of steps of all environments together; each ring holds at least one whole window
    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these
    :param action_space: Discrete or MultiDiscrete
    :param device: where samples go
    :param n_envs: number of environments
    :param optimize_memory_usage: changes nothing; every observation is stored once anyway
    :param handle_timeout_termination: bootstrap where an episode was truncated, rather than treat it as terminated
    :param trace_length: number of trained steps in a window; ``None`` means whole episodes, of which a ring has to hold two:
        longer ones are cut into windows of half a ring, with a warning
    :param burn_in_length: largest number of steps before the trained ones that warm the memory up
    :param sequence_period: distance between the starts of two trained parts; ``None`` means ``trace_length``, so that each
        step lies in one window
    :param stored_state: store core states; otherwise ``SequenceReplayBufferSamples.core_state`` is empty
    :param use_masking: store action masks as well; each observation given to ``add`` is then a dict that has them under the
        key ``MASKS_KEY``
    :raises ValueError: if a length is not positive, or the period leaves steps out
    """

    former_attributes = {"n_registered": "n_windows_added"}

    use_masking = False  # of a saved buffer that is older than masks

    #: Next position to write in each ring, and whether the ring has been filled once, ``[n_envs]``
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
        use_masking: bool = False,
    ) -> None:
        # Not ReplayBuffer's own constructor: it allocates every observation twice
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs)
        check_lengths(trace_length, burn_in_length, sequence_period)
        self.buffer_size = max(buffer_size // n_envs, (trace_length or 1) + burn_in_length)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.whole_episodes = trace_length is None
        self.trace_length = trace_length or max(self.buffer_size // 2, 1)
        self.burn_in_length = burn_in_length
        self.sequence_period = sequence_period or self.trace_length
        self.stored_state = stored_state
        self.use_masking = use_masking

        rings = (self.buffer_size, n_envs)
        shapes = self.obs_shape if isinstance(self.obs_shape, dict) else {SINGLE_KEY: self.obs_shape}
        obs_spaces = as_dict(getattr(observation_space, "spaces", observation_space))
        dtypes = {key: obs_spaces[key].dtype for key in shapes}
        if use_masking:
            shapes, dtypes = shapes | {MASKS_KEY: (spaces.flatdim(action_space),)}, dtypes | {MASKS_KEY: np.dtype(bool)}
        self._observations = ObservationStore(*rings, shapes, dtypes)
        self.actions = np.zeros((*rings, self.action_dim), self._maybe_cast_dtype(action_space.dtype))
        self.rewards = np.zeros(rings, np.float32)
        self.dones = np.zeros(rings, bool)
        self.timeouts = np.zeros(rings, bool)
        #: Number of each step within its episode, from 0
        self.episode_steps = np.zeros(rings, np.int32)
        #: Number of trained steps of the window that starts at each step, 0 where none does
        self.window_lengths = np.zeros(rings, np.int32)
        #: Unique number of that window, by which a batch knows whether its windows have been overwritten since
        self.window_ids = np.zeros(rings, np.int64)

        self._core_states = CoreStateStore(self.buffer_size, n_envs, burn_in_length, self.sequence_period)

        # The burn-in lengths that windows can have: min(burn_in_length, k * sequence_period) for k = 0, 1, 2, ...
        self._burn_in_choices = np.unique([*range(0, burn_in_length, self.sequence_period), burn_in_length])
        # One leaf per step: 1, or a priority, where a window starts, and 0 elsewhere
        self._tree = SumTree(self.buffer_size * n_envs)
        #: Number of windows added since the buffer was made
        self.n_windows_added = 0
        self.reset()
        self._check_memory(0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Earlier versions took whole episodes by windows as long as the ring
        state.setdefault("whole_episodes", state["trace_length"] == state["buffer_size"])
        if isinstance(state["_observations"], dict):  # they also kept the arrays of observations themselves
            store = ObservationStore(state["buffer_size"], state["n_envs"], {}, {})
            store.rings = state["_observations"]
            store.newest_next = state.pop("_newest_next_observations")
            store.finals = state.pop("_final_observations")
            state["_observations"] = store
        super().__setstate__(state)

    def reset(self) -> None:
        """Remove all steps."""
        self.pos = np.zeros(self.n_envs, np.int64)
        self.full = np.zeros(self.n_envs, bool)
        #: Length so far of each environment's open episode, 0 if none is open
        self.open_lengths = np.zeros(self.n_envs, np.int64)
        #: Number of windows that can be drawn
        self.n_windows = 0
        starts = np.nonzero(self.window_lengths)
        self.window_lengths[starts] = 0
        self._tree.update(self._leaf_indices(*starts), 0.0)
        self.timeouts[:] = False
        self._observations.finals.clear()

    @property
    def nbytes(self) -> int:
        """Size of all arrays, without the final observations of truncated episodes, whose number is not known before."""
        arrays = sum(getattr(self, name).nbytes for name in STATE_ARRAYS)
        return arrays + self._observations.nbytes + self._core_states.nbytes + self._tree.nbytes

    def _check_memory(self, nbytes_before: int) -> None:
        """
        Warn, as SB3's buffers do, if the buffer no longer fits into memory. Zeros take memory only once they are written, so
        it would run out in the middle of training.

        :param nbytes_before: size at the last check, in bytes; if that did not fit, there has been a warning already
        """
        if buffers.psutil is None:
            return
        available = buffers.psutil.virtual_memory().available
        if nbytes_before <= available < self.nbytes:
            warnings.warn(
                "This system does not have apparently enough memory to store the complete replay buffer "
                f"{self.nbytes / 1e9:.2f}GB > {available / 1e9:.2f}GB; lower buffer_size={self.buffer_size * self.n_envs}.",
                stacklevel=3,
            )

    @property
    def longest_window(self) -> int:
        """Largest number of trained steps of the windows that can be drawn, 0 without any."""
        return int(self.window_lengths.max())

    @property
    def core_state_shapes(self) -> list[tuple[int, ...]] | None:
        """Shapes of the stored states, of one environment each; ``None`` if none has been stored."""
        arrays = self._core_states.arrays
        return None if arrays is None else [array.shape[2:] for array in arrays]

    @property
    def observations(self) -> Observation:  # type: ignore[override]
        """The stored observations ``[buffer_size, n_envs, ...]``."""
        observations = {key: ring for key, ring in self._observations.rings.items() if key != MASKS_KEY}
        return observations if isinstance(self.observation_space, spaces.Dict) else observations[SINGLE_KEY]

    def size(self) -> int:
        """Number of steps in the fullest ring."""
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
        env_indices: np.ndarray | None = None,
    ) -> None:
        """
        Append one step of each of n environments.

        :param obs: observations before the step, ``[n, ...]``
        :param next_obs: observations after it; the final observation where an episode ended, ``[n, ...]``
        :param action: ``[n, 1]`` or ``[n]``; ``[n, number of components]`` if actions are MultiDiscrete
        :param reward: ``[n]``
        :param done: whether the episode ended, ``[n]``
        :param infos: ``TimeLimit.truncated`` in them tells truncations from terminations
        :param core_state: the state *before* the step, flat arrays or tensors ``[n, ...]``; ``None`` counts as zeros
        :param episode_starts: whether ``obs`` is an episode's first, ``[n]``. An episode that is still open there is closed
            as truncated. ``None`` means: where the last episode ended.
        :param env_indices: environments of the steps, each at most once, ``[n]``; ``None`` means all, in order
        :raises ValueError: if observations do not have the shapes of their spaces
        """
        env_indices = np.arange(self.n_envs) if env_indices is None else np.asarray(env_indices)
        if episode_starts is not None:
            for env_index in env_indices[np.asarray(episode_starts, bool) & (self.open_lengths[env_indices] > 0)]:
                self._close_episode(env_index, timeout=True)
        positions, steps = self.pos[env_indices], self.open_lengths[env_indices]
        if self.whole_episodes and (steps == self.trace_length).any():
            warnings.warn(
                f"trace_length=None takes whole episodes, but one has more than {self.trace_length} steps, half of its "
                f"environment's share of buffer_size={self.buffer_size * self.n_envs}, and is cut into such windows; "
                "set a trace_length, or raise buffer_size.",
                stacklevel=2,
            )
        # Before anything is overwritten, since the old episode_steps tell which windows begin here
        self._discard(positions, env_indices)

        self._observations.keep(obs, next_obs, positions, env_indices)
        self.actions[positions, env_indices] = np.reshape(action, (len(env_indices), self.action_dim))
        self.rewards[positions, env_indices] = reward
        self.dones[positions, env_indices] = False
        self.timeouts[positions, env_indices] = False
        self.episode_steps[positions, env_indices] = steps
        if self.stored_state:
            is_first = core_state is not None and self._core_states.arrays is None
            nbytes_before = self.nbytes if is_first else 0
            self._core_states.keep(core_state, positions, env_indices, steps)
            if is_first:  # only now is the size of the states known
                self._check_memory(nbytes_before)

        self.pos[env_indices] = (positions + 1) % self.buffer_size
        self.full[env_indices] |= self.pos[env_indices] == 0
        self.open_lengths[env_indices] += 1
        # At the end of an episode a window of full length may complete as well: it is added first, and the rest by closing
        self._add_complete_windows(positions, env_indices, steps)
        for i in np.flatnonzero(done):
            timeout = self.handle_timeout_termination and infos[i].get("TimeLimit.truncated", False)
            self._close_episode(env_indices[i], timeout=bool(timeout))

    def _add_complete_windows(self, positions: np.ndarray, env_indices: np.ndarray, steps: np.ndarray) -> None:
        """Add the windows of full length whose last steps were just written."""
        first_steps = steps - self.trace_length + 1
        complete = (first_steps >= 0) & (first_steps % self.sequence_period == 0)
        if complete.any():
            starts = (positions[complete] - self.trace_length + 1) % self.buffer_size
            self._add_windows(starts, env_indices[complete], self.trace_length)

    def _close_episode(self, env_index: int, timeout: bool) -> None:
        """End an environment's open episode at its newest step, and add its last, shorter windows."""
        length = int(self.open_lengths[env_index])
        newest = (self.pos[env_index] - 1) % self.buffer_size
        self.dones[newest, env_index] = True
        self.timeouts[newest, env_index] = timeout
        if timeout:
            self._observations.keep_final(int(newest), int(env_index))

        period, trace = self.sequence_period, self.trace_length
        # Windows that start at a step <= length - trace had room for all trained steps and are in. The next one starts at
        # the smallest multiple of the period that is >= length - trace + 1 (-(-a // b) rounds a / b up).
        first_open = max(-(-(length - trace + 1) // period) * period, 0)
        starts = np.arange(first_open, length, period)
        # The window before ends with step start - period + trace - 1. If that is the episode's last, this one adds nothing.
        starts = starts[(starts == 0) | (starts - period + trace < length)]
        # The newest position holds step length - 1, so step s lies length - 1 - s positions before it
        positions = (newest - (length - 1) + starts) % self.buffer_size
        self._add_windows(positions, np.full_like(positions, env_index), length - starts)

        self._core_states.close_episode(env_index, length)
        self.open_lengths[env_index] = 0

    def _add_windows(self, positions: np.ndarray, env_indices: np.ndarray, lengths: np.ndarray | int) -> None:
        """Make windows available, given the positions of their first trained steps and the numbers of these."""
        self.window_lengths[positions, env_indices] = lengths
        self.window_ids[positions, env_indices] = self.n_windows_added + np.arange(len(positions))
        self.n_windows_added += len(positions)
        self.n_windows += len(positions)
        priorities = self._initial_priorities(positions, env_indices, lengths)
        self._tree.update(self._leaf_indices(positions, env_indices), priorities)

    def _initial_priorities(
        self, positions: np.ndarray, env_indices: np.ndarray, lengths: np.ndarray | int
    ) -> np.ndarray | float:
        """The leaves of new windows; arguments as for ``_add_windows``."""
        return 1.0

    def _discard(self, positions: np.ndarray, env_indices: np.ndarray) -> None:
        """Remove the windows, and the final observations, that need the steps about to be overwritten."""
        if not self.full[env_indices].any():
            return
        # Steps are overwritten oldest first, so a window loses its first step first, and it suffices to look for the windows
        # that begin, with their burn-in, at these positions. Their trained parts start as much later as their burn-in is long
        choices = self._burn_in_choices[:, None]
        starts = (positions + choices) % self.buffer_size  # [choices, n]
        envs = np.broadcast_to(env_indices, starts.shape)
        burn_in_lengths = np.minimum(self.episode_steps[starts, envs], self.burn_in_length)
        stale = (self.window_lengths[starts, envs] > 0) & (burn_in_lengths == choices)
        if stale.any():
            starts, envs = starts[stale], envs[stale]
            self.window_lengths[starts, envs] = 0
            self.n_windows -= len(starts)
            self._tree.update(self._leaf_indices(starts, envs), 0.0)
        for i in np.flatnonzero(self.timeouts[positions, env_indices]):
            self._observations.finals.pop((int(positions[i]), int(env_indices[i])), None)

    def _leaf_indices(self, positions: np.ndarray, env_indices: np.ndarray) -> np.ndarray:
        """Indices of steps in the sum tree; ``np.divmod(indices, n_envs)`` is the inverse."""
        return positions * self.n_envs + env_indices

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
                f"the replay buffer holds no complete window yet ({self.size()} steps per environment, trace_length="
                f"{self.trace_length}); collect more steps or lower trace_length."
            )
        return self._get_samples(self._draw(batch_size), env)

    def _draw(self, batch_size: int) -> np.ndarray:
        """Draw the leaf indices of B windows. All leaves are 0 or 1 here, so the k-th window has the prefix sum k."""
        return self._tree.find(np.random.randint(0, self.n_windows, size=batch_size))

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> SequenceReplayBufferSamples:
        starts, env_indices = np.divmod(batch_inds, self.n_envs)
        lengths = self.window_lengths[starts, env_indices]
        first_steps = self.episode_steps[starts, env_indices]
        burn_in_lengths = np.minimum(first_steps, self.burn_in_length)
        burn_in_starts = (starts - burn_in_lengths) % self.buffer_size

        # Positions of all trained steps, [T, B]. Shorter windows are padded with a step of their own episode.
        time = np.arange(lengths.max())[:, None]
        mask = time < lengths
        positions = (starts + np.minimum(time, lengths - 1)) % self.buffer_size

        actions = self.actions[positions, env_indices]
        rewards = self._normalize_reward(self.rewards[positions, env_indices], env)
        last_positions = (starts + lengths - 1) % self.buffer_size
        is_newest = (last_positions + 1) % self.buffer_size == self.pos[env_indices]
        is_last = is_newest | self.timeouts[last_positions, env_indices]
        observations = self._observations.trained(starts, env_indices, lengths, is_last)
        masks = observations.pop(MASKS_KEY, None)
        terminations = self.dones[positions, env_indices] & ~self.timeouts[positions, env_indices] & mask

        return SequenceReplayBufferSamples(
            burn_in_observations=self._obs_to_torch(self._observations.burn_in(starts, env_indices, burn_in_lengths), env),
            burn_in_lengths=burn_in_lengths,
            core_state=tuple(map(self._tensor, self._core_states.get(burn_in_starts, env_indices))),
            episode_starts=self._tensor(first_steps == burn_in_lengths),
            observations=self._obs_to_torch(observations, env),
            action_masks=None if masks is None else self._tensor(leave_valid(masks, numbers_of_choices(self.action_space))),
            actions=self._tensor(actions.reshape(mask.shape + (self.action_space.shape or ()))).long(),
            rewards=self._tensor(np.where(mask, rewards, 0.0).astype(np.float32)),
            terminations=self._tensor(terminations.astype(np.float32)),
            mask=self._tensor(mask),
            importance_weights=self._tensor(self._importance_weights(batch_inds)),
            indices=batch_inds,
            window_ids=self.window_ids[starts, env_indices],
        )

    def sample_with_past(
        self, batch_size: int, max_past: int, rng: np.random.Generator, env: VecNormalize | None = None
    ) -> tuple[SequenceReplayBufferSamples, SequenceReplayBufferSamples] | None:
        """
        Draw windows, with replacement, among those whose stored state matters and whose episode is stored from its start.

        :param batch_size: number of windows B
        :param max_past: largest number of steps of their episodes before these windows
        :param rng: supplies the random numbers, so that those of ``sample`` stay the same
        :param env: normalizes observations and rewards, if given
        :return: the batch, and the same windows with the whole past as their burn-in; ``None`` if there are no such windows
        """
        starts, env_indices = np.nonzero(self.window_lengths)
        n_past = self.episode_steps[starts, env_indices]
        oldest = np.where(self.full, self.pos, 0)[env_indices]
        n_stored = (starts - oldest) % self.buffer_size  # steps of this environment before the window
        # A window whose burn-in reaches back to the episode's start begins with the initial state
        eligible = (n_past > self.burn_in_length) & (n_past <= np.minimum(n_stored, max_past))
        if not eligible.any():
            return None
        chosen = rng.choice(np.flatnonzero(eligible), batch_size)
        starts, env_indices, n_past = starts[chosen], env_indices[chosen], n_past[chosen]
        batch = self._get_samples(self._leaf_indices(starts, env_indices), env)
        return batch, batch._replace(
            burn_in_observations=self._obs_to_torch(self._observations.burn_in(starts, env_indices, n_past), env),
            burn_in_lengths=n_past,
            core_state=(),
            episode_starts=th.ones_like(batch.episode_starts),
        )

    def _importance_weights(self, batch_inds: np.ndarray) -> np.ndarray:
        return np.ones(len(batch_inds), np.float32)

    def _tensor(self, array: np.ndarray) -> th.Tensor:
        return self.to_torch(array, copy=False)  # every array here is fresh

    def _obs_to_torch(self, observations: dict[str, np.ndarray], env: VecNormalize | None) -> PyTorchObs:
        if isinstance(self.observation_space, spaces.Dict):
            return {key: self._tensor(array) for key, array in self._normalize_obs(observations, env).items()}  # type: ignore[union-attr]
        return self._tensor(self._normalize_obs(observations[SINGLE_KEY], env))  # type: ignore[arg-type]

    def state_arrays(self) -> dict[str, np.ndarray]:
        """
        All that the buffer holds, as plain arrays.

        :return: arrays by name, for ``set_state_arrays`` of a buffer that was made with the same arguments
        """
        state = {name: getattr(self, name) for name in STATE_ARRAYS}
        state["counts"] = np.array([self.n_windows, self.n_windows_added])
        state["leaves"] = self._tree[np.arange(self._tree.capacity)]
        state |= self._observations.state_arrays()
        return state | {f"core_states/{name}": array for name, array in self._core_states.state_arrays().items()}

    def set_state_arrays(self, state: Mapping[str, np.ndarray]) -> None:
        """
        Take over what another buffer held.

        :param state: from ``state_arrays``
        :raises ValueError: if an array is missing, or does not have the shape or type that it has here
        """
        of_core = {name.removeprefix("core_states/"): a for name, a in state.items() if name.startswith("core_states/")}
        for name, own in self.state_arrays().items():
            free = name.startswith(("final_", "core_states/"))  # as many as there are
            if name not in state or state[name].dtype != own.dtype or (not free and state[name].shape != own.shape):
                found = f"{state[name].dtype} {state[name].shape}" if name in state else "missing"
                raise ValueError(f"{name} is {found} in the saved replay, but {own.dtype} {own.shape} here.")
        self._core_states.set_state_arrays(of_core)
        for name in STATE_ARRAYS:
            setattr(self, name, state[name].copy())
        self.n_windows, self.n_windows_added = state["counts"].tolist()
        self._tree.update(np.arange(self._tree.capacity), state["leaves"])
        self._observations.set_state_arrays(state)

    def check_valid(self) -> None:
        """
        Check every invariant of the buffer; slow, for tests and for debugging.

        :raises AssertionError: if one is violated
        """
        starts, env_indices = np.nonzero(self.window_lengths)
        assert len(starts) == self.n_windows, "n_windows is not the number of windows"
        leaves = np.flatnonzero(self._tree[np.arange(self._tree.capacity)])
        assert np.array_equal(leaves, self._leaf_indices(starts, env_indices)), "the tree's leaves are not the windows"
        states, used_entries = self._core_states, set()
        for start, env_index in zip(starts, env_indices, strict=True):
            first, length = self.episode_steps[start, env_index], self.window_lengths[start, env_index]
            burn_in = min(first, self.burn_in_length)
            positions = np.arange(start - burn_in, start + length) % self.buffer_size
            oldest = self.pos[env_index] if self.full[env_index] else 0
            ages = (positions - oldest) % self.buffer_size
            n_steps = self.buffer_size if self.full[env_index] else self.pos[env_index]
            assert (np.diff(ages) == 1).all() and ages[-1] < n_steps, "a window spans the write position"
            assert (np.diff(self.episode_steps[positions, env_index]) == 1).all(), "a window crosses episodes"
            assert not self.dones[positions[:-1], env_index].any(), "a window goes on after an episode's end"
            assert first % self.sequence_period == 0, "a window does not start at a multiple of sequence_period"
            assert length == self.trace_length or self.dones[positions[-1], env_index], "a short window ends no episode"
            if first > burn_in:
                used_entries.add((env_index, states.entries[positions[0], env_index]))
        n_with_past = (self.episode_steps[starts, env_indices] > self.burn_in_length).sum()
        assert states.arrays is None or len(used_entries) == n_with_past, "two windows share a stored state"
        truncated = set(zip(*(axis.tolist() for axis in np.nonzero(self.timeouts)), strict=True))
        assert set(self._observations.finals) == truncated, "final observations are not those of the truncated episodes"
