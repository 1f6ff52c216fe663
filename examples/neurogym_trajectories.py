"""
Draw how the memory of a RecurrentDQN moves in the trials of a NeuroGym task, condition by condition.

    sb3-attn train --algo rdqn --env PerceptualDecisionMaking-v0         # 60,000 steps: 90 s on one core
    python examples/neurogym_trajectories.py logs/rdqn/PerceptualDecisionMaking-v0_1/PerceptualDecisionMaking-v0.zip

NeuroGym has to be installed in a certain way: see "Tasks and wrappers" in the guide.
"""

import argparse
from itertools import cycle
from pathlib import Path
from typing import Any

import gymnasium as gym
import neurogym  # noqa: F401  # registers its tasks
import numpy as np
from matplotlib import colormaps
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn import RecurrentDQN
from sb3_attn.viz import save_figure
from sb3_attn.viz.figures import new_figure


def record(model: RecurrentDQN, env: Any, n_trials: int) -> tuple[list[Any], float]:
    """Act greedily; returns what each trial shows, with the memory's states ``[T, D]``, and the share of right answers."""
    trials: list[Any] = []
    states: list[np.ndarray] = []
    state: Any = None
    obs, starts, right = env.reset(), np.ones(1, dtype=bool), 0
    while len(trials) < n_trials:
        (trial,) = env.get_attr("trial")
        action, state = model.predict(obs, state, starts, deterministic=True)
        states.append(state[0][0])  # of an LSTM, its outputs
        obs, _, starts, (info,) = env.step(action)
        if info["new_trial"]:
            trials.append((trial, np.stack(states)))
            right += info["performance"]
        if info["new_trial"] or starts[0]:
            states = []
    return trials, right / n_trials


def draw(trials: list[Any]) -> Any:
    """Draw the mean over the trials of each condition, in the plane of the first two principal components of all states."""
    everything = np.concatenate([states for _, states in trials])
    components = np.linalg.svd(everything - everything.mean(axis=0), full_matrices=False)[2]
    figure = new_figure(9.0, 5.0)
    axes = figure.subplots()
    conditions = sorted({tuple(trial.values()) for trial, _ in trials})  # the right answer comes first
    for answer, name in zip(
        sorted({condition[0] for condition in conditions}), cycle(("Blues", "Reds", "Greens")), strict=False
    ):
        with_answer = [condition for condition in conditions if condition[0] == answer]
        for condition, shade in zip(with_answer, np.linspace(0.35, 0.95, len(with_answer)), strict=True):
            chosen = [states for trial, states in trials if tuple(trial.values()) == condition]
            length = min(map(len, chosen))  # NeuroGym skips the first step of a trial after a reset
            path = np.mean([states[-length:] for states in chosen], axis=0) @ components[:2].T
            label = ", ".join(f"{key} {value:.3g}" for key, value in zip(trials[0][0], condition, strict=True))
            axes.plot(*path.T, ".-", color=colormaps[name](shade), label=label)
            axes.plot(*path[-1], "s", color=colormaps[name](shade))
    axes.set(xlabel="first principal component of the memory", ylabel="second")
    figure.legend(loc="outside right upper", title="squares: the answer")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="zip file of the model")
    parser.add_argument("--env", default="PerceptualDecisionMaking-v0", help="id of its task (PerceptualDecisionMaking-v0)")
    parser.add_argument("--out", type=Path, default=Path("trajectories.png"), help="picture to write (trajectories.png)")
    args = parser.parse_args()
    env = DummyVecEnv([lambda: gym.make(args.env, max_episode_steps=100)])  # as in training: trials follow each other for ever
    trials, right = record(RecurrentDQN.load(args.model, device="cpu"), env, n_trials=500)
    print(f"{right:.3f} of {len(trials)} answers are right; written to {save_figure(draw(trials), args.out)}")


if __name__ == "__main__":
    main()
