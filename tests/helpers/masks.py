"""Matrices with a varying number of entities, and what has to hold for every model that masks their padding."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import preprocess_obs

N, F, B = 5, 3, 4
UNITS = spaces.Box(-1.0, 1.0, (N, F), np.float32)
SELF = spaces.Box(-1.0, 1.0, (2,), np.float32)
#: Gymnasium sorts the keys: self has tokens 0 and 1, units the others
SPACE = spaces.Dict({"self": SELF, "units": UNITS, "units_mask": spaces.MultiBinary(N)})
ALONE = spaces.Dict(units=UNITS, units_mask=spaces.MultiBinary(N))
MASK_KEYS = {"units": "units_mask"}
MASK = np.array([[1, 1, 0, 0, 1], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], np.int8)
REAL = th.as_tensor(MASK, dtype=th.bool)


def batch(space: spaces.Dict = SPACE) -> dict[str, th.Tensor]:
    """Preprocessed observations, as an extractor receives them, with ``MASK``."""
    space.seed(0)
    samples = [space.sample() for _ in range(B)]
    tensors = {key: th.as_tensor(np.stack([sample[key] for sample in samples])) for key in space.spaces}
    tensors["units_mask"] = th.as_tensor(MASK)
    return preprocess_obs(tensors, space)


class Units(gym.Env):
    """A varying number of units, sometimes none, with NaN in the padding, for a few steps."""

    metadata = {"render_modes": []}
    observation_space = SPACE
    action_space = spaces.Discrete(3)

    def _observe(self):
        observation = SPACE.sample()
        n = int(self.np_random.integers(N + 1))
        observation["units_mask"] = (np.arange(N) < n).astype(np.int8)
        observation["units"][n:] = np.nan
        return observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), float(action == 0), self.steps == 4, False, {}


class FiniteUnits(Units):
    """Finite padding, since RecurrentDQN refuses observations that are not finite."""

    def _observe(self):
        observation = super()._observe()
        return {**observation, "units": np.nan_to_num(observation["units"], nan=7.0)}


def observations_of(env: Units, n: int = 20) -> dict[str, np.ndarray]:
    """A batch of an environment's observations."""
    samples = [env._observe() for _ in range(n)]
    return {key: np.stack([sample[key] for sample in samples]) for key in SPACE.spaces}


def check_training_and_loading(model: BaseAlgorithm, folder: Path) -> None:
    """Train a model for 24 steps and load it: padding changes no action of either."""
    env = model.env.envs[0].unwrapped
    before = [parameter.clone() for parameter in model.policy.parameters()]
    parameters = list(model.learn(24).policy.parameters())
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert any(not th.equal(old, new) for old, new in zip(before, parameters, strict=True))
    model.save(folder / "model")
    loaded = type(model).load(folder / "model", env=model.env)
    observations, first = observations_of(env), np.ones(20, dtype=bool)
    actions = model.predict(observations, episode_start=first, deterministic=True)[0]
    real = observations["units_mask"].astype(bool)[..., None]
    other = {**observations, "units": np.where(real, observations["units"], -3.0).astype(np.float32)}
    for inputs in (observations, other):
        np.testing.assert_array_equal(loaded.predict(inputs, episode_start=first, deterministic=True)[0], actions)
    evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=2)
