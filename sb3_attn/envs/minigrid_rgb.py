"""A task of MiniGrid, an optional package, as images of the same size as in the other visual tasks."""

from typing import Any

import gymnasium as gym
import numpy as np

from sb3_attn.envs.optional import load_optional

SIZE = 8  # cells per side, including the walls
TILE = 8  # pixels per side of a cell


def dynamic_obstacles_rgb(n_obstacles: int = 4, render_mode: str | None = None) -> gym.Env[np.ndarray, np.int64]:
    """
    Walk to the green goal past blue balls that move at random: MiniGrid's Dynamic-Obstacles, 8 x 8 cells seen from above.

    The observation is the whole room rather than MiniGrid's view of 7 x 7 cells, so that nothing has to be remembered, and
    without the highlighting of this view. The agent starts in a random cell: from MiniGrid's fixed corner a random agent
    hits a wall or a ball after 8 steps on average and never reaches the goal (0 of 200 episodes); from a random cell it
    does in one of 22 episodes.

    - Observation ``(64, 64, 3)``: an RGB image of 8 x 8 tiles with 8 x 8 pixels each.
    - Actions: 0 turn left, 1 turn right, 2 forward.
    - Reward: 1 - 0.9 * steps / 256 at the goal, -1 for moving into a ball or a wall, else 0. The first two terminate the
      episode.
    - Length of an episode: truncated after 256 steps.

    :param n_obstacles: Number of balls, from 0 to 5.
    :param render_mode: ``None``, ``"rgb_array"`` or ``"human"``.
    :return: The environment, wrapped in MiniGrid's ``RGBImgObsWrapper`` and ``ImgObsWrapper``.
    :raises ValueError: If the number of balls is out of range.
    :raises gymnasium.error.DependencyNotInstalled: If MiniGrid is not installed.
    """
    # With more than 5 MiniGrid silently uses 4
    if not isinstance(n_obstacles, int | np.integer) or not 0 <= n_obstacles <= SIZE // 2 + 1:
        raise ValueError(f"n_obstacles={n_obstacles!r} is invalid; pass an integer from 0 to {SIZE // 2 + 1}.")
    env: Any = _load("minigrid.envs:DynamicObstaclesEnv")(
        size=SIZE, agent_start_pos=None, n_obstacles=n_obstacles, highlight=False, render_mode=render_mode
    )
    env = _load("minigrid.wrappers:RGBImgObsWrapper")(env, tile_size=TILE)
    return _load("minigrid.wrappers:ImgObsWrapper")(env)


def _load(name: str) -> Any:
    return load_optional(name, "MiniGridRGB-DynamicObstacles-v0", "minigrid>=3.1")
