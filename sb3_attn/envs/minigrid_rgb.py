"""A task of MiniGrid, an optional package, as images of the size of the other visual tasks."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator

SIZE = 8  # cells per side, the walls included
TILE = 8  # pixels per side of a cell


def dynamic_obstacles_rgb(n_obstacles: int = 4, render_mode: str | None = None) -> gym.Env[np.ndarray, np.int64]:
    """
    Walk to the green goal past blue balls that move at random: MiniGrid's Dynamic-Obstacles with 8 x 8 cells, seen from
    above.

    The whole room rather than MiniGrid's view of 7 x 7 cells, so that nothing has to be remembered, and without the
    lighter cells that show this view. The agent starts anywhere: from MiniGrid's fixed corner a random agent hits a wall
    or a ball after 8 steps on average and never gets to the goal (0 of 200 episodes), from anywhere it does in one
    episode of 22.

    - Observation ``(64, 64, 3)``: an RGB image of 8 x 8 tiles with 8 x 8 pixels each.
    - Actions: 0 turn left, 1 turn right, 2 forward.
    - Reward: 1 - 0.9 * steps / 256 at the goal, -1 for going forward into a ball or a wall, else 0. The first two
      terminate the episode.
    - Length of an episode: at most 256 steps; then it is truncated.

    :param n_obstacles: Number of balls, from 0 to 5.
    :param render_mode: ``None``, ``"rgb_array"`` or ``"human"``.
    :return: The environment with MiniGrid's ``RGBImgObsWrapper`` and ``ImgObsWrapper`` around it.
    """
    # MiniGrid takes 4 balls instead of more than 5 and says nothing.
    if not isinstance(n_obstacles, int | np.integer) or not 0 <= n_obstacles <= SIZE // 2 + 1:
        raise ValueError(f"n_obstacles={n_obstacles!r} is not possible; pass an integer from 0 to {SIZE // 2 + 1}.")
    env: Any = _load("minigrid.envs:DynamicObstaclesEnv")(
        size=SIZE, agent_start_pos=None, n_obstacles=n_obstacles, highlight=False, render_mode=render_mode
    )
    env = _load("minigrid.wrappers:RGBImgObsWrapper")(env, tile_size=TILE)
    return _load("minigrid.wrappers:ImgObsWrapper")(env)


def _load(name: str) -> Any:
    """Load by name, as Gymnasium loads an entry point, so that importing this module does not need MiniGrid."""
    try:
        return load_env_creator(name)
    except ModuleNotFoundError as error:
        raise gym.error.DependencyNotInstalled(
            "MiniGridRGB-DynamicObstacles-v0 is made from the optional package minigrid, which is not installed; install "
            'it with `pip install "minigrid>=3.1"`.'
        ) from error
