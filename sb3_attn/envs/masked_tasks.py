"""Memory tasks in which most actions are invalid at most steps."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_attn.envs.memory_tasks import MemoryTask, check_at_least


class CardOrder(MemoryTask):
    """
    See cards one after the other, then play them in the same order.

    - Observation ``(cards + 1,)``: one-hot, the card that is shown. Once all have been shown only the last number is 1.
    - Actions: a card to play, 0 to ``cards - 1``, or to wait, ``cards``. While cards are shown, only waiting is valid; after
      that only the cards that have not been played. ``action_masks()`` tells which, as sb3-contrib's MaskablePPO and
      ``sb3_attn``'s algorithms ask for it. An invalid action ends the episode.
    - Reward: 1 / ``cards`` for a card played in its place.
    - Length of an episode: ``2 * cards`` steps.

    Best return 1. **Memoryless ceiling 1 / cards** (0.2 with 5): the order is uniform, and while cards are played the
    observation does not change. What has been played, which the masks show, is independent of the order, so that each card is
    right with probability 1 / ``cards``.

    :param cards: Number of cards, at least 2.
    :param render_mode: ``None`` or ``"rgb_array"``.
    """

    def __init__(self, cards: int = 5, render_mode: str | None = None) -> None:
        check_at_least(2, cards=cards)
        self.cards = cards
        super().__init__(spaces.Box(0.0, 1.0, (cards + 1,), np.float32), cards + 1, 2 * cards, render_mode)

    @property
    def memoryless_ceiling(self) -> float:
        return 1.0 / self.cards

    def action_masks(self) -> np.ndarray:
        """Mask of the actions that are valid now, bool ``[cards + 1]``; at the end of the episode all are."""
        if self.elapsed_steps == self.episode_length:
            return np.ones(self.cards + 1, dtype=bool)
        masks = np.zeros(self.cards + 1, dtype=bool)
        masks[self._in_hand if self.elapsed_steps >= self.cards else self.cards] = True
        return masks

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        is_valid = self.action_space.contains(action) and bool(self.action_masks()[action])
        obs, reward, terminated, truncated, info = super().step(action)
        if not is_valid and not terminated:
            self._ended = terminated = True
            info = {"is_success": False}
        return obs, reward, terminated, truncated, info

    def _begin(self) -> None:
        self._order = self.np_random.permutation(self.cards)
        self._in_hand = list(range(self.cards))

    def _observe(self) -> np.ndarray:
        obs = np.zeros(self.cards + 1, dtype=np.float32)
        if self.elapsed_steps < self.episode_length:
            obs[self._order[self.elapsed_steps] if self.elapsed_steps < self.cards else self.cards] = 1.0
        return obs

    def _act(self, action: int) -> float:
        place = self.elapsed_steps - self.cards
        if place < 0 or action not in self._in_hand:
            return 0.0
        self._in_hand.remove(action)
        return float(action == self._order[place]) / self.cards


class WindingCorridor(MemoryTask):
    """
    Follow a corridor that turns at random to a fork with four rooms, of which a cue at the start has told the right one.

    - Observation ``(8,)``: ``[cue, open]``. The cue, a one-hot of the four directions, is shown only in the first observation;
      ``open`` is 1 in the directions that are open: one in a cell of the corridor, all at the fork, none in a room. Doors fall
      shut behind the agent.
    - Actions: 0 to 3 go in a direction, 4 waits. Only the open directions are valid, and in a room only waiting is;
      ``action_masks()`` tells which. An invalid action leaves the agent where it is.
    - Reward: 1 at the last step in the room of the cue, else 0.
    - Length of an episode: ``2 * length + 1`` steps, of which ``length + 1`` are needed.

    Best return 1. **Memoryless ceiling 0.25**: the cue is uniform and shown only where the fork is not, and what is seen and
    valid at the fork and in the rooms does not depend on it.

    :param length: Number of cells from the start to the fork, at least 1.
    :param render_mode: ``None`` or ``"rgb_array"``.
    """

    N_DIRECTIONS = 4

    def __init__(self, length: int = 10, render_mode: str | None = None) -> None:
        check_at_least(1, length=length)
        self.length = length
        space = spaces.Box(0.0, 1.0, (2 * self.N_DIRECTIONS,), np.float32)
        super().__init__(space, self.N_DIRECTIONS + 1, 2 * length + 1, render_mode)

    @property
    def memoryless_ceiling(self) -> float:
        return 1 / self.N_DIRECTIONS

    def action_masks(self) -> np.ndarray:
        """Mask of the actions that are valid now, bool ``[5]``."""
        return np.append(self._open(), self._room is not None)

    def _begin(self) -> None:
        self._cue, *self._turns = (
            int(direction) for direction in self.np_random.integers(self.N_DIRECTIONS, size=self.length + 1)
        )
        self._position = 0
        self._room: int | None = None

    def _open(self) -> np.ndarray:
        directions = np.arange(self.N_DIRECTIONS)
        if self._position < self.length:
            return directions == self._turns[self._position]
        return np.full(self.N_DIRECTIONS, self._room is None)

    def _observe(self) -> np.ndarray:
        cue = (np.arange(self.N_DIRECTIONS) == self._cue) & (self.elapsed_steps == 0)
        return np.concatenate([cue, self._open()]).astype(np.float32)

    def _act(self, action: int) -> float:
        if action < self.N_DIRECTIONS and self._open()[action]:
            if self._position < self.length:
                self._position += 1
            else:
                self._room = action
        return float(self.elapsed_steps + 1 == self.episode_length and self._room == self._cue)
