"""
RecurrentDQN with the constructor's defaults; sb3-contrib's RecurrentPPO at equal steps and at equal processor time; and what
needs no memory, SB3's DQN over four frames, at equal steps.

The model that is scored is the one at the end of training: greedy, over 100 episodes. Curves are returns of 20 greedy
episodes, ten times during training, whose processor time does not count.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import matplotlib
import numpy as np
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, sync_envs_normalization
from torch import nn

from benchmarks.learning.zoo import N_EPISODES
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Run, Settings, Variants, each, values
from sb3_attn import RecurrentDQN
from sb3_attn.envs.wrappers import FlattenSpaces


class Task(NamedTuple):
    """
    A task.

    :param n_steps: Number of training steps.
    :param bar: Return to reach.
    :param tuned: Whether the defaults were chosen on it.
    :param seconds: Processor seconds of RecurrentDQN, which RecurrentPPO gets too.
    """

    n_steps: int
    bar: float | None
    tuned: bool
    seconds: float


TASKS = {
    "CartPole-v1": Task(50_000, 475.0, True, 60.0),
    "CartPoleNoVel-v1": Task(50_000, 450.0, True, 55.0),
    "LunarLanderNoVel-v3": Task(300_000, 100.0, True, 375.0),
    "MemoryChain-v0": Task(20_000, 0.95, False, 20.0),
    "MemoryChain-v0/100": Task(100_000, 0.95, True, 110.0),
    "popgym-RepeatFirstEasy-v0": Task(60_000, 0.95, True, 65.0),
    "AssociativeRecall-v0": Task(120_000, 0.95, True, 100.0),
    "popgym-CountRecallEasy-v0": Task(200_000, None, False, 235.0),
    "popgym-AutoencodeEasy-v0": Task(200_000, None, False, 220.0),
    "popgym-RepeatPreviousEasy-v0": Task(60_000, 0.95, True, 65.0),
}
N_CURVE_POINTS, N_CURVE_EPISODES = 10, 20

#: Configurations of RecurrentPPO, the best of which counts on each task; two are those of RL Zoo's ppo_lstm.yml, with as many
#: environments as here
LSTM_64: dict[str, Any] = dict(ortho_init=False, activation_fn=nn.ReLU, lstm_hidden_size=64, net_arch=dict(pi=[64], vf=[64]))
RECURRENT_PPO: dict[str, dict[str, Any]] = {
    "defaults": {},
    "RL Zoo's for CartPoleNoVel": dict(
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        clip_range=LinearSchedule(0.2, 0.0, 1.0),
        policy_kwargs=LSTM_64,
    ),
    "RL Zoo's for LunarLanderNoVel": dict(
        n_steps=512, batch_size=128, gae_lambda=0.98, gamma=0.999, n_epochs=4, ent_coef=0.01, policy_kwargs=LSTM_64
    ),
}

#: What the defaults were before: first plain double Q as well, then the shorter burn-in only
FORMER_DEFAULTS: dict[str, dict[str, Any]] = {
    "not clipped": {"clipped_double_q": False, "burn_in_length": 8},
    "burn-in of 8": {"burn_in_length": 8},
}

N_FRAMES = 4
#: DQN over frames: RL Zoo's dqn.yml for CartPole, with the same number of updates per step with 8 environments
DQN_ARGUMENTS: dict[str, Any] = dict(
    learning_rate=2.3e-3,
    batch_size=64,
    buffer_size=100_000,
    learning_starts=1000,
    gamma=0.99,
    target_update_interval=10,
    train_freq=32,
    gradient_steps=128,
    exploration_fraction=0.16,
    exploration_final_eps=0.04,
    policy_kwargs=dict(net_arch=[256, 256]),
)


def settings(options: Options) -> Settings:
    """
    Variants "task", "task, 16 environments", "task, rewards x 0.01", "task, twice the steps", "task, bf16", "task, without
    memory", each also with former defaults, "..., burn-in of 8" and "..., not clipped"; "task, RecurrentPPO with defaults" and
    so on for each configuration; "task, DQN over 4 frames". ``--only`` selects.
    """
    variants: Settings = {}
    for name, task in TASKS.items():
        base = {
            "task": name,
            "n_steps": options.scaled(task.n_steps),
            "n_envs": 8,
            "reward_factor": 1.0,
            "recurrent_ppo": None,
        }
        variants[name] = base
        for n_envs in (1, 16):
            variants[f"{name}, {n_envs} environments"] = base | {"n_envs": n_envs}
        for factor in (0.01, 100.0):
            variants[f"{name}, rewards x {factor:g}"] = base | {"reward_factor": factor}
        variants[f"{name}, twice the steps"] = base | {"n_steps": options.scaled(2 * task.n_steps)}
        variants[f"{name}, bf16"] = base | {"policy_kwargs": {"core_kwargs": {"bf16": True}}}
        variants[f"{name}, without memory"] = base | {"policy_kwargs": {"core": "identity"}}
        ours = [variant for variant in variants if variant.split(", ")[0] == name]
        for former, arguments in FORMER_DEFAULTS.items():
            variants |= {f"{variant}, {former}": variants[variant] | {"arguments": arguments} for variant in ours}
        for configuration in RECURRENT_PPO:
            variants[f"{name}, RecurrentPPO with {configuration}"] = base | {"recurrent_ppo": configuration}
        variants[f"{name}, DQN over {N_FRAMES} frames"] = base | {"n_frames": N_FRAMES}
    return variants


def make_envs(task: str, n_envs: int, seed: int, reward_factor: float = 1.0, flattened: tuple[type, ...] = ()) -> VecEnv:
    """The environments; ``flattened`` are spaces whose observations become vectors, one-hot."""
    name, _, length = task.partition("/")
    kwargs: dict[str, Any] = {"length": int(length)} if length else {}

    def make() -> gym.Env:
        env: gym.Env = gym.wrappers.TransformReward(gym.make(name, **kwargs), partial(np.multiply, reward_factor))
        if isinstance(env.observation_space, flattened):
            env = gym.wrappers.FlattenObservation(env)
        return FlattenSpaces(env) if isinstance(env.observation_space, gym.spaces.Tuple) else env

    return make_vec_env(make, n_envs, seed)


def score(model: BaseAlgorithm, env: VecEnv, n_episodes: int) -> float:
    if isinstance(env, VecNormalize):
        sync_envs_normalization(model.get_env(), env)  # type: ignore[arg-type]
    returns, _ = evaluate_policy(model, env, n_episodes, return_episode_rewards=True)
    return float(np.mean(returns))


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
        self.seconds_of_scoring = 0.0

    def _on_training_start(self) -> None:
        self.start = time.process_time()

    @property
    def seconds(self) -> float:
        """Processor time of training so far."""
        return time.process_time() - self.start - self.seconds_of_scoring

    def score(self, n_episodes: int) -> float:
        start, generator = time.process_time(), np.random.get_state()
        result = score(self.model, self.env, n_episodes)
        np.random.set_state(generator)
        self.seconds_of_scoring += time.process_time() - start
        return result

    def _on_step(self) -> bool:
        n_points = len(self.points)
        if n_points < N_CURVE_POINTS and self.num_timesteps * N_CURVE_POINTS >= (n_points + 1) * self.n_steps:
            self.points.append(self.score(N_CURVE_EPISODES))
        return True


class CurveAndEqualTime(Curve):
    """
    Also scores the model when a processor time is used up.

    :param max_seconds: The processor time.
    """

    def __init__(self, env: VecEnv, n_steps: int, max_seconds: float) -> None:
        super().__init__(env, n_steps)
        self.max_seconds = max_seconds
        self.score_at_equal_time: float | None = None

    def _on_step(self) -> bool:
        if self.score_at_equal_time is None and self.seconds >= self.max_seconds:
            self.score_at_equal_time = self.score(N_EPISODES)
        return super()._on_step()


def measure(
    context: Context,
    task: str,
    n_steps: int,
    n_envs: int,
    reward_factor: float,
    recurrent_ppo: str | None,
    n_frames: int | None = None,
    policy_kwargs: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train once; returns the score, the curve and the processor time of training in seconds."""
    flattened: tuple[type, ...] = ()
    if recurrent_ppo is not None:
        flattened = (gym.spaces.MultiDiscrete,)  # with which RecurrentPPO cannot be created
    elif n_frames is not None:
        flattened = (gym.spaces.MultiDiscrete, gym.spaces.Discrete)  # of which there are no stacks
    env = make_envs(task, n_envs, context.seed, reward_factor, flattened)
    evaluation_env = make_envs(task, 10, EVALUATION_SEED, flattened=flattened)
    model: BaseAlgorithm
    if recurrent_ppo is not None:
        if recurrent_ppo.startswith("RL Zoo"):
            norm_obs = isinstance(env.observation_space, gym.spaces.Box)
            env = VecNormalize(env, norm_obs=norm_obs)
            evaluation_env = VecNormalize(evaluation_env, training=False, norm_obs=norm_obs, norm_reward=False)
        curve: Curve = CurveAndEqualTime(evaluation_env, n_steps, TASKS[task].seconds * n_steps / TASKS[task].n_steps)
        model = RecurrentPPO("MlpLstmPolicy", env, seed=context.seed, device="cpu", **RECURRENT_PPO[recurrent_ppo])
    elif n_frames is not None:
        env, evaluation_env = VecFrameStack(env, n_frames), VecFrameStack(evaluation_env, n_frames)
        curve = Curve(evaluation_env, n_steps)
        model = DQN("MlpPolicy", env, seed=context.seed, device="cpu", **DQN_ARGUMENTS)
    else:
        curve = Curve(evaluation_env, n_steps)
        arguments = {"policy_kwargs": policy_kwargs} | (arguments or {})
        model = RecurrentDQN("MlpPolicy", env, seed=context.seed, device="cpu", **arguments)
    model.learn(n_steps, callback=curve)
    result = {"cpu_seconds": curve.seconds, "score": score(model, evaluation_env, N_EPISODES), "curve": curve.points}
    if isinstance(curve, CurveAndEqualTime):  # a model that needed less time than it may have is the same at both
        at_equal_time = curve.score_at_equal_time
        result["score_at_equal_time"] = result["score"] if at_equal_time is None else at_equal_time
    return result


def steps_to_bar(curve: list[float], task: Task, n_steps: int) -> float:
    """Training steps until a point of the curve reaches the bar; infinity if none does."""
    reached = (i for i, point in enumerate(curve, 1) if task.bar is not None and point >= task.bar)
    return next(reached, np.inf) * n_steps / len(curve)


def rows(variants: Variants) -> Iterator[Row]:
    """A variant a row."""
    for name, runs in variants.items():
        task, n_steps = TASKS[runs[0].settings["task"]], runs[0].settings["n_steps"]
        form = ".0f" if task.bar is not None and task.bar > 1 else ".2f"
        scores = values(runs, "score")
        reached = np.median([steps_to_bar(curve, task, n_steps) for curve in values(runs, "curve")])
        at_equal_time = values(runs, "score_at_equal_time") if runs[0].settings["recurrent_ppo"] else []
        yield {
            "task": name.replace(", 1 environments", ", 1 environment"),
            "steps": f"{n_steps:,}",
            "chosen on it": "yes" if task.tuned else "no",
            "mean": format(np.mean(scores), form),
            "each seed": each(scores, form),
            "bar": "-" if task.bar is None else f"{task.bar:g}",
            "median of the steps to it": f"{reached:,.0f}" if np.isfinite(reached) else "-",
            "CPU seconds per 100,000 steps": f"{1e5 / n_steps * np.mean(values(runs, 'cpu_seconds')):.0f}",
            "mean at equal CPU time": format(np.mean(at_equal_time), form) if at_equal_time else "",
        }


def best_recurrent_ppo(variants: Variants, task: str) -> Sequence[Run]:
    """The runs of RecurrentPPO with the configuration whose mean score is highest on a task."""
    configurations = [runs for name, runs in variants.items() if name.startswith(f"{task}, RecurrentPPO")]
    return max(configurations, key=lambda runs: np.mean(values(runs, "score")), default=[])


def plot(variants: Variants, path: Path) -> None:
    """Learning curves: interquartile mean over seeds, and bootstrap intervals (Agarwal et al. 2021), by rliable."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter
    from rliable import library
    from scipy.stats import trim_mean

    tasks = [task for task in TASKS if task in variants]
    figure, axes = plt.subplots(4, 3, figsize=(9, 10), constrained_layout=True)
    for task, axis in zip(tasks, axes.flat, strict=False):
        drawn = {
            "RecurrentDQN, defaults": variants[task],
            "RecurrentPPO": best_recurrent_ppo(variants, task),
            f"DQN over {N_FRAMES} frames": variants.get(f"{task}, DQN over {N_FRAMES} frames", []),
        }
        for colour, (label, runs) in enumerate(drawn.items()):
            if not runs:
                continue
            curves = np.array(values(runs, "curve"))  # [seeds, points]
            steps = runs[0].settings["n_steps"] * (1 + np.arange(curves.shape[1])) / curves.shape[1]
            if len(curves) == 1:
                axis.plot(steps, curves[0], f"C{colour}", label=label)
                continue
            iqm, interval = library.get_interval_estimates(
                {label: curves[:, None, :]},
                lambda scores: trim_mean(scores[:, 0], proportiontocut=0.25),
                reps=200,
            )
            axis.plot(steps, iqm[label], f"C{colour}", label=label)
            axis.fill_between(steps, *interval[label], color=f"C{colour}", alpha=0.2, linewidth=0)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k
        axis.set_title(task)
        axis.set_xlabel("environment steps")
    for axis in axes.flat[len(tasks) :]:
        axis.set_axis_off()
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center right")
    figure.savefig(f"{path}.png", dpi=120)


BENCHMARK = Benchmark(settings, measure, rows, seeds=5, plot=plot, quick="MemoryChain-v0")
