"""
Run benchmarks, keep what they measured, and print their tables.

    python -m benchmarks                             # lists them
    python -m benchmarks cores --seeds 5 --jobs 2    # runs one, or several, or a whole group
    python -m benchmarks cores --report              # prints the table of the finished runs
    python -m benchmarks comparisons --again --peers PYTHON  # one table: ours, its peers and limits (`make benchmarks`)
    python -m benchmarks --quick                     # runs all with short settings: each works, its figures are no evidence

A benchmark has variants, each with settings that JSON can hold. A run measures one variant with one seed, in a worker process
and on one thread. When it has finished, it is added to ``<out>/<benchmark>.json``, and its result to ``<benchmark>.csv``. Runs
that the file already has with equal settings are skipped, so an interrupted benchmark continues where it stopped. All variants
run with one seed before any runs with the next, so that changes in the load of the machine affect all alike.
"""

import argparse
import csv
import importlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import reduce
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch as th

from benchmarks.peers import server
from sb3_attn.common.files import replace_on_success

#: One line about each benchmark, by group. Its module is ``benchmarks.<group>.<name>``, imported when needed: some need Ray
GROUPS = {
    "learning": {
        "first_try": "RecurrentDQN with its default arguments on ten tasks, against RecurrentPPO",
        "popgym_board": "RecurrentDQN on POPGym's discrete tasks, beside the published board",
        "time_to_solve": "processor time until two tasks are solved, against RecurrentPPO",
        "ablations": "RecurrentDQN with one default changed at a time",
        "frozen_features": "memory over images with trained and with frozen convolutions, at equal processor time",
        "neurogym_tasks": "RecurrentDQN on two tasks of NeuroGym, against RecurrentPPO",
        "action_masks": "RecurrentDQN with and without action masks, against MaskablePPO and RecurrentPPO",
        "multi_discrete": "MultiDiscrete actions: values of combinations, or parts of components in them",
        "memory_tasks": "RecurrentDQN on six tasks that need memory, with the shipped hyperparameters",
        "stored_state": "what a window's memory starts from, R2D2's ablation: score and Delta Q",
        "horizon": "every memory core, trained on episodes of 30 steps and tested on up to 3,000",
        "cores": "every memory core, in RecurrentDQN and over the stacked frames of stock DQN",
        "visual_search": "stock DQN with and without attention on visual search",
        "darqn": "DARQN on tasks that need memory, with and without attention",
        "supervised": "memory cores alone on copy, repeat copy and associative recall",
        "r2d2_learning": "R2D2 in process, on Ray, and on Ray while actors are killed",
        "r2d2_ratio": "how closely R2D2 keeps to samples_per_insert",
    },
    "speed": {
        "recurrent_update": "an update of RecurrentDQN against the bare LSTM",
        "env_steps": "environment steps per second, training included, against Tianshou, TorchRL, RecurrentPPO and stock DQN",
        "acting": "a call of predict against sb3-contrib's RecurrentPPO",
        "masks": "environment steps per second with action masks, against the same without",
        "replay": "adding steps, sampling windows and memory, against SB3's replay and cpprb's",
        "core_sizes": "forward and backward pass of each memory core as sizes grow, and updates over 1,000 steps",
        "image_update": "an update over images: trained convolutions, bfloat16, encoding in parts, frozen features",
        "gpu": "an update over images, and acting, on a GPU against the same layers in plain torch",
        "attention_update": "an update of stock DQN with attention against one with NatureCNN",
        "memory_update": "an update of the NTM and of the DNC against pytorch-ntm and the package dnc",
        "vec_env": "environment steps per second of RayVecEnv against SB3's vector environments",
        "r2d2_throughput": "steps per second of R2D2's actors, and the processor time that Ray adds",
        "r2d2_slow_env": "R2D2's actors with environments that wait",
        "r2d2_breakdown": "each part of a trajectory's way from an actor on Ray into the replay",
    },
    "reliability": {
        "faults": "what happens to files and training when something goes wrong, in stock DQN, RecurrentDQN and R2D2",
        "soak": "a long run that is killed and resumed again and again, against one that is left alone",
    },
}
#: Benchmarks whose rows have the same columns (:func:`compared`), so that they make one table; a group of its own
COMPARISONS = [
    *("env_steps", "recurrent_update", "acting", "replay"),
    *("image_update", "attention_update", "time_to_solve", "core_sizes"),
]
QUICK_SCALE = 0.05

#: Packages whose versions are recorded
PACKAGES = ("torch", "numpy", "stable-baselines3", "sb3-contrib", "ray")
#: Seed of evaluations, far from the seeds of training
EVALUATION_SEED = 1_000_000


class Options(NamedTuple):
    """The part of the command line that settings depend on."""

    scale: float = 1.0  # share of the full number of steps, rounds or seconds
    compiled: bool = False  # also measure memories with torch.compile
    peers: Mapping[str, str] = MappingProxyType({})  # "python", an interpreter that has them, and folders of packages

    def scaled(self, number: int, multiple_of: int = 1) -> int:
        """A number of steps or rounds at this scale, rounded down to a multiple but at least one multiple."""
        return max(int(self.scale * number) // multiple_of, 1) * multiple_of


class Context(NamedTuple):
    """Inputs of a run besides its settings."""

    seed: int  # or the number of the repetition
    folder: Path = Path("logs")  # for models and logs
    peers: Mapping[str, str] = MappingProxyType({})  # as in Options


class Run(NamedTuple):
    """A finished run, as the results file holds it."""

    variant: str
    seed: int
    settings: dict[str, Any]  # arguments of `measure`
    machine: dict[str, Any]  # empty for old runs that did not record it
    result: dict[str, Any]  # what `measure` returned


#: Settings of each variant
Settings = dict[str, dict[str, Any]]
#: Runs of each variant, in order of their seeds
Variants = dict[str, list[Run]]
#: Cells of a table by the titles of their columns
Row = dict[str, str]


class Benchmark(NamedTuple):
    """
    A benchmark.

    :param settings: Returns the settings of each variant.
    :param measure: ``measure(context, **settings)`` does one run and returns a result that JSON can hold.
    :param rows: Returns the rows of the table.
    :param seeds: Number of seeds unless ``--seeds`` gives another.
    :param alone: Whether a run needs the machine for itself, so that ``--jobs`` does not apply.
    :param missing: Names what is needed and is not there, in which case nothing is measured.
    :param plot: Draws runs into files; is given their path without a suffix.
    :param quick: Pattern of the variants that ``--quick`` runs.
    """

    settings: Callable[[Options], Settings]
    measure: Callable[..., dict[str, Any]]
    rows: Callable[[Variants], Iterable[Row]]
    seeds: int
    alone: bool = False
    missing: Callable[[], str | None] = lambda: None
    plot: Callable[[Variants, Path], None] | None = None
    quick: str = "*"


def load(name: str) -> Benchmark:
    """Import a benchmark by its name in :data:`GROUPS`."""
    (group,) = (group for group, members in GROUPS.items() if name in members)
    try:
        return importlib.import_module(f"benchmarks.{group}.{name}").BENCHMARK
    except ModuleNotFoundError as error:
        raise SystemExit(f'{name} needs {error.name}; run `pip install -c constraints.txt -e ".[benchmarks,ray]"`.') from error


def read(path: Path) -> list[Run]:
    """The runs of a results file; none if there is no file yet."""
    return [Run(**run) for run in json.loads(path.read_text())] if path.exists() else []


def write(path: Path, runs: Iterable[Run]) -> None:
    """Write a results file, one run per line, and beside it a table for other programs."""
    runs = sorted(runs, key=lambda run: (run.variant, run.seed))
    lines = [json.dumps(run._asdict()) for run in runs]
    with replace_on_success(path, suffix="") as temporary:
        temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    write_csv(path.with_suffix(".csv"), runs)


def write_csv(path: Path, runs: Iterable[Run]) -> None:
    """Write the results of runs as a table, one run per row; nested keys are joined by dots, lists are JSON."""
    records = [{"variant": run.variant, "seed": run.seed, **flat(run.result)} for run in runs]
    columns = dict.fromkeys(key for record in records for key in record)  # an ordered set
    with replace_on_success(path, suffix="") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def flat(result: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The cells of a nested result, by column."""
    cells: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, dict):
            cells |= flat(value, f"{prefix}{key}.")
        else:
            cells[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return cells


def execute(name: str, variant: str, settings: dict[str, Any], context: Context) -> Run:
    """Do one run of a benchmark's variant in this process."""
    th.set_num_threads(1)
    result = load(name).measure(context, **settings)
    machine = {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    machine |= {package: version(package) for package in PACKAGES if find_spec(package.replace("-", "_"))}
    if python := context.peers.get("python"):
        machine |= server.versions(python)
    return Run(variant, context.seed, settings, machine, result)


def processor() -> str:
    """Name of the processor, which Python does not tell on Linux."""
    with suppress(OSError):
        if names := re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()):
            return names[0]
    return platform.processor() or platform.machine()


def complete(
    name: str, options: Options, seeds: int, jobs: int, only: Sequence[str], again: bool, out: Path, logs: Path
) -> list[Run]:
    """
    Do the runs that the results file lacks, and add each to it.

    :param only: Patterns of the names of variants to run; the other parameters are as on the command line.
    :param again: Whether to do also those that it has.
    :return: All runs that the file has then.
    """
    benchmark, path = load(name), out / f"{name}.json"
    settings = {
        variant: values
        for variant, values in benchmark.settings(options).items()
        if any(fnmatchcase(variant, pattern) for pattern in only)
    }
    if not settings:
        print(f"{name}: no variant matches {' '.join(only)}; there are {'; '.join(benchmark.settings(options))}.")
    runs = {(run.variant, run.seed): run for run in read(path)}
    if (missing := benchmark.missing()) is not None:
        print(f"{name} needs {missing}, so nothing was measured.")
        return list(runs.values())
    wanted = [(variant, seed) for seed in range(seeds) for variant in settings]
    with ProcessPoolExecutor(1 if benchmark.alone else jobs, mp_context=get_context("spawn")) as pool:
        futures = []
        for variant, seed in wanted:
            if again or (variant, seed) not in runs or runs[variant, seed].settings != settings[variant]:
                context = Context(seed, logs / name / variant / str(seed), dict(options.peers))
                futures.append(pool.submit(execute, name, variant, settings[variant], context))
        try:
            for future in as_completed(futures):
                run = future.result()
                runs[run.variant, run.seed] = run
                write(path, runs.values())
                numbers = {key: value for key, value in run.result.items() if not isinstance(value, dict | list)}
                print(f"{name}: {run.variant}, seed {run.seed} {numbers or ''}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return list(runs.values())


def in_order(runs: Iterable[Run], settings: Settings) -> Variants:
    """Runs by variant, in the order of the settings."""
    variants: Variants = {variant: [] for variant in settings}
    for run in sorted(runs, key=lambda run: run.seed):
        variants.setdefault(run.variant, []).append(run)
    return {variant: found for variant, found in variants.items() if found}


def report(title: str, results: Mapping[str, Iterable[Run]], options: Options, out: Path) -> str:
    """One table of the runs of benchmarks, by their names, and the machines; also draws their pictures."""
    rows: list[Row] = []
    machines = []
    for name, runs in results.items():
        benchmark = load(name)
        if variants := in_order(runs, benchmark.settings(options)):
            rows += benchmark.rows(variants)
            machines += [run.machine for found in variants.values() for run in found if run.machine]
            if benchmark.plot is not None:
                benchmark.plot(variants, out / name)
    return f"\n## {title}\n\n{table(rows)}\n\n{where(machines)}\n" if rows else f"\n## {title}\n\nNo runs yet.\n"


def table(rows: Iterable[Row]) -> str:
    """A Markdown table."""
    titles, *_ = rows = list(rows)
    lines = (titles, ["---"] * len(titles), *(row.values() for row in rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def compared(measured: str, ours: str, other: str, theirs: str, ratio: float, note: str = "") -> Row:
    """A row of a benchmark in :data:`COMPARISONS`; the ratio is ours to theirs."""
    cells = {"measured": measured, "ours": ours, "compared with": other, "theirs": theirs}
    return cells | {"ours / theirs": f"{ratio:.2f}", "note": note}


def where(machines: Sequence[Mapping[str, Any]]) -> str:
    """The machines of runs in a sentence; nothing if none was recorded."""
    kinds = {", ".join(f"{key} {value}" for key, value in machine.items() if key != "load") for machine in machines}
    loads = [machine["load"] for machine in machines]
    return f"{'; '.join(sorted(kinds))}; load {min(loads):.1f} to {max(loads):.1f} at the end of a run." if machines else ""


def values(runs: Iterable[Run], *keys: str) -> list[Any]:
    """The value that each run has in its result under a path of keys."""
    return [reduce(lambda value, key: value[key], keys, run.result) for run in runs]


def each(numbers: Iterable[float | None], form: str = ".2f") -> str:
    """A cell with the number of each seed, a dash where there is none."""
    return ", ".join("-" if number is None else format(number, form) for number in numbers)


def listing() -> str:
    """One line about each benchmark."""
    lines = []
    for group, members in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:18}{summary}" for name, summary in members.items())]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ``None`` takes it from ``sys.argv``."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Without a name: list the benchmarks.")
    names = [name for members in GROUPS.values() for name in members]
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks, groups of them, or comparisons")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds, from 0, instead of the benchmark's own")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="number of runs at a time, unless they are timed")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="variants to run, such as 'copy, *'")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="share of the full size, to try a benchmark out")
    parser.add_argument("--quick", action="store_true", help="all benchmarks, or those named, with short settings")
    parser.add_argument("--again", action="store_true", help="also do the runs that the results already have")
    parser.add_argument("--report", action="store_true", help="run nothing, print the tables of finished runs")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="results: benchmarks/results, temporary at another scale")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="models and logs: logs/benchmarks, or temporary likewise")
    parser.add_argument("--compiled", action="store_true", help="memory_update: with torch.compile, too; needs a C++ compiler")
    peers = parser.add_argument_group("packages to compare with")
    peers.add_argument("--peers", metavar="PYTHON", help="an interpreter that has Tianshou, TorchRL and cpprb")
    peers.add_argument("--pytorch-ntm", metavar="FOLDER", help="a checkout of loudinthecloud/pytorch-ntm")
    peers.add_argument("--dnc", metavar="FOLDER", help="the folder that has the package dnc")
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.names if name not in ("comparisons", *GROUPS, *names)]:
        parser.error(f"{', '.join(unknown)}: no such benchmark. There are:\n{listing()}")
    if args.jobs < 1 or args.scale <= 0 or (args.seeds is not None and args.seeds < 1):
        parser.error("--seeds, --jobs and --scale have to be positive.")
    if args.quick:
        args.names, args.scale, args.seeds = args.names or names, QUICK_SCALE, 1
    args.one_table = args.names == ["comparisons"]
    args.names = [name for given in args.names for name in {"comparisons": COMPARISONS, **GROUPS}.get(given, [given])]
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ``None`` takes it from ``sys.argv``."""
    args = parse(arguments)
    if not args.names:
        print(listing())
    paths = {"python": args.peers, "pytorch-ntm": args.pytorch_ntm, "dnc": args.dnc}
    options = Options(args.scale, args.compiled, {name: path for name, path in paths.items() if path})
    with tempfile.TemporaryDirectory() as temporary:
        is_full = args.scale == 1
        out = args.out or Path("benchmarks/results" if is_full else temporary)
        logs = args.logs or Path("logs/benchmarks" if is_full else f"{temporary}/logs")
        results = {}
        for name in args.names:
            seeds = 0 if args.report else args.seeds or load(name).seeds
            only = args.only or ([load(name).quick] if args.quick else ["*"])
            results[name] = complete(name, options, seeds, args.jobs, only, args.again, out, logs)
            if not args.one_table:
                print(report(name, {name: results[name]}, options, out), flush=True)
        if args.one_table:
            print(report("ours, peers and limits", results, options, out))
