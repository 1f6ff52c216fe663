"""The share of the attention that is on the ball, in Atari's Pong and Breakout."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_attn.viz.figures import image_parts
from sb3_attn.viz.projection import coverage
from sb3_attn.viz.recorded_weights import ImageGrid, RecordedWeights
from sb3_attn.viz.recording import record_episode
from sb3_attn.viz.sources import find_sources

#: Height and width of Atari's frame
FRAME_SIZE = (210, 160)


class Ball(NamedTuple):
    """
    The place of a game's ball in Atari's memory: its middle is ``x = ram[x_address] + x_offset``, in pixels of the frame.

    :param x_address: index of the byte with the column
    :param y_address: index of the byte with the row
    :param x_offset: in pixels
    :param y_offset: in pixels
    :param bottom: the row from which the ball is no longer drawn, though it still falls
    """

    x_address: int
    y_address: int
    x_offset: float
    y_offset: float
    bottom: float


#: By the game's name in the environment's id; found by comparing Atari's memory with frames
BALLS = {
    "Pong": Ball(49, 54, -48.5, -12.5, bottom=210.0),
    "Breakout": Ball(99, 101, -48.5, 10.5, bottom=196.0),
}


UNKNOWN = f"only of {' and '.join(BALLS)} is the ball's place in Atari's memory known; choose one of them."


class BallAttention(NamedTuple):
    """The attention near the ball: means over the frames with a ball in play."""

    #: Number of frames with a ball in play
    n_frames: int
    #: Number of all steps
    n_steps: int
    #: Weight of the regions that see the ball's middle, ``[heads]``
    mass: np.ndarray
    #: ``mass`` if all weights were equal
    even: float
    #: Weight of the one region whose middle is nearest to the ball, ``[heads]``
    nearest: np.ndarray
    #: ``nearest`` if all weights were equal: 1 / n without padding
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
    Locate the middle of the ball.

    :param game: ``"Pong"`` or ``"Breakout"``
    :param ram: Atari's memory, uint8 ``[128]``
    :return: column and row in a frame of 210 x 160 pixels, counted from 0; ``None`` if no ball is in play
    :raises ValueError: if the game is neither
    """
    ball = _ball(game)
    # Both games set the row to 0 between two balls
    if ram[ball.y_address] == 0:
        return None
    x, y = int(ram[ball.x_address]) + ball.x_offset, int(ram[ball.y_address]) + ball.y_offset
    return (x, y) if y < ball.bottom else None


def ball_game(env_id: str) -> str:
    """
    The game of an environment.

    :param env_id: such as ``"ALE/Pong-v5"``
    :return: a key of ``BALLS``
    :raises ValueError: if its game is not among them
    """
    for name in BALLS:
        if name in env_id:
            return name
    raise ValueError(f"env={env_id!r}: {UNKNOWN}")


def measure_ball_attention(
    model: BaseAlgorithm, env: GymEnv, game: str, n_steps: int = 1000, deterministic: bool = True
) -> list[tuple[RecordedWeights, BallAttention]]:
    """
    Let a model play, and measure how much it attends to the ball.

    :param model: with attention over an image that shows the whole frame, such as AtariWrapper's 84 x 84 pixels
    :param env: wrapped as for training; it runs in this process, not in another (``DummyVecEnv``)
    :param game: ``"Pong"`` or ``"Breakout"``
    :param n_steps: number of steps, over as many episodes as it takes
    :param deterministic: act without exploration
    :return: the weights and the measurement, for each source of weights over an image
    :raises ValueError: if the game is neither, the model has no attention over an image, or no ball was ever in play
    """
    _ball(game)
    sources = find_sources(model)
    episodes: list[list[RecordedWeights]] = []
    rams: list[np.ndarray] = []
    while len(rams) < n_steps:
        episode = record_episode(model, env, n_steps - len(rams), deterministic, sources, render=False, probe=_ram)
        episodes.append(episode.recorded_weights)
        rams += episode.probes
    positions = [ball_position(game, ram) for ram in rams]
    result = []
    for of_one_source in zip(*episodes, strict=True):
        if image_parts(of_one_source[0]):
            weights = np.concatenate([recorded.weights for recorded in of_one_source])
            # Even weights are on all that can be reached
            reachable = np.concatenate([recorded.even > 0 for recorded in of_one_source])
            recorded = replace(of_one_source[0], weights=weights, reachable=reachable)
            result.append((recorded, attention_near(recorded, positions)))
    if not result:
        raise ValueError(f"This {type(model).__name__} does not attend to an image, so no attention can be near the ball.")
    return result


def attention_near(recorded: RecordedWeights, positions: list[tuple[float, float] | None]) -> BallAttention:
    """
    Measure the attention near something that moves.

    :param recorded: weights over an image, the first if there are several
    :param positions: column and row in a frame of 210 x 160 pixels, or ``None``, for each step
    :return: the measurement
    :raises ValueError: if all positions are ``None``
    """
    part, image = image_parts(recorded)[0]
    steps = [step for step, position in enumerate(positions) if position is not None]
    if not steps:
        raise ValueError(f"No ball was in play in {len(positions)} steps; record more of them.")
    sees, nearest = zip(*(regions_near(image, position) for position in positions if position is not None), strict=True)
    weights = recorded.weights[steps, :, part.start : part.stop]  # [frames, heads, n]
    even = recorded.even[steps, part.start : part.stop]  # [frames, n]
    return BallAttention(
        n_frames=len(steps),
        n_steps=len(positions),
        mass=(weights * np.stack(sees)[:, None]).sum(axis=-1).mean(axis=0),
        even=float((even * np.stack(sees)).sum(axis=-1).mean()),
        nearest=weights[np.arange(len(steps)), :, list(nearest)].mean(axis=0),
        nearest_even=float(even[np.arange(len(steps)), list(nearest)].mean()),
    )


def regions_near(image: ImageGrid, position: tuple[float, float]) -> tuple[np.ndarray, int]:
    """
    Find the regions of an image that see a point of the frame, and the region whose middle is nearest to it.

    :param image: the layout of the regions; the image is the whole frame, scaled down
    :param position: column and row in the frame
    :return: for each region whether it sees the point, bool ``[n]``, and the index of the nearest region
    """
    seen, nearest = [], []
    field = image.receptive_field
    for n, length, frame_length, coordinate in zip(image.grid, image.image_size, FRAME_SIZE, position[::-1], strict=True):
        # Pixel c covers the interval [c, c + 1) of the frame, so its middle is c + 0.5, which scales with the frame
        point = (coordinate + 0.5) * length / frame_length
        pixel = int(np.clip(point, 0, length - 1))
        seen.append(coverage(n, field, length)[:, pixel])
        nearest.append(int(np.abs(np.arange(n) * field.stride + field.size / 2 - point).argmin()))
    return np.outer(*seen).astype(bool).ravel(), nearest[0] * image.grid[1] + nearest[1]


def _ball(game: str) -> Ball:
    if game not in BALLS:
        raise ValueError(f"game={game!r}: {UNKNOWN}")
    return BALLS[game]


def _ram(env: VecEnv) -> Any:
    (unwrapped,) = env.get_attr("unwrapped", indices=[0])
    return unwrapped.ale.getRAM().copy()
