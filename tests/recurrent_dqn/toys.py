"""Small environments, a small model and a few callbacks that the tests of RecurrentDQN share."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn import MemoryCore, RecurrentDQN

VECTOR = spaces.Box(-10.0, 10.0, (3,), np.float32)


class Counter(gym.Env[Any, Any]):
    """
    Deterministic: the observation tells step and episode (and never the action), the reward depends on both and the action.

    :param length: steps per episode
    :param truncates: end by truncation instead of termination
    :param space: of the observations, which are then samples of it
    :param reward: a constant reward instead, if given
    """

    def __init__(
        self, length: int = 5, truncates: bool = False, space: spaces.Space | None = None, reward: float | None = None
    ) -> None:
        self.observation_space = VECTOR if space is None else space
        self.action_space = spaces.Discrete(2)
        self.length, self.truncates, self.reward = length, truncates, reward
        self.episode = -1

    def _observe(self) -> Any:
        if self.observation_space is VECTOR:
            return np.array([self.steps / 5, self.episode % 3, (7 * self.steps + self.episode) % 4 / 4], np.float32)
        self.observation_space.seed(1000 * self.episode + self.steps)
        return self.observation_space.sample()

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


class SumState(NamedTuple):
    """``[B, input_size]``."""

    total: th.Tensor


class SumCore(MemoryCore):
    """A user's own memory, without an unroll of its own: a decaying sum of the inputs, with a learned initial state."""

    def __init__(self, input_size: int, decay: float = 0.5) -> None:
        super().__init__(input_size, output_size=input_size)
        self.decay = decay
        self.start = th.nn.Parameter(th.zeros(input_size))

    def initial_state(self, batch_size: int) -> SumState:
        return SumState(self.start.expand(batch_size, -1))

    def forward(self, inputs: th.Tensor, state: Any) -> tuple[th.Tensor, SumState]:
        total = self.decay * state[0] + inputs
        return total, SumState(total)


def vec(n_envs: int = 1, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Counter(**kwargs) for _ in range(n_envs)])


SMALL_POLICY = dict(core_kwargs=dict(hidden_size=8), encoder_arch=[8], net_arch=[8])


def make(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> RecurrentDQN:
    """A small model that learns after 20 steps."""
    policy_kwargs = SMALL_POLICY | kwargs.pop("policy_kwargs", {})
    defaults = dict(
        learning_rate=1e-2,
        buffer_size=200,
        learning_starts=20,
        batch_size=4,
        trace_length=3,
        burn_in_length=2,
        target_update_interval=20,
        seed=0,
        device="cpu",
    )
    return RecurrentDQN(policy, vec() if env is None else env, **(defaults | kwargs), policy_kwargs=policy_kwargs)


def parameters(model: RecurrentDQN) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not th.equal(first[name], second[name])]
    assert not different


class Recorder(BaseCallback):
    """Keeps what acting saw and did at every step, before it is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[np.ndarray, ...]] = []
        self.next_states: list[tuple[np.ndarray, ...]] = []
        self.observations: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []

    def _on_step(self) -> bool:
        before, after = self.model._step_states
        self.states.append(tuple(array.numpy().copy() for array in before))
        self.next_states.append(tuple(array.numpy().copy() for array in after))
        self.observations.append(np.array(self.model._last_obs))
        self.actions.append(np.array(self.locals["actions"]))
        return True


class StopAt(BaseCallback):
    """Ends `learn()` after n steps of this call, between the environments' step and its storage."""

    def __init__(self, n_calls: int) -> None:
        super().__init__()
        self.last = n_calls

    def _on_training_start(self) -> None:
        self.last += self.n_calls

    def _on_step(self) -> bool:
        return self.n_calls < self.last
