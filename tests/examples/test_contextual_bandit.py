"""examples/contextual_bandit.py: its task and a short run; a whole one where training is allowed to take minutes."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sb3_attn.envs import PreviousActionReward

EXAMPLE = Path(__file__).parents[2] / "examples" / "contextual_bandit.py"


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(EXAMPLE))


def right_choices(example: dict, *arguments: str) -> float:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
        printed: list[str] = []
        patch.setitem(example["main"].__globals__, "print", printed.append)
        example["main"]()
    found = re.search(r"Right choices of 100: (\S+)", printed[0])
    assert found is not None, printed
    return float(found[1])


def test_one_colour_of_an_episode_pays_wherever_it_is(example: dict) -> None:
    env = PreviousActionReward(example["ContextualBandit"]())
    check_env(env.unwrapped, skip_render_check=True)
    obs, _ = env.reset(seed=0)
    first = obs[:3].copy()
    rewards, sides, terminated = [], [], False
    while not terminated:
        left, right = obs[:3], obs[3:6]
        np.testing.assert_allclose(left + right, 1.0, atol=1e-6)
        side = 0 if np.allclose(left, first) else 1  # keep to one colour
        obs, reward, terminated, truncated, _ = env.step(side)
        assert not truncated and obs[6:].tolist() == [side == 0, side == 1, reward]
        rewards.append(reward)
        sides.append(side)
    assert len(rewards) == 100 and len(set(rewards)) == 1  # the colour is the right one, or is not
    assert 30 < sum(sides) < 70
    env.reset()
    assert not np.allclose(env.unwrapped.rewarded, first) and not np.allclose(1 - env.unwrapped.rewarded, first)


def test_a_short_run(example: dict) -> None:
    assert 35 < right_choices(example, "--steps", "8") < 65  # untrained


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(3))
def test_the_rewarded_colour_is_found_out(example: dict, seed: int) -> None:
    assert right_choices(example, "--seed", str(seed)) >= 95
