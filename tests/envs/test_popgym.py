"""POPGym's tasks under Stable-Baselines3's DQN, made as RL Zoo makes them."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env

from sb3_attn.envs import FlattenSpaces

pytest.importorskip("popgym")  # optional: the package itself never imports it


@pytest.mark.parametrize(
    "name",
    [
        "RepeatFirstEasy",  # Discrete observations
        "RepeatPrevious8",
        "AutoencodeEasy",  # Tuple observations
        "CountRecallEasy",  # MultiDiscrete observations
        "BattleshipEasy",  # MultiDiscrete actions
        "PositionOnlyCartPoleEasy",  # Box observations
        "ConcentrationEasy",  # truncates
    ],
)
def test_runs_under_dqn(name: str) -> None:
    env = FlattenSpaces(gym.make(f"popgym-{name}-v0"))
    check_env(env)
    assert isinstance(env.action_space, spaces.Discrete)
    model = DQN("MlpPolicy", env, learning_starts=60, buffer_size=100, policy_kwargs={"net_arch": [8]}, seed=0)
    model.learn(80)
    assert model._n_updates == 5


def test_repeat_previous_8() -> None:
    """The answer is the suit seven cards back, since k counts the current card as 1; the best return is 1."""
    env = gym.make("popgym-RepeatPrevious8-v0")
    cards = [env.reset(seed=0)[0]]
    total, terminated = 0.0, False
    while not terminated:
        card, reward, terminated, _, _ = env.step(np.int64(cards[-8]) if len(cards) >= 8 else 0)
        cards.append(card)
        total += reward
    assert len(cards) == 52
    assert total == pytest.approx(1.0)


def test_popgym_is_imported_only_when_one_of_its_tasks_is_made() -> None:
    code = "import sys, gymnasium, sb3_attn.envs; assert 'popgym' not in sys.modules; " + (
        "gymnasium.make('popgym-RepeatPrevious8-v0'); assert 'popgym' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
