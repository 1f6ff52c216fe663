"""
How closely R2D2 keeps to ``samples_per_insert``, with a small network and two actors on Ray.

The ratio may fall short by less than a batch of 32 windows.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.environments import MaskedCartPole
from benchmarks.learning.r2d2_learning import ON_RAY
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants
from sb3_attn import R2D2

RATIOS = (1, 4, 8)


def settings(options: Options) -> Settings:
    """A variant for each value of ``samples_per_insert``."""
    n_steps = options.scaled(20_000)
    return {f"samples_per_insert={ratio}": {"samples_per_insert": ratio, "n_steps": n_steps} for ratio in RATIOS}


def measure(context: Context, samples_per_insert: float, n_steps: int) -> dict[str, Any]:
    """Train once; returns numbers of windows and updates, draws per window, and the deviation of these."""
    replay: dict[str, Any] = dict(
        buffer_size=50_000, learning_starts=1000, batch_size=32, samples_per_insert=samples_per_insert
    )
    windows: dict[str, Any] = dict(trace_length=20, burn_in_length=10, sequence_period=10)
    network = dict(core_kwargs=dict(hidden_size=32), encoder_arch=[32], net_arch=[32])
    env = partial(MaskedCartPole, full_windows=False)
    model = R2D2("MlpPolicy", env, policy_kwargs=network, seed=context.seed, device="cpu", **replay, **windows, **ON_RAY)
    model.learn(n_steps)
    measured = model.n_windows_sampled / max(model.n_windows_inserted, 1)
    return {
        "inserted": model.n_windows_inserted,
        "sampled": model.n_windows_sampled,
        "updates": model._n_updates,
        "ratio": measured,
        "deviation": measured / samples_per_insert - 1,
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A run a row."""
    for runs in variants.values():
        for run in runs:
            result = run.result
            yield {
                "asked for": f"{run.settings['samples_per_insert']:g}",
                "seed": str(run.seed),
                "windows inserted": f"{result['inserted']:,}",
                "drawn": f"{result['sampled']:,}",
                "updates": f"{result['updates']:,}",
                "ratio": f"{result['ratio']:.3f}",
                "deviation": f"{100 * result['deviation']:+.1f} %",
            }


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, alone=True)
