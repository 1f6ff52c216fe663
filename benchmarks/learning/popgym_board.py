"""
RecurrentDQN on POPGym's tasks with discrete actions, beside the published board (https://arxiv.org/abs/2303.01859).

The board is PPO with 13 memory models after 15 million steps, and its score the best mean return during training. Ours is that
of the model at the end: greedy, over 100 episodes. All tasks are run with the constructor's defaults; RepeatPrevious also with
the key-value core, with a setting for it, and with other cores in that. Agents of the board see their last action; ours do
in the variants that say so.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.learning.first_try import FORMER_DEFAULTS, Curve, make_envs, score
from benchmarks.learning.zoo import N_EPISODES
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn import RecurrentDQN
from sb3_attn.envs import PreviousActionReward

N_STEPS = 200_000


class Published(NamedTuple):
    """Scores of the board, where we know them."""

    gru: float | None = None
    best: float | None = None


TASKS = {
    "AutoencodeEasy": Published(-0.283, -0.283),
    "AutoencodeMedium": Published(-0.425, -0.420),
    "BattleshipEasy": Published(),
    "BattleshipMedium": Published(),
    "ConcentrationEasy": Published(),
    "ConcentrationMedium": Published(),
    "CountRecallEasy": Published(0.177, 0.509),
    "CountRecallMedium": Published(-0.528, -0.519),
    "HigherLowerEasy": Published(0.529, 0.529),
    "HigherLowerMedium": Published(0.511, 0.513),
    "MineSweeperEasy": Published(),
    "MineSweeperMedium": Published(),
    "MultiarmedBanditEasy": Published(0.619, 0.631),
    "MultiarmedBanditMedium": Published(0.538, 0.598),
    "NoisyPositionOnlyCartPoleEasy": Published(0.995, None),
    "NoisyPositionOnlyCartPoleMedium": Published(0.642, 0.659),
    "PositionOnlyCartPoleEasy": Published(1.0, 1.0),
    "PositionOnlyCartPoleMedium": Published(1.0, 1.0),
    "RepeatFirstEasy": Published(1.0, 1.0),
    "RepeatFirstMedium": Published(1.0, 1.0),
    "RepeatPreviousEasy": Published(1.0, 1.0),
    "RepeatPreviousMedium": Published(-0.315, 0.789),
    "RepeatPreviousHard": Published(-0.428, 0.191),
    "VelocityOnlyCartpoleEasy": Published(),
    "VelocityOnlyCartpoleMedium": Published(),
}

#: For RepeatPrevious. No action changes what comes later, so a low gamma only removes noise; windows are whole episodes
REPEAT_PREVIOUS: dict[str, Any] = dict(gamma=0.5, td_lambda=0.0, trace_length=None)
#: Tasks in which what has been done has to be remembered, and is not observed otherwise
ACTIONS_MATTER = ("BattleshipEasy", "ConcentrationEasy", "MineSweeperEasy", "MultiarmedBanditEasy", "MultiarmedBanditMedium")

CORES = ("key_value", "gtrxl", "lstm", "ntm", "dnc")
N_STEPS_OF_CORES = 50_000


def settings(options: Options) -> Settings:
    """
    Variants "task", with the defaults, and "task, previous action"; "task, default key_value", with only the core changed; all
    these with former defaults, "..., not clipped" and, of that core, "..., burn-in of 8" and "..., plain double Q"; and "task,
    core", tuned.
    """
    variants: Settings = {task: dict(task=task, n_steps=options.scaled(N_STEPS), arguments={}) for task in TASKS}
    for task in ("RepeatPreviousMedium", "RepeatPreviousHard"):
        base = dict(task=task, n_steps=options.scaled(N_STEPS_OF_CORES))
        arguments: dict[str, Any] = {"policy_kwargs": {"core": "key_value"}}
        variants[f"{task}, default key_value"] = base | {"arguments": arguments}
        variants[f"{task}, default key_value, plain double Q"] = base | {"arguments": arguments | {"clipped_double_q": False}}
        for former, of_before in FORMER_DEFAULTS.items():
            variants[f"{task}, default key_value, {former}"] = base | {"arguments": arguments | of_before}
        for core in CORES:
            variants[f"{task}, {core}"] = base | {"arguments": REPEAT_PREVIOUS | {"policy_kwargs": {"core": core}}}
    for task in ACTIONS_MATTER:
        variants[f"{task}, previous action"] = variants[task] | {"previous_action": True}
    for name, values_of in list(variants.items()):
        if not values_of["arguments"]:
            variants[f"{name}, not clipped"] = values_of | {"arguments": FORMER_DEFAULTS["not clipped"]}
    return variants


def measure(
    context: Context, task: str, n_steps: int, arguments: dict[str, Any], previous_action: bool = False
) -> dict[str, Any]:
    """Train once; returns the score, the curve and the processor time of training in seconds."""

    def make(n_envs: int, seed: int) -> VecEnv:
        if not previous_action:
            return make_envs(f"popgym-{task}-v0", n_envs, seed)
        return make_vec_env(lambda: PreviousActionReward(gym.make(f"popgym-{task}-v0")), n_envs, seed)

    env, evaluation_env = make(8, context.seed), make(10, EVALUATION_SEED)
    curve = Curve(evaluation_env, n_steps)
    model = RecurrentDQN("MlpPolicy", env, seed=context.seed, device="cpu", **arguments)
    model.learn(n_steps, callback=curve)
    return {"cpu_seconds": curve.seconds, "score": score(model, evaluation_env, N_EPISODES), "curve": curve.points}


def rows(variants: Variants) -> Iterator[Row]:
    """A variant a row."""
    for name, runs in variants.items():
        published, n_steps, scores = TASKS[runs[0].settings["task"]], runs[0].settings["n_steps"], values(runs, "score")
        yield {
            "task": name,
            "steps": f"{n_steps:,}",
            "mean": f"{np.mean(scores):.2f}",
            "each seed": each(scores),
            "PPO with a GRU, 15 million": "" if published.gru is None else f"{published.gru:.2f}",
            "best of 13, 15 million": "" if published.best is None else f"{published.best:.2f}",
            "CPU seconds": f"{np.mean(values(runs, 'cpu_seconds')):.0f}",
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, quick="RepeatPreviousEasy")
