"""examples/neurogym_trajectories.py, with a task that has NeuroGym's interface: its versions ask for an older Gymnasium."""

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")

from sb3_attn import RecurrentDQN

EXAMPLE = Path(__file__).parents[2] / "examples" / "neurogym_trajectories.py"
ENV_ID = "ThreeSteps-v0"


class ThreeSteps(gym.Env):
    """Trials of three steps, for ever: the sign that is shown in the first two has to be answered in the third."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.begin()
        return self.observe(), {}

    def begin(self):
        self.trial = {"ground_truth": self.np_random.integers(2), "contrast": self.np_random.choice([0.5, 1.0])}
        self.t = 0

    def observe(self):
        shown = (2 * self.trial["ground_truth"] - 1) * self.trial["contrast"] * (self.t < 2)
        return np.array([shown, self.t == 0], dtype=np.float32)

    def step(self, action):
        info = {"new_trial": self.t == 2, "performance": int(action == self.trial["ground_truth"])}
        self.t += 1
        if info["new_trial"]:
            self.begin()
        return self.observe(), float(info["new_trial"] and info["performance"]), False, False, info


class Sum:
    """A model whose state is the sum of what its trial has shown, and which answers by the sign of it."""

    def predict(self, obs, state, starts, deterministic):
        previous = 0.0 if state is None or starts[0] or obs[0, 1] else state[0][0, 0]
        total = previous + obs[0, 0]
        return np.array([int(total > 0)]), (np.array([[total, 0.0]]),)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setitem(sys.modules, "neurogym", ModuleType("neurogym"))
    monkeypatch.setitem(gym.registry, ENV_ID, gym.envs.registration.EnvSpec(ENV_ID, entry_point=ThreeSteps))
    return runpy.run_path(str(EXAMPLE))


def test_trials_are_recorded_with_what_they_show(example: dict) -> None:
    # An episode of 10 steps ends within a trial, which is left out
    env = DummyVecEnv([lambda: gym.make(ENV_ID, max_episode_steps=10)])
    env.seed(0)
    trials, right = example["record"](Sum(), env, 20)
    assert right == 1.0 and len(trials) == 20
    for trial, states in trials:
        shown = (2 * trial["ground_truth"] - 1) * trial["contrast"]
        np.testing.assert_allclose(states[:, 0], [shown, 2 * shown, 2 * shown])


def test_the_picture_keeps_the_distances_of_states_in_a_plane(example: dict) -> None:
    plane = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0].T
    paths = {(0, 0.5): [[0, 0], [1, 0], [3, 1]], (0, 1.0): [[0, 0], [1, 2], [3, 4]], (1, 0.5): [[0, 0], [-1, -2], [-4, 0]]}
    trials = [
        (dict(zip(("ground_truth", "contrast"), condition, strict=True)), noise + np.array(path) @ plane)
        for condition, path in paths.items()
        for noise in (0.0, plane[0], -plane[0])  # of which the mean is drawn
    ]
    trials.append((trials[0][0], trials[0][1][1:]))  # without the first step, as after a reset
    axes = example["draw"](trials).axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")}
    first = lines.pop("ground_truth 0, contrast 0.5")
    np.testing.assert_allclose(np.linalg.norm(np.diff(first, axis=0)), np.linalg.norm([2, 1]))
    for condition, drawn in zip(list(paths)[1:], lines.values(), strict=True):
        np.testing.assert_allclose(
            np.linalg.norm(drawn[:, None] - drawn, axis=-1),
            np.linalg.norm(np.array(paths[condition])[:, None] - np.array(paths[condition]), axis=-1),
        )


def test_a_run(example: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    RecurrentDQN("MlpPolicy", ThreeSteps(), buffer_size=1000, device="cpu", seed=0).save(tmp_path / "model.zip")
    arguments = [str(tmp_path / "model.zip"), "--env", ENV_ID, "--out", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    example["main"]()
    assert re.match(r"0\.\d+ of 500 answers are right", capsys.readouterr().out)
    assert (tmp_path / "picture.png").read_bytes()[1:4] == b"PNG"
