"""
R2D2 with actors in process and on Ray: what it learns, and what it costs.

    python -m benchmarks.r2d2 learning ratio throughput sleeping parts

- ``learning``: two tasks that need memory, in process, on Ray, and on Ray while actors are killed
- ``ratio``: how well ``samples_per_insert`` is held
- ``throughput``: steps and windows per second without learning, and the processor time that Ray adds
- ``sleeping``: whether more actors are faster where environments wait
- ``parts``: milliseconds of each part on the way from an actor into the replay

One run after the other, in a process beside this one. All variants of a benchmark take turns, round after round, so that
whatever else the machine does falls on all of them alike. Runs that the results file already has, with the same settings, are
skipped, so an interrupted benchmark goes on where it was. Needs Linux, whose /proc tells actors' processes from Ray's own.
"""

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch as th

from benchmarks import r2d2_learning, r2d2_parts, r2d2_speed
from benchmarks.runs import finish, key, read


class Benchmark(NamedTuple):
    """
    A benchmark.

    :param settings: gives the arguments of ``measure`` for each variant, by its name; takes the share of the full size
    :param measure: does one run; takes a seed and these arguments
    :param report: makes a table of runs
    """

    settings: Callable[[float], dict[str, dict[str, Any]]]
    measure: Callable[..., dict[str, Any]]
    report: Callable[[list[dict[str, Any]]], str]


BENCHMARKS = {
    "learning": Benchmark(r2d2_learning.learning_settings, r2d2_learning.learning, r2d2_learning.learning_report),
    "ratio": Benchmark(r2d2_learning.ratio_settings, r2d2_learning.ratio, r2d2_learning.ratio_report),
    "throughput": Benchmark(r2d2_speed.throughput_settings, r2d2_speed.throughput, r2d2_speed.throughput_report),
    "sleeping": Benchmark(r2d2_speed.sleeping_settings, r2d2_speed.sleeping, r2d2_speed.sleeping_report),
    "parts": Benchmark(r2d2_parts.parts_settings, r2d2_parts.parts, r2d2_parts.parts_report),
}


def run(benchmark: str, variant: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """
    Do one run.

    :param benchmark: a key of :data:`BENCHMARKS`
    :param variant: its name
    :param seed: seed of the run, or number of the round
    :param settings: arguments of the benchmark
    :return: what was measured, with what and on what
    """
    th.set_num_threads(1)
    result = BENCHMARKS[benchmark].measure(seed, **settings)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": th.__version__,
        "ray": ray.__version__,
    }
    return {"task": benchmark, "network": variant, "seed": seed, "settings": settings, "machine": machine, **result}


def measure(benchmark: str, rounds: int, scale: float, out: Path) -> list[dict[str, Any]]:
    """
    Do the runs that the results file lacks, and add them to it one by one.

    :param benchmark: a key of :data:`BENCHMARKS`
    :param rounds: number of seeds of each variant
    :param scale: share of the full size
    :param out: the results file
    :return: the runs asked for, the variants in their order
    """
    settings = BENCHMARKS[benchmark].settings(scale)
    asked = {
        (benchmark, variant, seed): (benchmark, variant, seed, settings[variant])
        for seed in range(rounds)
        for variant in settings
    }
    # Those with other settings are done again
    current = [r for r in read(out) if key(r) not in asked or r["settings"] == settings[r["network"]]]
    done = {key(result): result for result in finish(run, asked, current, out, jobs=1)}
    return [done[benchmark, variant, seed] for variant in settings for seed in range(rounds)]


def report(benchmark: str, runs: list[dict[str, Any]]) -> str:
    """
    A Markdown table, and where it was measured.

    :param benchmark: a key of :data:`BENCHMARKS`
    :param runs: as :func:`measure` returns them
    """
    machine, loads = runs[0]["machine"], [result["machine"]["load"] for result in runs]
    where = f"{machine['cores']} cores, load {min(loads):.1f} to {max(loads):.1f} at the end of a run"
    what = f"torch {machine['torch']}, Ray {machine['ray']}"
    return f"\n### {benchmark}\n\n{BENCHMARKS[benchmark].report(runs)}\n\n{where}, {what}."


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: its arguments; ``None`` takes them from ``sys.argv``
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", nargs="+", choices=BENCHMARKS, help="what to measure")
    parser.add_argument("--rounds", type=int, default=3, help="number of seeds, and of measurements of what is timed")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size, to try the benchmark out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/r2d2.json"), help="the results file")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.scale <= 0:
        parser.error("--rounds and --scale have to be positive.")
    for benchmark in args.benchmark:
        print(report(benchmark, measure(benchmark, args.rounds, args.scale, args.out)), flush=True)


if __name__ == "__main__":
    main()
