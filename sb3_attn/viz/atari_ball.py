"""How much of the attention is where the ball is, in Atari's Pong and Breakout."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_attn.viz.figures import image_parts
from sb3_attn.viz.projection import coverage
from sb3_attn.viz.recording import record_episode
from sb3_attn.viz.weights import Attention, ImageGrid

#: Height and width of Atari's frame
FRAME_SIZE = (210, 160)


class Ball(NamedTuple):
    """
    Where a game keeps its ball: the middle of the ball is ``x = ram[x_address] + x_offset``, in pixels of the frame.

    :param x_address: in Atari's memory
    :param y_address: in Atari's memory
    :param x_offset: pixels
    :param y_offset: pixels
    :param bottom: the row from which on the ball is not drawn any more, though it still falls
    """

    x_address: int
    y_address: int
    x_offset: float
    y_offset: float
    bottom: float


#: By the game's name in the environment's id
BALLS = {
    "Pong": Ball(49, 54, -48.5, -12.5, bottom=210.0),
    "Breakout": Ball(99, 101, -48.5, 10.5, bottom=196.0),
}


class BallAttention(NamedTuple):
    """Attention near the ball, means over the frames with a ball in play."""

    #: Number of these frames
    n_frames: int
    #: Number of all steps
    n_steps: int
    #: Weight of the regions that see the ball's middle, ``[heads]``
    mass: np.ndarray
    #: What it would be if all weights were equal
    even: float
    #: Weight of the one region whose middle is nearest to the ball, ``[heads]``
    nearest: np.ndarray
    #: What it would be if all weights were equal: 1 / n
    nearest_even: float

    def __str__(self) -> str:
        lines = [f"{self.n_frames} of {self.n_steps} frames have the ball in play."]
        for head, (mass, nearest) in enumerate(zip(self.mass, self.nearest, strict=True), start=1):
            lines.append(
                f"head {head}: {mass:.3f} of the attention on regions that see the ball (even: {self.even:.3f}, ratio "
                f"{mass / self.even:.2f}); {nearest:.3f} on the nearest region (even: {self.nearest_even:.3f}, ratio "
                f"{nearest / self.nearest_even:.2f})"
            )
        return "\n".join(lines)


def ball_position(game: str, ram: np.ndarray) -> tuple[float, float] | None:
    """
    The middle of the ball.

    :param game: ``"Pong"`` or ``"Breakout"``
    :param ram: Atari's memory, uint8 ``[128]``
    :return: column and row of the pixel, of a frame of 210 x 160, the first being 0; ``None`` if no ball is in play
    :raises ValueError: if the game is another
    """
    ball = _ball(game)
    # Both games keep a row of 0 between two balls
    if ram[ball.y_address] == 0:
        return None
    x, y = int(ram[ball.x_address]) + ball.x_offset, int(ram[ball.y_address]) + ball.y_offset
    return (x, y) if y < ball.bottom else None


def ball_game(env_id: str) -> str:
    """
    The game of an environment.

    :param env_id: such as ``"ALE/Pong-v5"``
    :return: a key of ``BALLS``
    :raises ValueError: if it is none of them
    """
    for name in BALLS:
        if name in env_id:
            return name
    raise ValueError(f"env={env_id!r}: only of {' and '.join(BALLS)} it is known where the ball is.")


def measure_ball_attention(
    model: BaseAlgorithm, env: GymEnv, game: str, n_steps: int = 1000, deterministic: bool = True
) -> list[tuple[Attention, BallAttention]]:
    """
    Let a model play, and measure how much it attends to the ball.

    :param model: with attention over an image that shows the whole frame, such as AtariWrapper's 84 x 84 pixels
    :param env: wrapped as for training; it runs in this process, not in another (``DummyVecEnv``)
    :param game: ``"Pong"`` or ``"Breakout"``
    :param n_steps: number of steps, over as many episodes as it takes
    :param deterministic: whether to act without exploration
    :return: for each of the model's sources of weights over an image, the weights and the measurement
    :raises ValueError: if the game is another, the model has no attention over an image, or no ball was ever in play
    """
    _ball(game)
    recorded: list[list[Attention]] = []
    rams: list[np.ndarray] = []
    while len(rams) < n_steps:
        episode = record_episode(model, env, n_steps - len(rams), deterministic, render=False, probe=_ram)
        recorded.append(episode.attention)
        rams += episode.probes
    result = []
    for parts in zip(*recorded, strict=True):
        attention = replace(parts[0], weights=np.concatenate([part.weights for part in parts]))
        if image_parts(attention):
            result.append((attention, attention_near(attention, [ball_position(game, ram) for ram in rams])))
    if not result:
        raise ValueError(f"This {type(model).__name__} attends to no image, so nothing can be near the ball.")
    return result


def attention_near(attention: Attention, positions: list[tuple[float, float] | None]) -> BallAttention:
    """
    The attention near something that moves.

    :param attention: over an image, its first
    :param positions: column and row in a frame of 210 x 160, or ``None``, for each step
    :return: the measurement
    :raises ValueError: if all positions are ``None``
    """
    part, image = image_parts(attention)[0]
    steps = [step for step, position in enumerate(positions) if position is not None]
    if not steps:
        raise ValueError(f"No ball was in play in {len(positions)} steps; record more of them.")
    sees, nearest = zip(*(regions_near(image, position) for position in positions if position is not None), strict=True)
    weights = attention.weights[steps, :, part.start : part.stop]  # [frames, heads, n]
    n_tokens = attention.weights.shape[-1]
    return BallAttention(
        n_frames=len(steps),
        n_steps=len(positions),
        mass=(weights * np.stack(sees)[:, None]).sum(axis=-1).mean(axis=0),
        even=float(np.stack(sees).sum(axis=-1).mean() / n_tokens),
        nearest=weights[np.arange(len(steps)), :, list(nearest)].mean(axis=0),
        nearest_even=1 / n_tokens,
    )


def regions_near(image: ImageGrid, position: tuple[float, float]) -> tuple[np.ndarray, int]:
    """
    The regions of an image that see a point of the frame, and the one whose middle is nearest to it.

    :param image: where the regions lie in the image, which is the frame made smaller
    :param position: column and row in the frame
    :return: bool ``[n]``, and an index
    """
    seen, nearest = [], []
    field = image.receptive_field
    for n, length, frame_length, coordinate in zip(image.grid, image.image_size, FRAME_SIZE, position[::-1], strict=True):
        # The pixel c covers [c, c + 1) of the frame's length; its middle keeps its place when the frame shrinks
        point = (coordinate + 0.5) * length / frame_length
        pixel = int(np.clip(point, 0, length - 1))
        seen.append(coverage(n, field, length)[:, pixel])
        nearest.append(int(np.abs(np.arange(n) * field.stride + field.size / 2 - point).argmin()))
    return np.outer(*seen).astype(bool).ravel(), nearest[0] * image.grid[1] + nearest[1]


def _ball(game: str) -> Ball:
    if game not in BALLS:
        raise ValueError(f"game={game!r}: only of {' and '.join(BALLS)} it is known where the ball is.")
    return BALLS[game]


def _ram(env: VecEnv) -> Any:
    (unwrapped,) = env.get_attr("unwrapped", indices=[0])
    return unwrapped.ale.getRAM().copy()
