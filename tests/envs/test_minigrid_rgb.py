"""MiniGrid's task as images: observations, moves, and the error without MiniGrid."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env

from sb3_attn.envs import dynamic_obstacles_rgb

ENV_ID = "MiniGridRGB-DynamicObstacles-v0"


def test_without_minigrid_the_package_imports_and_the_task_says_what_is_missing() -> None:
    code = f"""
import sys
sys.modules["minigrid"] = None
import gymnasium, sb3_attn.envs
try:
    gymnasium.make({ENV_ID!r})
except gymnasium.error.DependencyNotInstalled as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install" in result.stdout and "minigrid" in result.stdout


@pytest.mark.parametrize(("n_obstacles", "shown"), [(6, "6"), (-1, "-1"), (2.5, "2.5")])
def test_bad_arguments_are_refused(n_obstacles: float, shown: str) -> None:
    with pytest.raises(ValueError, match=f"n_obstacles={shown} .* from 0 to 5"):
        dynamic_obstacles_rgb(n_obstacles=n_obstacles)


class TestWithMiniGrid:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("minigrid")  # optional: the package itself never imports it

    def test_minigrid_is_imported_only_when_its_task_is_made(self) -> None:
        code = "import sys, gymnasium, sb3_attn.envs; assert 'minigrid' not in sys.modules; " + (
            f"gymnasium.make({ENV_ID!r}); assert 'minigrid' in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_runs_under_dqn(self) -> None:
        env = gym.make(ENV_ID)
        check_env(env)
        assert env.observation_space == spaces.Box(0, 255, (64, 64, 3), np.uint8)
        assert env.action_space == spaces.Discrete(3)
        model = DQN("CnnPolicy", env, learning_starts=12, buffer_size=20, batch_size=2, seed=0)
        model.learn(16)
        assert model._n_updates == 1

    @pytest.mark.parametrize("n_obstacles", [0, 4, 5])
    def test_the_image_shows_the_whole_room(self, n_obstacles: int) -> None:
        env = gym.make(ENV_ID, n_obstacles=n_obstacles)
        starts = set()
        for seed in range(30):
            image, _ = env.reset(seed=seed)
            r, g, b = image.reshape(8, 8, 8, 8, 3).swapaxes(1, 2)[:, :, 4, 4].astype(int).transpose(2, 0, 1)  # tiles' centres
            assert ((b > 200) & (r < 50)).sum() == n_obstacles
            assert np.argwhere((g > 200) & (r < 50)).tolist() == [[6, 6]]  # the goal
            agent = np.argwhere((r > 200) & (g < 50))
            assert len(agent) == 1
            assert agent[0].tolist() == [*env.unwrapped.agent_pos[::-1]]
            assert ((r == g) & (r > 50)).sum() == 28  # the walls
            starts.add((*agent[0],))
        assert len(starts) > 10

    def test_the_three_moves_and_the_goal(self) -> None:
        """To the goal in an empty room by the shortest way, then its reward; a wall costs 1."""
        env = gym.make(ENV_ID, n_obstacles=0)
        env.reset(seed=0)
        inner = env.unwrapped
        inner.agent_pos, inner.agent_dir = (4, 5), 0  # to the right
        for action, pose in [(2, ((5, 5), 0)), (1, ((5, 5), 1)), (2, ((5, 6), 1)), (0, ((5, 6), 0))]:
            _, reward, terminated, _, _ = env.step(action)
            assert ((*inner.agent_pos,), inner.agent_dir) == pose
            assert reward == 0 and not terminated
        _, reward, terminated, _, _ = env.step(2)
        assert reward == pytest.approx(1 - 0.9 * 5 / 256) and terminated
        env.reset(seed=0)
        inner.agent_pos, inner.agent_dir = (1, 3), 2  # faces the wall
        assert env.step(2)[1:3] == (-1, True)

    def test_a_seed_fixes_the_episode(self) -> None:
        def walk(seed: int) -> bytes:
            env = gym.make(ENV_ID)
            frames = [env.reset(seed=seed)[0]] + [env.step(0)[0] for _ in range(10)]  # the balls move
            assert len({frame.tobytes() for frame in frames}) == 11
            return np.stack(frames).tobytes()

        assert walk(1) == walk(1) != walk(2)

    def test_the_task_renders_for_videos(self) -> None:
        env = gym.make(ENV_ID, render_mode="rgb_array")
        env.reset(seed=0)
        assert env.render().shape == (256, 256, 3)
