"""MultiDiscrete actions: one value of each combination, against parts that components have in the value of an action."""

import math
import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.learning.zoo import N_EPISODES
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn import RecurrentDQN
from sb3_attn.envs import FlattenSpaces
from sb3_attn.recurrent_dqn.components import ActionComponents
from sb3_attn.recurrent_dqn.heads import Head, take_actions

#: Number of components, and of choices in each
SIZES = [(2, 3), (3, 3), (3, 4), (4, 5)]
#: "each" correct component earns its share; only "all" of them together earn 1; so does a correct "sum" modulo the number of
#: choices. In the "trap" all together earn 1 and none at all 0.6, so that a component on its own had better be wrong
REWARDS = ["each", "all", "sum", "trap"]
AGENTS = ["combinations", "components", "components, a loss each"]
N_STEPS = 20_000


class RepeatNumbers(gym.Env[np.ndarray, np.ndarray]):
    """
    Numbers are shown one after the other, and then have to be given back in one action.

    :param n_components: how many numbers
    :param n_choices: how many different ones there are
    :param reward: what a correct answer is, see ``REWARDS``
    """

    def __init__(self, n_components: int, n_choices: int, reward: str) -> None:
        self.nvec = [n_choices] * n_components
        self.observation_space = spaces.Box(0.0, 1.0, (n_choices + 1,), np.float32)
        self.action_space = spaces.MultiDiscrete(self.nvec)
        self.n_choices, self.reward = n_choices, reward

    def _observe(self) -> np.ndarray:
        obs = np.zeros(self.n_choices + 1, np.float32)
        obs[self.numbers[self.steps] if self.steps < len(self.nvec) else self.n_choices] = 1.0
        return obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.numbers: np.ndarray = self.np_random.integers(np.array(self.nvec))
        self.steps = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        terminated = self.steps == len(self.nvec)
        correct = action == self.numbers
        rewards = {
            "each": correct.mean(),
            "all": correct.all(),
            "sum": (action.sum() - self.numbers.sum()) % self.n_choices == 0,
            "trap": correct.all() + 0.6 * (~correct).all(),
        }
        self.steps += 1
        return self._observe(), float(terminated and rewards[self.reward]), terminated, False, {}


class Branches(ActionComponents):
    """Each component estimates the whole value of the action, instead of its part in it."""

    def take(self, values: th.Tensor, actions: th.Tensor) -> th.Tensor:
        parts = (len(self.sizes) * values).split(self.sizes, dim=-1)
        return th.cat([take_actions(*part) for part in zip(parts, self.choices(actions), strict=True)], dim=-1)


class BranchingHead(Head):
    """Tavakoli et al. (2018), eq. 6 and 7: one target, the mean over the components, and the mean of their losses."""

    def loss(self, values: th.Tensor, targets: th.Tensor) -> th.Tensor:
        return super().loss(values, targets.mean(dim=-1, keepdim=True).expand_as(values)) / values.shape[-1]


def settings(options: Options) -> Settings:
    """A variant "reward, sizes, agent" for each."""
    return {
        f"{reward}, {n_components} x {n_choices}, {agent}": {
            "n_components": n_components,
            "n_choices": n_choices,
            "reward": reward,
            "agent": agent,
            "n_steps": options.scaled(N_STEPS),
        }
        for reward in REWARDS
        for n_components, n_choices in (SIZES[:3] if reward in ("sum", "trap") else SIZES)
        for agent in AGENTS
    }


def measure(context: Context, n_components: int, n_choices: int, reward: str, agent: str, n_steps: int) -> dict[str, Any]:
    """Train once; returns the score of the last model and processor seconds."""

    def make() -> gym.Env:
        env = RepeatNumbers(n_components, n_choices, reward)
        return FlattenSpaces(env) if agent == "combinations" else env

    env: Any = make_vec_env(make, 8, context.seed)
    policy_kwargs: dict[str, Any] = {"max_combinations": 0}
    if agent == "components, a loss each":
        policy_kwargs["head"] = BranchingHead
    model = RecurrentDQN("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=context.seed, device="cpu")
    if agent == "components, a loss each":
        model.q_net.components = Branches(env.action_space)
    start = time.process_time()
    model.learn(n_steps)
    seconds = time.process_time() - start
    returns, _ = evaluate_policy(model, make_vec_env(make, 8, EVALUATION_SEED), N_EPISODES, return_episode_rewards=True)
    return {"score": float(np.mean(returns)), "cpu_seconds": seconds}


def rows(variants: Variants) -> Iterator[Row]:
    """A reward, sizes and an agent a row."""
    for name, runs in variants.items():
        reward, sizes, agent = name.split(", ", 2)
        yield {
            "rewarded": reward,
            "sizes": sizes,
            "actions": f"{math.prod([runs[0].settings['n_choices']] * runs[0].settings['n_components']):,}",
            "values of": agent,
            "mean": f"{np.mean(values(runs, 'score')):.2f}",
            "each seed": each(values(runs, "score")),
            "CPU seconds": f"{np.mean(values(runs, 'cpu_seconds')):.0f}",
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, quick="each, 2 x 3, *")
