"""A task that cannot be solved without finding the one place in an image that matters."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

GRID = 8  # cells per side
CELL = 8  # pixels per side of a cell
IMAGE_SHAPE = (GRID * CELL, GRID * CELL, 3)

#: The colours of the glyphs; any two differ by 180 or more in some channel.
COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 200, 30),
    "blue": (40, 40, 255),
    "yellow": (230, 230, 30),
    "magenta": (230, 30, 230),
    "cyan": (30, 220, 220),
}

# A margin of one pixel keeps the glyphs of neighbouring cells apart; the four rotations differ in the side of the bar
GLYPH = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ],
    dtype=np.uint8,
)
_PALETTE = np.array(list(COLOURS.values()), dtype=np.uint8)  # [colour, channel]
_ROTATIONS = np.stack([np.rot90(GLYPH, turns) for turns in range(4)])  # [rotation, y, x]
SPRITES = _ROTATIONS[None, ..., None] * _PALETTE[:, None, None, None]  # [colour, rotation, y, x, channel]


class VisualSearch(gym.Env[np.ndarray, np.int64]):
    """
    Find the target among distractors and answer with its rotation. An episode is one image and one answer.

    ::

        + - - - - - - - +     Each glyph is a T, in one of four rotations and six colours.
        | T     ⊢       |     Fixed: the target is the red one. Cued: it is the only glyph in
        |   ⊥       T   |     the colour of the square in the top left corner.
        |       ⊣       |
        + - - - - - - - +

    A search by a single feature (Treisman and Gelade 1980, "A Feature-Integration Theory of Attention"): the colour shows
    where the target is, but not its rotation, which has to be read at that place. Cells, rotations and colours are uniform
    and independent, except as follows.

    - Observation ``(64, 64, 3)``: an RGB image of 8 x 8 cells with 8 x 8 pixels each, black where there is no glyph.
    - Actions: the target's rotation, 0 for an upright T, else the number of quarter turns to the left.
    - Reward: 1 for the right answer, else 0.
    - Fixed: exactly one glyph has ``target_color``; the distractors have the five other colours.
    - Cued: the target's colour is drawn for each image and fills the cell ``CUE_CELL``, which never has a glyph. Two
      distractors also have colours that no other glyph has, or the rarest colour would give the target away.
    - ``info`` of ``reset`` has ``target_cell``, the row-major index of the target's cell, and in the cued task
      ``cue_cell``. ``info`` of ``step`` has the same for the image that was answered (which the observation still shows),
      and ``is_success``, whether the answer was right.

    Best return 1. **Chance 0.25**: to an agent that does not see the image all four rotations are equally likely. Two kinds
    of agents do better without finding the target, by answering with the most frequent rotation among the glyphs that may
    be the target:

    - **0.38 without colours** (15 distractors): each of the 16 glyphs may be the target. The expected maximum of four
      multinomial counts with sum 16, divided by 16, is 0.384.
    - **At most 0.5625 without the cue** (2 or more distractors): each glyph that is the only one of its colour may be the
      target. With three of them the expected maximum count is (3 * 4 + 2 * 36 + 1 * 24) / 64 = 27/16; divided by 3 it is
      0.5625. With more it is less.

    :param n_distractors: Number of other glyphs, from 0 to the number of cells that are left for them: 63, cued 62.
    :param cued: Draw the target's colour for each image and show it in the image.
    :param target_color: The target's colour if not ``cued``, one of ``COLOURS``; ``None`` means ``"red"``.
    :param render_mode: ``None`` or ``"rgb_array"``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}
    best_return = 1.0
    CUE_CELL = 0

    def __init__(
        self,
        n_distractors: int = 15,
        cued: bool = False,
        target_color: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f'render_mode={render_mode!r} is not supported; use "rgb_array" or None.')
        if not isinstance(cued, bool | np.bool_):
            raise ValueError(f"cued={cued!r} is not a bool; pass True or False.")
        if cued and target_color is not None:
            raise ValueError(
                f"target_color={target_color!r} contradicts cued=True, where the colour is drawn for each image; leave it "
                "out, or pass cued=False."
            )
        if target_color is not None and target_color not in COLOURS:
            raise ValueError(f"target_color={target_color!r} is unknown; pass one of {list(COLOURS)}.")
        most = GRID * GRID - (2 if cued else 1)
        if not isinstance(n_distractors, int | np.integer) or not 0 <= n_distractors <= most:
            raise ValueError(f"n_distractors={n_distractors!r} is invalid with cued={cued}; pass an integer from 0 to {most}.")
        self.n_distractors = int(n_distractors)
        self.cued = bool(cued)
        self.target_color = None if cued else target_color or "red"
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, IMAGE_SHAPE, np.uint8)
        self.action_space = spaces.Discrete(len(_ROTATIONS))
        self._cells = np.delete(np.arange(GRID * GRID), [self.CUE_CELL] if cued else [])  # that a glyph may be in
        self._fixed = None if cued else list(COLOURS).index(target_color or "red")
        self._others = np.delete(np.arange(len(COLOURS)), [] if self._fixed is None else [self._fixed])
        self._image = np.zeros(IMAGE_SHAPE, dtype=np.uint8)
        self._info: dict[str, Any] = {}
        self._answer: int | None = None  # None outside an episode

    @property
    def chance(self) -> float:
        """The best expected return of a policy that does not see the image."""
        return 1.0 / len(_ROTATIONS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        n_glyphs = 1 + self.n_distractors
        cells = self._cells[self.np_random.permutation(len(self._cells))[:n_glyphs]]  # the target is the first glyph
        rotations = self.np_random.integers(len(_ROTATIONS), size=n_glyphs)
        colours = self._draw_colours(n_glyphs)
        self._image = np.zeros(IMAGE_SHAPE, dtype=np.uint8)
        by_cell = self._image.reshape(GRID, CELL, GRID, CELL, 3).swapaxes(1, 2)  # a view: [row, column, y, x, channel]
        by_cell[cells // GRID, cells % GRID] = SPRITES[colours, rotations]
        self._info = {"target_cell": int(cells[0])}
        if self.cued:
            by_cell[divmod(self.CUE_CELL, GRID)] = _PALETTE[colours[0]]
            self._info["cue_cell"] = self.CUE_CELL
        self._answer = int(rotations[0])
        return self._image.copy(), self._info.copy()

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._answer is None:
            raise RuntimeError("step() was called outside an episode; call reset() first.")
        if not self.action_space.contains(action):
            raise ValueError(f"action={action} is invalid; pass an element of {self.action_space}.")
        right = int(action) == self._answer
        self._answer = None
        return self._image.copy(), float(right), True, False, {**self._info, "is_success": right}

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode; create the environment with render_mode="rgb_array".')
            return None
        return self._image.repeat(4, axis=0).repeat(4, axis=1)

    def _draw_colours(self, n_glyphs: int) -> np.ndarray:
        """Indices into ``COLOURS``; the first, the target's, occurs only once."""
        if self._fixed is not None:
            colours = self._others[self.np_random.integers(len(self._others), size=n_glyphs)]
            colours[0] = self._fixed
            return colours
        order = self.np_random.permutation(self._others)
        colours = order[self.np_random.integers(3, len(order), size=n_glyphs)]
        colours[:3] = order[: min(3, n_glyphs)]  # the target and the two distractors with a colour of their own
        return colours
