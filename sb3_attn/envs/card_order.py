"""A memory task in which most actions are invalid at most steps."""

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
            terminated, info = True, {"is_success": False}
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
