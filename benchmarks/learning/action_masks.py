"""RecurrentDQN with and without action masks, RecurrentPPO, which has no masks, and MaskablePPO, which has no memory."""

import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked_policy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.learning.zoo import N_EPISODES
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn import MaskableDQN, RecurrentDQN
from sb3_attn.envs import FlattenSpaces, PreviousActionReward

#: Number of training steps
TASKS = {"CardOrder-v0": 60_000, "WindingCorridor-v0": 30_000, "popgym-MineSweeperEasy-v0": 100_000}
MINE_SWEEPER_VIEWED = 2

#: Class, policy and arguments; ``use_masking`` says also whether the evaluation gives masks
AGENTS: dict[str, tuple[type[BaseAlgorithm], str, bool, dict[str, Any]]] = {
    "RecurrentDQN": (RecurrentDQN, "MlpPolicy", True, {}),
    "RecurrentDQN without masks": (RecurrentDQN, "MlpPolicy", False, {"use_masking": False}),
    "MaskableDQN": (MaskableDQN, "MlpPolicy", True, {"learning_rate": 1e-3, "target_update_interval": 1000}),
    "MaskablePPO": (MaskablePPO, "MlpPolicy", True, {"n_steps": 256}),
    "RecurrentPPO": (RecurrentPPO, "MlpLstmPolicy", False, {}),
}


class CountInvalid(gym.Wrapper):
    """Counts the invalid actions that it is given."""

    n_invalid = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.n_invalid += not self.get_wrapper_attr("action_masks")()[int(action)]
        return self.env.step(action)


def not_yet_viewed(env: gym.Env) -> np.ndarray:
    """The squares of POPGym's mine sweeper that may be clicked."""
    return env.get_wrapper_attr("hidden_grid").ravel() != MINE_SWEEPER_VIEWED


def make_envs(task: str, n_envs: int, seed: int) -> VecEnv:
    """Environments with masks that count invalid actions."""

    def make() -> gym.Env:
        env = gym.make(task)
        if task.startswith("popgym"):
            env = ActionMasker(PreviousActionReward(FlattenSpaces(env)), not_yet_viewed)
        return CountInvalid(env)

    return make_vec_env(make, n_envs, seed)


def settings(options: Options) -> Settings:
    """A variant "task, agent" for each."""
    return {
        f"{task}, {agent}": {"task": task, "agent": agent, "n_steps": options.scaled(n_steps)}
        for task, n_steps in TASKS.items()
        for agent in AGENTS
    }


def measure(context: Context, task: str, agent: str, n_steps: int) -> dict[str, Any]:
    """Train once; returns the score, the share of invalid actions in training and evaluation, and processor seconds."""
    algorithm, policy, use_masking, arguments = AGENTS[agent]
    env, evaluation_env = make_envs(task, 8, context.seed), make_envs(task, 1, EVALUATION_SEED)
    model = algorithm(policy, env, seed=context.seed, device="cpu", **arguments)
    start = time.process_time()
    model.learn(n_steps)
    seconds = time.process_time() - start
    evaluate: Any = evaluate_masked_policy if use_masking else evaluate_policy
    returns, lengths = evaluate(model, evaluation_env, N_EPISODES, return_episode_rewards=True)
    return {
        "score": float(np.mean(returns)),
        "invalid_in_training": sum(env.get_attr("n_invalid")) / n_steps,
        "invalid_in_evaluation": sum(evaluation_env.get_attr("n_invalid")) / sum(lengths),
        "cpu_seconds": seconds,
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A task and an agent a row."""
    for name, runs in variants.items():
        task, _, agent = name.partition(", ")
        yield {
            "task": task,
            "steps": f"{runs[0].settings['n_steps']:,}",
            "agent": agent,
            "mean": f"{np.mean(values(runs, 'score')):.2f}",
            "each seed": each(values(runs, "score")),
            "invalid actions in training": f"{np.mean(values(runs, 'invalid_in_training')):.1%}",
            "and in evaluation": f"{np.mean(values(runs, 'invalid_in_evaluation')):.1%}",
            "CPU seconds": f"{np.mean(values(runs, 'cpu_seconds')):.0f}",
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=5, quick="CardOrder-v0, RecurrentDQN")
