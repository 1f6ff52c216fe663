"""
What a window's memory starts from: the ablation of R2D2's paper (Kapturowski et al. 2019, section 3), in RecurrentDQN.

Windows of 16 steps start from the initial state or the stored one, without or with a burn-in of 16 steps; all else is the
constructor's defaults. Beside the score, Delta Q says how far training's Q-values are from those of a memory that has seen the
whole episode, at the first and the last trained step.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.learning.first_try import N_CURVE_POINTS, Curve, make_envs, score
from benchmarks.learning.zoo import N_EPISODES
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn import RecurrentDQN
from sb3_attn.recurrent_dqn.diagnostics import delta_q

TASKS = {"CartPoleNoVel-v1": 50_000, "popgym-RepeatFirstEasy-v0": 60_000}  # numbers of training steps
LENGTH, N_WINDOWS, MAX_PAST = 16, 32, 500
STARTS: dict[str, dict[str, Any]] = {
    "initial state": dict(stored_state=False, burn_in_length=0),
    "initial state, burn-in": dict(stored_state=False, burn_in_length=LENGTH),
    "stored state": dict(stored_state=True, burn_in_length=0),
    "stored state, burn-in": dict(stored_state=True, burn_in_length=LENGTH),
}


class CurveAndDeltaQ(Curve):
    """Also measures Delta Q at each point, over windows that do not begin in the first steps of an episode."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.delta_q: list[tuple[float, float]] = []

    def _on_step(self) -> bool:
        super()._on_step()
        if len(self.delta_q) < len(self.points):
            assert isinstance(self.model, RecurrentDQN)
            start = time.process_time()
            rng = np.random.default_rng(len(self.points))
            batches = self.model.replay_buffer.sample_with_past(N_WINDOWS, MAX_PAST, rng)
            # There is none while no episode is long enough
            self.delta_q.append((np.nan, np.nan) if batches is None else delta_q(self.model.q_net, *batches))
            self.seconds_of_scoring += time.process_time() - start
        return True


def settings(options: Options) -> Settings:
    """A variant "task, start" for each."""
    return {
        f"{task}, {start}": {"task": task, "n_steps": options.scaled(n_steps), "start": start}
        for task, n_steps in TASKS.items()
        for start in STARTS
    }


def measure(context: Context, task: str, n_steps: int, start: str) -> dict[str, Any]:
    """Train once; returns the score, the curves of returns and of Delta Q, and the processor time of training in seconds."""
    evaluation_env = make_envs(task, 10, EVALUATION_SEED)
    model = RecurrentDQN(
        "MlpPolicy", make_envs(task, 8, context.seed), trace_length=LENGTH, seed=context.seed, device="cpu", **STARTS[start]
    )
    curve = CurveAndDeltaQ(evaluation_env, n_steps)
    model.learn(n_steps, callback=curve)
    return {
        "cpu_seconds": curve.seconds,
        "score": score(model, evaluation_env, N_EPISODES),
        "curve": curve.points,
        "delta_q": curve.delta_q,
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A variant a row; Delta Q is the median over the second half of training and all seeds."""
    for name, runs in variants.items():
        task, _, start = name.partition(", ")
        scores, form = values(runs, "score"), ".0f" if task.startswith("CartPole") else ".2f"
        first, last = np.nanmedian(np.array(values(runs, "delta_q"))[:, N_CURVE_POINTS // 2 :], axis=(0, 1))
        yield {
            "task": task,
            "windows start from": start,
            "mean": format(np.mean(scores), form),
            "each seed": each(scores, form),
            "Delta Q, first step": f"{first:.2f}",
            "last step": f"{last:.2f}",
        }


def plot(variants: Variants, path: Path) -> None:
    """Delta Q at the first and the last trained step over training, means over seeds, and the returns."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(TASKS), 3, figsize=(13, 6), constrained_layout=True, squeeze=False)
    for row, (task, n_steps) in zip(axes, TASKS.items(), strict=True):
        steps = n_steps * (1 + np.arange(N_CURVE_POINTS)) / N_CURVE_POINTS
        for start in STARTS:
            if (name := f"{task}, {start}") not in variants:
                continue
            by_step = np.nanmean(values(variants[name], "delta_q"), axis=0)  # [points, 2]
            curves = (by_step[:, 0], by_step[:, 1], np.mean(values(variants[name], "curve"), axis=0))
            for panel, curve in zip(row, curves, strict=True):
                panel.plot(steps, curve, label=start)
        labels = ("Delta Q, first trained step", "Delta Q, last trained step", "mean return")
        for panel, label in zip(row, labels, strict=True):
            panel.set(title=task, xlabel="environment steps", ylabel=label)
        for panel in row[:2]:
            panel.set_yscale("log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(STARTS))
    figure.savefig(f"{path}.png", dpi=80)


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, plot=plot, quick="CartPoleNoVel-v1, stored state, burn-in")
