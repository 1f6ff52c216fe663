"""The examples that train one model and print its score with and without its memory, or beside another algorithm's."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from gymnasium.utils.env_checker import check_env

EXAMPLES = Path(__file__).parents[2] / "examples"


def scores(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> list[float]:
    """The two scores that an example prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return [float(score) for score in re.findall(r"(?:memory.*?:|mean return) (-?\d+\.\d+)", capsys.readouterr().out)]


@pytest.mark.parametrize("name", ["own_environment.py", "pixels_with_memory.py", "from_recurrent_ppo.py"])
@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped with a ``Monitor``")
def test_a_short_run_prints_two_scores(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert len(scores(capsys, name, "--steps", "16")) == 2


def test_the_ball_is_caught_where_it_comes_down() -> None:
    env = runpy.run_path(str(EXAMPLES / "own_environment.py"))["BallInTheDark"]()
    check_env(env, skip_render_check=True)
    lit, rewards = [], []
    for _ in range(50):
        obs, terminated = env.reset()[0], False
        while not terminated:
            lit.append(obs[0] >= 0)
            assert lit[-1] == (env.row < 3) and 0 <= env.column < env.width
            ahead = env.column + (env.drift if 0 <= env.column + env.drift < env.width else -env.drift)
            obs, reward, terminated, _, _ = env.step(1 + (ahead > env.paddle) - (ahead < env.paddle))
        rewards.append(reward)
    assert sum(lit) == 50 * 3 and sum(rewards) == 50  # with the ball's next column known, none is missed


@pytest.mark.learning
@pytest.mark.parametrize(
    ("name", "at_least", "other_at_most"),
    [("own_environment.py", 0.9, 0.6), ("pixels_with_memory.py", 0.95, 0.4), ("from_recurrent_ppo.py", 0.95, 0.5)],
)
def test_the_memory_is_what_the_score_is_owed_to(
    capsys: pytest.CaptureFixture[str], name: str, at_least: float, other_at_most: float
) -> None:
    ours, other = scores(capsys, name)
    assert ours >= at_least and other <= other_at_most
