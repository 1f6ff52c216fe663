"""Small environments that can be followed by hand."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

VECTOR = spaces.Box(-10.0, 10.0, (3,), np.float32)


class Counter(gym.Env[Any, Any]):
    """
    Deterministic: the observation shows step and episode (and never the action), the reward depends on both and the action.

    :param length: steps per episode
    :param truncates: end by truncation instead of termination
    :param space: of the observations, which are then samples of it
    :param reward: a constant reward instead, if given
    """

    def __init__(
        self, length: int = 5, truncates: bool = False, space: spaces.Space | None = None, reward: float | None = None
    ) -> None:
        self.observation_space = VECTOR if space is None else space
        self.shows_samples = space is not None
        self.action_space = spaces.Discrete(2)
        self.length, self.truncates, self.reward = length, truncates, reward
        self.episode = -1

    def _observe(self) -> Any:
        if self.shows_samples:
            self.observation_space.seed(1000 * self.episode + self.steps)
            return self.observation_space.sample()
        return np.array([self.steps / 5, self.episode % 3, (7 * self.steps + self.episode) % 4 / 4], np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        reward = float(action == self.episode % 2) * self.steps if self.reward is None else self.reward
        done = self.steps == self.length
        return self._observe(), reward, done and not self.truncates, done and self.truncates, {}


def counters(n_envs: int = 1, **kwargs: Any) -> DummyVecEnv:
    """Vectorized environments that count alike."""
    return DummyVecEnv([partial(Counter, **kwargs)] * n_envs)


SPACES = {
    "vector": spaces.Box(-50.0, 50.0, (3,), np.float32),
    "dict": spaces.Dict({"a": spaces.Box(-50.0, 50.0, (2,), np.float32), "b": spaces.Discrete(4)}),
    "discrete": spaces.Discrete(6),
    "image": spaces.Box(0, 255, (36, 40, 3), np.uint8),
}
POLICIES = {"vector": "MlpPolicy", "dict": "MultiInputPolicy", "discrete": "MlpPolicy", "image": "CnnPolicy"}


class Walk(gym.Env[Any, Any]):
    """
    All that happens follows from the seed and the actions; half of the episodes are truncated.

    :param kind: which observations
    :param longest: number of steps of the longest episode; the others have at least 2
    :param n_actions: number of actions
    """

    def __init__(self, kind: str = "vector", longest: int = 8, n_actions: int = 3) -> None:
        self.observation_space = SPACES[kind]
        self.action_space = spaces.Discrete(n_actions)
        self.kind, self.longest = kind, longest

    def _observe(self) -> Any:
        numbers = self.np_random.normal(size=3) + self.last_action
        if self.kind == "dict":
            return {"a": numbers[:2].astype(np.float32), "b": int(self.np_random.integers(4))}
        if self.kind == "discrete":
            return int(self.np_random.integers(6))
        if self.kind == "image":
            return self.np_random.integers(256, size=(36, 40, 3), dtype=np.uint8)
        return numbers.astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps, self.last_action = 0, 0
        self.length = int(self.np_random.integers(2, self.longest + 1))
        self.truncates = bool(self.np_random.random() < 0.5)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        self.last_action = int(action)
        reward = float(self.np_random.normal()) + self.last_action
        done = self.steps == self.length
        return self._observe(), reward, done and not self.truncates, done and self.truncates, {}


def walks(n_envs: int = 2, **kwargs: Any) -> DummyVecEnv:
    """Vectorized environments that each walk their own way."""
    return DummyVecEnv([partial(Walk, **kwargs)] * n_envs)


class StatefulWalk(Walk):
    """A ``Walk`` that can give and take its state."""

    def get_state(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in ("steps", "last_action", "length", "truncates")}
        return state | {"np_random": self.np_random.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        self.np_random.bit_generator.state = state["np_random"]
        self.steps, self.last_action, self.length, self.truncates = (
            state[name] for name in ("steps", "last_action", "length", "truncates")
        )


class ConstantObservation(gym.Env[Any, Any]):
    """One of 50 actions, always the same observation: a random action is nearly never the greedy one."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(50)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return np.ones(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return np.ones(2, np.float32), 0.0, False, False, {}


def valid_actions(obs: Any) -> np.ndarray:
    """The masks of ``MaskedWalk``: those actions whose number is positive, or else the first; ``[..., 3]``."""
    masks = np.asarray(obs) > 0
    masks[..., 0] |= ~masks.any(axis=-1)
    return masks


class MaskedWalk(Walk):
    """A ``Walk`` whose observation tells which actions are valid; it counts the invalid ones that all copies were given."""

    n_invalid = 0

    def _observe(self) -> Any:
        self.obs = super()._observe()
        return self.obs

    def action_masks(self) -> np.ndarray:
        return valid_actions(self.obs["a"] if isinstance(self.obs, dict) else self.obs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        MaskedWalk.n_invalid += not self.action_masks()[action]
        return super().step(action)


class Choices(MaskedWalk):
    """A ``MaskedWalk`` whose actions have a component of 3, with those masks, and one of 2, both of which are valid."""

    def __init__(self, kind: str = "vector", longest: int = 8) -> None:
        super().__init__(kind, longest)
        self.action_space = spaces.MultiDiscrete([3, 2])

    def action_masks(self) -> np.ndarray:
        return np.append(super().action_masks(), [True, True])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        MaskedWalk.n_invalid += not self.action_masks()[action[0]]
        return Walk.step(self, action.sum())


class MaskedStatefulWalk(StatefulWalk, MaskedWalk):
    """Its masks follow from the last observation, which is part of its state."""

    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"obs": self.obs}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.obs = state["obs"]


def masked_walks(n_envs: int = 2, **kwargs: Any) -> DummyVecEnv:
    """Vectorized environments with masks."""
    MaskedWalk.n_invalid = 0
    return DummyVecEnv([partial(MaskedWalk, **kwargs)] * n_envs)
