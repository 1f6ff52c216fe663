"""
RecurrentDQN with the constructor's defaults, and sb3-contrib's RecurrentPPO with RL Zoo's hyperparameters at equal steps.

The defaults were chosen on CartPoleNoVel, LunarLanderNoVel, MemoryChain(100) and RepeatFirst. The model that is scored is the
one at the end of training: greedy, over 100 episodes. Curves are returns of 20 greedy episodes, ten times during training,
whose processor time does not count.
"""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from benchmarks.learning.zoo import N_EPISODES
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn import RecurrentDQN
from sb3_attn.envs.wrappers import FlattenSpaces

#: Number of steps, return to reach, and whether the defaults were chosen on it
TASKS: dict[str, tuple[int, float | None, bool]] = {
    "CartPole-v1": (50_000, 475.0, False),
    "CartPoleNoVel-v1": (50_000, 450.0, True),
    "LunarLanderNoVel-v3": (300_000, 100.0, True),
    "MemoryChain-v0": (20_000, 0.95, False),
    "MemoryChain-v0/100": (100_000, 0.95, True),
    "popgym-RepeatFirstEasy-v0": (60_000, 0.95, True),
    "AssociativeRecall-v0": (120_000, 0.95, False),
    "popgym-CountRecallEasy-v0": (200_000, None, False),
    "popgym-AutoencodeEasy-v0": (200_000, None, False),
}
N_CURVE_POINTS, N_CURVE_EPISODES = 10, 20

#: Those of RL Zoo's ppo_lstm.yml for CartPole without velocities; its entry for LunarLander is made for 5 million steps
RECURRENT_PPO: dict[str, Any] = dict(
    n_steps=32,
    batch_size=256,
    gae_lambda=0.8,
    gamma=0.98,
    n_epochs=20,
    ent_coef=0.0,
    learning_rate=1e-3,
    policy_kwargs=dict(ortho_init=False, lstm_hidden_size=64, enable_critic_lstm=True, net_arch=[64]),
)


def settings(options: Options) -> Settings:
    """Variants "task", "task, 16 environments", "task, rewards x 0.01", "task, RecurrentPPO"; ``--only`` selects."""
    variants: Settings = {}
    for task, (n_steps, _, _) in TASKS.items():
        base = {
            "task": task,
            "n_steps": options.scaled(n_steps),
            "n_envs": 8,
            "reward_factor": 1.0,
            "algorithm": "RecurrentDQN",
        }
        variants[task] = base
        for n_envs in (1, 16):
            variants[f"{task}, {n_envs} environments"] = base | {"n_envs": n_envs}
        for factor in (0.01, 100.0):
            variants[f"{task}, rewards x {factor:g}"] = base | {"reward_factor": factor}
        variants[f"{task}, RecurrentPPO"] = base | {"algorithm": "RecurrentPPO"}
    return variants


def make_envs(task: str, n_envs: int, seed: int, reward_factor: float = 1.0) -> VecEnv:
    name, _, length = task.partition("/")
    kwargs: dict[str, Any] = {"length": int(length)} if length else {}

    def make() -> gym.Env:
        env = gym.wrappers.TransformReward(gym.make(name, **kwargs), partial(np.multiply, reward_factor))
        return FlattenSpaces(env) if isinstance(env.observation_space, gym.spaces.Tuple) else env

    return make_vec_env(make, n_envs, seed)


class Curve(BaseCallback):
    """
    Scores the model during training.

    :param env: The environments to score it in.
    :param n_steps: Number of training steps.
    """

    def __init__(self, env: VecEnv, n_steps: int) -> None:
        super().__init__()
        self.env, self.n_steps = env, n_steps
        self.points: list[float] = []
        self.seconds = 0.0

    def _on_step(self) -> bool:
        if self.num_timesteps * N_CURVE_POINTS >= (len(self.points) + 1) * self.n_steps:
            start, generator = time.process_time(), np.random.get_state()
            self.points.append(score(self.model, self.env, N_CURVE_EPISODES))
            np.random.set_state(generator)
            self.seconds += time.process_time() - start
        return True


def score(model: BaseAlgorithm, env: VecEnv, n_episodes: int) -> float:
    if isinstance(env, VecNormalize):
        sync_envs_normalization(model.get_env(), env)  # type: ignore[arg-type]
    returns, _ = evaluate_policy(model, env, n_episodes, return_episode_rewards=True)
    return float(np.mean(returns))


def measure(context: Context, task: str, n_steps: int, n_envs: int, reward_factor: float, algorithm: str) -> dict[str, Any]:
    """Train once; returns the score, the curve and the processor time of training in seconds."""
    env, evaluation_env = make_envs(task, n_envs, context.seed, reward_factor), make_envs(task, 10, EVALUATION_SEED)
    model: BaseAlgorithm
    if algorithm == "RecurrentPPO":
        env, evaluation_env = VecNormalize(env), VecNormalize(evaluation_env, training=False, norm_reward=False)
        model = RecurrentPPO("MlpLstmPolicy", env, seed=context.seed, device="cpu", **RECURRENT_PPO)
    else:
        model = RecurrentDQN("MlpPolicy", env, seed=context.seed, device="cpu")
    curve, start = Curve(evaluation_env, n_steps), time.process_time()
    model.learn(n_steps, callback=curve)
    seconds = time.process_time() - start - curve.seconds
    return {"score": score(model, evaluation_env, N_EPISODES), "curve": curve.points, "cpu_seconds": seconds}


def rows(variants: Variants) -> Iterator[Row]:
    """A variant a row."""
    for name, runs in variants.items():
        _, bar, tuned = TASKS[runs[0].settings["task"]]
        scores, n_steps = values(runs, "score"), runs[0].settings["n_steps"]
        form = ".0f" if bar is not None and bar > 1 else ".2f"
        yield {
            "task": name,
            "steps": f"{n_steps:,}",
            "chosen on it": "yes" if tuned else "no",
            "mean": format(np.mean(scores), form),
            "each seed": each(scores, form),
            "bar": "-" if bar is None else f"{bar:g}",
            "CPU seconds per 100,000 steps": f"{1e5 / n_steps * np.mean(values(runs, 'cpu_seconds')):.0f}",
        }


def plot(variants: Variants, path: Path) -> None:
    """Learning curves: interquartile mean over seeds, and bootstrap intervals (Agarwal et al. 2021), by rliable."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from rliable import library, metrics

    tasks = [task for task in TASKS if task in variants]
    figure, axes = plt.subplots(3, 3, figsize=(12, 9), constrained_layout=True)
    for task, axis in zip(tasks, axes.flat, strict=False):
        for name, label in ((task, "RecurrentDQN, defaults"), (f"{task}, RecurrentPPO", "RecurrentPPO")):
            if name not in variants:
                continue
            curves = np.array(values(variants[name], "curve"))  # [seeds, points]
            iqm, interval = library.get_interval_estimates(
                {label: curves[:, None, :]},
                lambda scores: np.array([metrics.aggregate_iqm(scores[..., point]) for point in range(scores.shape[-1])]),
                reps=2000,
            )
            steps = variants[name][0].settings["n_steps"] * (1 + np.arange(curves.shape[1])) / curves.shape[1]
            axis.plot(steps, iqm[label], label=label)
            axis.fill_between(steps, *interval[label], alpha=0.2)
        axis.set_title(task)
        axis.set_xlabel("environment steps")
    axes.flat[0].legend()
    figure.savefig(f"{path}.png", dpi=80)


BENCHMARK = Benchmark(settings, measure, rows, seeds=5, plot=plot, quick="MemoryChain-v0")
