"""A task for a memory over images: a cue that is seen once, among distractors that never stop."""

import numpy as np
from gymnasium import spaces

from sb3_attn.envs.memory_tasks import MemoryTask, check_at_least
from sb3_attn.envs.visual_search import CELL, GLYPH, GRID, IMAGE_SHAPE, SPRITES

#: Factor by which the cue is larger than the other glyphs
CUE_SCALE = 4
CUE_COLOUR, FRAME_COLOUR = np.array([[255] * 3, [128] * 3], dtype=np.uint8)
N_ROTATIONS = 4


class RememberedGlyph(MemoryTask):
    """
    Remember the rotation of a large white T, shown once, through ``delay`` images of small ones.

    ::

        step 0            steps 1 to delay - 1     step delay
        + - - - - - +     + - - - - - +            +-----------+
        | T ███████ |     |     T   ⊢ |            | T       ⊣ |
        |     ███   |     |  ⊥        |            |     ⊢     |
        | ⊢   ███ ⊥ |     |       ⊣   |            |         T |
        + - - - - - +     + - - - - - +            +-----------+

    - Observation ``(64, 64, 3)``: an RGB image of 8 x 8 cells with 8 x 8 pixels each. In every image there are
      ``n_distractors`` small glyphs in other cells, colours and rotations. In the first one the cue covers the 4 x 4 cells in
      the middle. The last one has a grey frame, which asks.
    - Actions: the cue's rotation, 0 for an upright T, else the number of quarter turns to the left; before the frame they
      have no effect.
    - Reward: 1 for the right answer, else 0.
    - Length of an episode: ``delay + 1`` steps.

    Best return 1. **Memoryless ceiling 0.25**: the rotation is uniform, the image that asks is independent of it, and no
    action changes an image.

    :param delay: Number of steps from the cue to the question, at least 1.
    :param n_distractors: Number of small glyphs in each image, from 0 to 48, which is the number of cells around the cue.
    :param render_mode: ``None`` or ``"rgb_array"``.
    """

    def __init__(self, delay: int = 20, n_distractors: int = 8, render_mode: str | None = None) -> None:
        check_at_least(1, delay=delay)
        check_at_least(0, n_distractors=n_distractors)
        middle = np.zeros((GRID, GRID), dtype=bool)
        middle[(margin := (GRID - CUE_SCALE) // 2) : -margin, margin:-margin] = True
        self._cells_around = np.flatnonzero(~middle)
        if n_distractors > len(self._cells_around):
            raise ValueError(f"n_distractors={n_distractors} must be at most {len(self._cells_around)}.")
        self.delay = delay
        self.n_distractors = n_distractors
        super().__init__(spaces.Box(0, 255, IMAGE_SHAPE, np.uint8), N_ROTATIONS, delay + 1, render_mode)

    @property
    def memoryless_ceiling(self) -> float:
        return 1.0 / N_ROTATIONS

    def _begin(self) -> None:
        self._cue = int(self.np_random.integers(N_ROTATIONS))

    def _observe(self) -> np.ndarray:
        image = np.zeros(IMAGE_SHAPE, dtype=np.uint8)
        cells = self.np_random.permutation(self._cells_around if self.elapsed_steps == 0 else GRID * GRID)[
            : self.n_distractors
        ]
        colours, rotations = (self.np_random.integers(n, size=self.n_distractors) for n in SPRITES.shape[:2])
        by_cell = image.reshape(GRID, CELL, GRID, CELL, 3).swapaxes(1, 2)  # a view: [row, column, y, x, channel]
        by_cell[cells // GRID, cells % GRID] = SPRITES[colours, rotations]
        if self.elapsed_steps == 0:
            cue = np.rot90(GLYPH, self._cue).repeat(CUE_SCALE, axis=0).repeat(CUE_SCALE, axis=1)
            middle = slice((len(image) - len(cue)) // 2, (len(image) + len(cue)) // 2)
            image[middle, middle] = cue[..., None] * CUE_COLOUR
        elif self.elapsed_steps == self.delay:
            image[[0, 1, -2, -1]] = FRAME_COLOUR
            image[:, [0, 1, -2, -1]] = FRAME_COLOUR
        return image

    def _act(self, action: int) -> float:
        return float(self.elapsed_steps == self.delay and action == self._cue)

    def _picture(self) -> np.ndarray:
        return self._observations[-1]
