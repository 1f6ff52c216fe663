"""The position of the ball, compared with the frame; the attention near it, compared with counts by hand."""

import ale_py
import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")

from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_attn import SoftAttentionPolicy
from sb3_attn.extractors.tokenizers import ReceptiveField
from sb3_attn.viz import ImageGrid, RecordedWeights, TokenPart, ball_position, measure_ball_attention
from sb3_attn.viz.atari_ball import attention_near, regions_near

gym.register_envs(ale_py)

ATARI = ImageGrid((7, 7), ReceptiveField(36, 8), (84, 84))
RAW = dict(frameskip=1, repeat_action_probability=0.0)
# The ball's colour, and the rows in which nothing else has it (in Breakout the lowest row of bricks ends at 92)
BALLS = {"Pong": ((236, 236, 236), slice(34, 194)), "Breakout": ((200, 72, 72), slice(93, 189))}


def pixels_of_the_ball(game, frame):
    """Rows and columns of all pixels that have the ball's colour where nothing else has it."""
    colour, rows = BALLS[game]
    found = np.argwhere((frame[rows, 8:152] == colour).all(axis=-1))
    return found + np.array((rows.start, 8))


@pytest.mark.parametrize("game", BALLS)
def test_the_ball_is_where_the_frame_shows_it(game):
    env = gym.make(f"ALE/{game}-v5", render_mode="rgb_array", **RAW)
    env.reset(seed=0)
    env.action_space.seed(0)
    compared = absent = 0
    rows = BALLS[game][1]
    for step in range(700):
        action = 1 if step % 40 == 0 else env.action_space.sample()  # 1 serves
        ended = env.step(action)[2]
        pixels = pixels_of_the_ball(game, env.render())
        position = ball_position(game, env.unwrapped.ale.getRAM())
        if position is None:
            assert len(pixels) == 0
            absent += 1
        elif rows.start + 2 < position[1] < rows.stop - 2 and 12 < position[0] < 148:
            assert np.ptp(pixels, axis=0).max() <= 4  # one ball, and nothing else
            row, column = pixels.mean(axis=0)
            # Half a row or a whole one is cut off in some frames
            assert column == pytest.approx(position[0], abs=0.6) and row == pytest.approx(position[1], abs=1.1)
            compared += 1
        if ended:
            env.reset()
    assert compared > 100 and absent > 50


def test_a_ball_that_is_not_drawn_has_no_position():
    ram = np.zeros(128, np.uint8)
    ram[99], ram[49] = 100, 100
    assert ball_position("Breakout", ram) is None and ball_position("Pong", ram) is None
    ram[101], ram[54] = 100, 100
    assert ball_position("Breakout", ram) == (51.5, 110.5) and ball_position("Pong", ram) == (51.5, 87.5)
    ram[101] = 187  # below the paddle, falling on unseen
    assert ball_position("Breakout", ram) is None
    with pytest.raises(ValueError, match="game='Tennis': only of Pong and Breakout"):
        ball_position("Tennis", ram)


def test_the_regions_that_see_the_ball():
    for position in np.random.default_rng(0).uniform((0, 0), (159, 209), (50, 2)):
        column, row = (position + 0.5) * (84 / 160, 84 / 210)
        sees, nearest = regions_near(ATARI, tuple(position))
        expected = [
            i * 8 <= np.floor(row) < i * 8 + 36 and j * 8 <= np.floor(column) < j * 8 + 36 for i in range(7) for j in range(7)
        ]
        assert sees.tolist() == expected
        distances = [np.hypot(i * 8 + 18 - row, j * 8 + 18 - column) for i in range(7) for j in range(7)]
        assert distances[nearest] == pytest.approx(min(distances))


def test_mass_against_even_attention():
    part = TokenPart(None, "region", 0, 49, ATARI)
    positions = [(80.0, 100.0), None, (5.0, 200.0)]
    even = attention_near(RecordedWeights("attention", np.full((3, 2, 49), 1 / 49), (part,)), positions)
    assert (even.n_frames, even.n_steps) == (2, 3)
    np.testing.assert_allclose(even.mass, even.even)
    np.testing.assert_allclose(even.nearest, 1 / 49)
    # One head looks at the nearest region, the other at one that does not see the ball
    weights = np.zeros((3, 2, 49))
    for step in (0, 2):
        sees, nearest = regions_near(ATARI, positions[step])
        weights[step, 0, nearest] = weights[step, 1, np.flatnonzero(~sees)[0]] = 1
    looking = attention_near(RecordedWeights("attention", weights, (part,)), positions)
    assert looking.mass.tolist() == looking.nearest.tolist() == [1, 0]
    assert "2 of 3 frames" in str(looking) and "head 1: 1.000" in str(looking)
    with pytest.raises(ValueError, match="No ball was in play in 2 steps"):
        attention_near(RecordedWeights("attention", weights[:2], (part,)), [None, None])


def test_even_attention_is_not_on_padding():
    parts = (TokenPart("image", "region", 0, 49, ATARI), TokenPart("units", "entity", 49, 51))
    real = np.ones((2, 51), bool)
    real[0, 49:] = False
    weights = (real / real.sum(axis=-1, keepdims=True))[:, None]
    measured = attention_near(RecordedWeights("attention", weights, parts, reachable=real), [(80.0, 100.0), (5.0, 200.0)])
    np.testing.assert_allclose(measured.mass, measured.even)
    np.testing.assert_allclose(measured.nearest, measured.nearest_even)
    assert measured.nearest_even == pytest.approx((1 / 49 + 1 / 51) / 2)


def test_an_untrained_model_attends_about_evenly():
    wrapper_kwargs = dict(terminal_on_life_loss=False)
    env = VecFrameStack(make_atari_env("ALE/Breakout-v5", 1, seed=0, wrapper_kwargs=wrapper_kwargs, env_kwargs=RAW), 4)
    model = DQN(SoftAttentionPolicy, env, buffer_size=1, device="cpu")
    ((recorded, measured),) = measure_ball_attention(model, env, "Breakout", n_steps=40, deterministic=False)
    assert recorded.weights.shape == (40, 1, 49)
    assert 0 < measured.n_frames < 40 == measured.n_steps
    # An untrained network attends about evenly
    np.testing.assert_allclose(measured.mass, measured.even, rtol=0.3)
