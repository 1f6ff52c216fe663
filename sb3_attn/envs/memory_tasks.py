"""Small tasks that cannot be solved without memory, each with the best return that is possible without it."""

import copy
import math
from abc import ABC, abstractmethod
from itertools import combinations_with_replacement
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

# Indexed by the sign of a value: 0 is dark, +1 green, and -1 (the last row) red. Grey: not seen yet.
SIGN_COLOURS = np.array([[25, 25, 25], [60, 180, 75], [220, 50, 60]], dtype=np.uint8)
GREY, WHITE = np.array([90, 90, 90], dtype=np.uint8), np.array([240, 240, 240], dtype=np.uint8)


class MemoryTask(gym.Env[np.ndarray, np.int64], ABC):
    """
    Base of the tasks: episodes of a fixed length whose best return is 1.

    The last step of an episode reports in ``info["is_success"]`` whether the best return was reached.

    :param observation_space: Space of the observations.
    :param n_actions: Number of actions.
    :param episode_length: Steps per episode; the last one terminates it.
    :param render_mode: ``None`` or ``"rgb_array"``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}
    best_return = 1.0

    def __init__(self, observation_space: spaces.Box, n_actions: int, episode_length: int, render_mode: str | None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f'render_mode={render_mode!r} is not supported; use "rgb_array" or None.')
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(n_actions)
        self.episode_length = episode_length
        self.render_mode = render_mode
        self._ended = False  # early, by an invalid action
        self._observations: list[np.ndarray] = []  # o_0 ... o_t of this episode
        self._rewards: list[float] = []  # r_1 ... r_t

    @property
    @abstractmethod
    def memoryless_ceiling(self) -> float:
        """The best expected return of a policy that depends only on the current observation."""

    @abstractmethod
    def _begin(self) -> None:
        """Start an episode, drawn with ``self.np_random``."""

    @abstractmethod
    def _observe(self) -> np.ndarray:
        """Return the current observation as a new array; called once per step."""

    @abstractmethod
    def _act(self, action: int) -> float:
        """Apply the action and return its reward; ``self.elapsed_steps`` does not include this step yet."""

    @property
    def elapsed_steps(self) -> int:
        """Steps taken in this episode."""
        return len(self._rewards)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._begin()
        self._ended = False
        self._rewards = []
        self._observations = [self._observe()]
        return self._observations[0].copy(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self._observations or self._ended or self.elapsed_steps == self.episode_length:
            raise RuntimeError("step() was called outside an episode; call reset() first.")
        if not self.action_space.contains(action):
            raise ValueError(f"action={action} is invalid; pass an element of {self.action_space}.")
        self._rewards.append(self._act(int(action)))
        self._observations.append(self._observe())
        terminated = self.elapsed_steps == self.episode_length
        info = {"is_success": bool(np.isclose(sum(self._rewards), self.best_return))} if terminated else {}
        return self._observations[-1].copy(), self._rewards[-1], terminated, False, info

    def get_state(self) -> dict[str, Any]:
        """
        The state of the episode and of the random numbers, so that ``SaveCheckpoints`` need not end the episode.

        :return: a copy, as plain data
        """
        own = {name: value for name, value in vars(self).items() if name.startswith("_") and name != "_np_random"}
        return copy.deepcopy(own) | {"np_random": self.np_random.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """
        Go on where another environment was.

        :param state: from ``get_state`` of one that was made with the same arguments
        """
        own = copy.deepcopy(state)
        self.np_random.bit_generator.state = own.pop("np_random")
        vars(self).update(own)

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode; create the environment with render_mode="rgb_array".')
            return None
        if not self._observations:
            raise RuntimeError("render() was called outside an episode; call reset() first.")
        cells = self._picture()
        # An even number of pixels per cell, since video codecs need even widths and heights
        pixels_per_cell = 2 * max(1, min(8, 320 // max(cells.shape[:2])))
        return np.kron(cells, np.ones((pixels_per_cell, pixels_per_cell, 1), dtype=np.uint8))

    def _picture(self) -> np.ndarray:
        """One column per step of the episode: the observation from top to bottom, a grey line, the reward."""
        # The observation after the last step is blank; a matrix becomes one column, row by row
        seen = np.stack([obs.ravel() for obs in self._observations[: self.episode_length]], axis=1)
        cells = np.tile(GREY, (len(seen) + 2, self.episode_length, 1))
        cells[:-2, : seen.shape[1]] = SIGN_COLOURS[np.sign(seen).astype(int)]
        cells[-1, : self.elapsed_steps] = SIGN_COLOURS[np.sign(self._rewards).astype(int)]
        return cells


class MemoryChain(MemoryTask):
    """
    Remember one bit: a cue of +1 or -1, ``length`` blank steps, then the question which of the two it was.

    The ``memory_len`` experiment of Osband et al. 2020, "Behaviour Suite for Reinforcement Learning"
    (arXiv:1908.03568), with its remaining time replaced by a flag at the question.

    - Observation ``(2,)``: ``[cue, question]``. The cue is shown only in the first observation, the question flag (1) only
      in the last.
    - Actions: 0 answers that the cue was -1, 1 that it was +1; before the question they have no effect.
    - Reward: +1 for the right answer to the question and -1 for the wrong one; 0 before.
    - Length of an episode: ``length + 2`` steps.

    Best return 1. **Memoryless ceiling 0**: the observation at the question is always the same, and no earlier action
    changes anything. So whatever the policy, its answer is independent of the cue and right with probability 1/2:
    1/2 (+1) + 1/2 (-1) = 0.

    :param length: Number of blank steps between the cue and the question, at least 1.
    :param render_mode: ``None`` or ``"rgb_array"``.
    """

    def __init__(self, length: int = 30, render_mode: str | None = None) -> None:
        check_at_least(1, length=length)
        super().__init__(spaces.Box(-1.0, 1.0, (2,), np.float32), 2, length + 2, render_mode)

    @property
    def memoryless_ceiling(self) -> float:
        return 0.0

    def _begin(self) -> None:
        self._answer = int(self.np_random.integers(2))

    def _observe(self) -> np.ndarray:
        cue = 2 * self._answer - 1 if self.elapsed_steps == 0 else 0
        return np.array([cue, self.elapsed_steps == self.episode_length - 1], dtype=np.float32)

    def _act(self, action: int) -> float:
        if self.elapsed_steps < self.episode_length - 1:
            return 0.0
        return 1.0 if action == self._answer else -1.0


class TMaze(MemoryTask):
    """
    Walk down a corridor and turn to the side that was indicated by a cue at its start.

    ::

                              goal +1
        O - - - - - - - - - - - J          O: the cell with the cue, J: the junction
                              goal -1

    Bakker 2001, "Reinforcement Learning with Long Short-Term Memory", in the fixed-horizon form of Ni et al. 2023,
    "When Do Transformers Shine in RL?" (arXiv:2307.03864). In the passive form the agent starts on the cue; in the active
    form it starts one cell to the right of the cue and has to go and look at it first.

    - Observation ``(3,)``: ``[cue, junction, arm]``. The cue (+1 or -1) is shown only at the first visit to O; all other
      cells of the corridor look alike. ``junction`` is 1 at the junction and in its arms, ``arm`` is +1 in the upper arm and
      -1 in the lower one.
    - Actions: 0 right, 1 up, 2 left, 3 down; a move into a wall has no effect.
    - Reward: -1 / (T - 1) for every step except the last that leaves the agent behind schedule, which is one cell to the
      right per step (active: after the two steps for the cue); at the last step 1 in the arm of the goal, else 0.
    - Length of an episode: T = ``length + 1`` steps; active: ``length + 3``.

    Best return 1. **Memoryless ceiling 0.5**, reached by "always right, then up". Passive: reaching the goal takes all T
    steps, which leaves none for actions that depend on the cue; an agent that can still reach it is at the junction at the
    same step with the same observation for both cues, so its choice of arm, random or not, is right with probability 1/2.
    Active: a deterministic memoryless policy makes the same move in all cells of the corridor. If this is not to the right,
    it never reaches the junction; if it is, it never sees the cue.

    :param length: Number of moves from the start to the junction, at least 1.
    :param active: Start one cell to the right of the cue instead of on it.
    :param render_mode: ``None`` or ``"rgb_array"``.
    """

    MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))

    def __init__(self, length: int = 10, active: bool = False, render_mode: str | None = None) -> None:
        check_at_least(1, length=length)
        if not isinstance(active, bool | np.bool_):
            raise ValueError(f"active={active!r} must be True or False.")
        self.start = int(active)  # distance to the cue
        self.junction = length + self.start
        super().__init__(spaces.Box(-1.0, 1.0, (3,), np.float32), 4, self.junction + self.start + 1, render_mode)

    @property
    def memoryless_ceiling(self) -> float:
        return 0.5

    def _begin(self) -> None:
        self._x, self._y = self.start, 0
        self._goal = 2 * int(self.np_random.integers(2)) - 1
        self._cue_seen = False

    def _observe(self) -> np.ndarray:
        cue = 0 if self._x or self._cue_seen else self._goal
        self._cue_seen |= self._x == 0
        return np.array([cue, self._x == self.junction, self._y], dtype=np.float32)

    def _act(self, action: int) -> float:
        x, y = self._x + self.MOVES[action][0], self._y + self.MOVES[action][1]
        if (y == 0 and 0 <= x <= self.junction) or (x == self.junction and abs(y) <= 1):
            self._x, self._y = x, y
        step = self.elapsed_steps + 1
        if step == self.episode_length:
            return float(self._y == self._goal)
        return -1.0 / (self.episode_length - 1) if self._x < step - self.start else 0.0

    def _picture(self) -> np.ndarray:
        """The maze: the cue at its left end while it is seen, the rewarded arm in green, the agent in white."""
        cells = np.zeros((5, self.junction + 3, 3), dtype=np.uint8)
        cells[2, 1:-1] = cells[1:4, -2] = GREY
        cells[2 - self._goal, -2] = SIGN_COLOURS[1]
        cells[0, 1] = SIGN_COLOURS[int(self._observations[-1][0])]
        cells[2 - self._y, 1 + self._x] = WHITE
        return cells


class AssociativeRecall(MemoryTask):
    """
    Remember which value belongs to which key: ``pairs`` pairs are shown, then each key alone is a question; one per step.

    The associative recall of Graves et al. 2014, "Neural Turing Machines" (arXiv:1410.5401, section 4.3), with single
    keys and values as in Ba et al. 2016, "Using Fast Weights to Attend to the Recent Past" (arXiv:1610.06258), but with a
    question for every key. Both orders of the keys are random; the values are drawn independently, so they may repeat.

    - Observation ``(pairs + values + 1,)``: one-hot key, one-hot value (zero in a question), flag for a question.
    - Actions: the value that belongs to the key; while pairs are shown they have no effect.
    - Reward: 1 / ``pairs`` for each right answer, else 0.
    - Length of an episode: ``2 * pairs`` steps.

    Best return 1. **Memoryless ceiling 1 / values** (0.0625 with 16): no action changes an observation, and the key in a
    question is independent of its value, which is uniform over ``values``. So each of the ``pairs`` answers, worth
    1 / ``pairs``, is right with probability 1 / ``values``, whatever the policy.

    :param pairs: Number of pairs, at least 1.
    :param values: Number of different values, at least 2.
    :param render_mode: ``None`` or ``"rgb_array"``.
    """

    def __init__(self, pairs: int = 4, values: int = 16, render_mode: str | None = None) -> None:
        check_at_least(1, pairs=pairs)
        check_at_least(2, values=values)
        self.pairs = pairs
        self.values = values
        super().__init__(spaces.Box(0.0, 1.0, (pairs + values + 1,), np.float32), values, 2 * pairs, render_mode)

    @property
    def memoryless_ceiling(self) -> float:
        return 1.0 / self.values

    def _begin(self) -> None:
        self._value_of = self.np_random.integers(self.values, size=self.pairs)
        self._keys = np.concatenate([self.np_random.permutation(self.pairs) for _ in range(2)])  # pairs, then questions

    def _observe(self) -> np.ndarray:
        obs = np.zeros(self.pairs + self.values + 1, dtype=np.float32)
        if self.elapsed_steps < self.episode_length:
            key = self._keys[self.elapsed_steps]
            is_question = self.elapsed_steps >= self.pairs
            obs[key] = 1.0
            obs[-1 if is_question else self.pairs + self._value_of[key]] = 1.0
        return obs

    def _act(self, action: int) -> float:
        right = self.elapsed_steps >= self.pairs and action == self._value_of[self._keys[self.elapsed_steps]]
        return 1.0 / self.pairs if right else 0.0


class RememberedSearch(MemoryTask):
    """
    See a kind, remember it over blank steps, then find the entity of that kind and answer with its value.

    - Observation ``(kinds, kinds + 4)``: a row per entity, one-hot kind and one-hot value. In the first observation every
      row shows the kind to look for, and no value; then they are blank; in the last one the rows are the entities, one of
      each kind in random order, with random values.
    - Actions: one of four values; only the answer to the last observation has an effect.
    - Reward: 1 for the right answer, else 0.
    - Length of an episode: ``blanks + 2`` steps.

    Best return 1. **Memoryless ceiling 0.625 with two kinds, 0.53 with four**: the kind to look for is independent of the
    last observation, so no answer is better than the most frequent of the values shown. It is right with probability
    E[its count] / ``kinds``: (1/4 * 2 + 3/4 * 1) / 2 = 0.625 with two kinds, and
    (4 * 4 + 48 * 3 + 180 * 2 + 24 * 1) / 256 / 4 = 0.53 with four. The same bounds an agent that remembers the kind but
    attends to all rows equally: their sum does not show which value belongs to which kind.

    :param kinds: Number of kinds, which is also the number of entities, at least 2.
    :param blanks: Number of blank steps, at least 0.
    :param render_mode: ``None`` or ``"rgb_array"``.
    """

    VALUES = 4

    def __init__(self, kinds: int = 2, blanks: int = 3, render_mode: str | None = None) -> None:
        check_at_least(2, kinds=kinds)
        check_at_least(0, blanks=blanks)
        self.kinds = kinds
        self.blanks = blanks
        self.target = 0  # the row of the entity to find, drawn for each episode
        super().__init__(spaces.Box(0.0, 1.0, (kinds, kinds + self.VALUES), np.float32), self.VALUES, blanks + 2, render_mode)

    @property
    def memoryless_ceiling(self) -> float:
        # The expected count of the most frequent value, over the number of kinds
        expected = 0.0
        for values in combinations_with_replacement(range(self.VALUES), self.kinds):
            counts = [values.count(value) for value in range(self.VALUES)]
            orders = math.factorial(self.kinds) // math.prod(map(math.factorial, counts))
            expected += max(counts) * orders / self.VALUES**self.kinds
        return expected / self.kinds

    def _begin(self) -> None:
        self._kind_of = self.np_random.permutation(self.kinds)  # of each row
        self._value_of = self.np_random.integers(self.VALUES, size=self.kinds)
        self.target = int(self.np_random.integers(self.kinds))

    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"target": self.target}

    def _observe(self) -> np.ndarray:
        obs = np.zeros((self.kinds, self.kinds + self.VALUES), dtype=np.float32)
        if self.elapsed_steps == 0:
            obs[:, self._kind_of[self.target]] = 1.0
        elif self.elapsed_steps == self.episode_length - 1:
            rows = np.arange(self.kinds)
            obs[rows, self._kind_of] = obs[rows, self.kinds + self._value_of] = 1.0
        return obs

    def _act(self, action: int) -> float:
        return float(self.elapsed_steps == self.episode_length - 1 and action == self._value_of[self.target])


def check_at_least(least: int, **argument: int) -> None:
    """Raise a ValueError unless the one argument given is an integer of at least ``least``."""
    ((name, value),) = argument.items()
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} is invalid; pass an integer of at least {least}.")
