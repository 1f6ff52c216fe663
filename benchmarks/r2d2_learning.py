"""What R2D2 learns on Ray, undisturbed and while its actors are killed, and how well it holds samples per insert."""

import importlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import yaml

from benchmarks.learning import score
from benchmarks.processes import family
from benchmarks.reference import MaskedCartPole
from sb3_attn import R2D2
from sb3_attn.zoo import register, zoo_config_path

TASKS = ("MemoryChain-v0", "popgym-RepeatFirstEasy-v0")

ON_RAY: dict[str, Any] = dict(n_actors=2, envs_per_actor=8, backend="ray", backend_kwargs={"cpus_per_actor": 0.5})

#: Who acts, and every how many seconds one of them is killed; the same number of environments everywhere
SETUPS: dict[str, tuple[dict[str, Any], float | None]] = {
    "in process": (dict(n_actors=0, envs_per_actor=16), None),
    "Ray": (ON_RAY, None),
    "Ray, actors killed": (ON_RAY, 10.0),
}

RATIOS = (1, 4, 8)


def learning_settings(scale: float) -> dict[str, dict[str, Any]]:
    """
    The arguments of :func:`learning` for each task and setup.

    :param scale: share of the YAML's steps to train for
    """
    settings = {}
    entries = yaml.safe_load(zoo_config_path("r2d2").read_text())
    for task in TASKS:
        hyperparameters = {name: value for name, value in entries[task].items() if name not in ("n_envs", "n_timesteps")}
        for name, (setup, kill_every) in SETUPS.items():
            settings[f"{task}, {name}"] = {
                "task": task,
                "n_steps": int(scale * entries[task]["n_timesteps"]),
                "hyperparameters": {**hyperparameters, **setup},
                "kill_every": kill_every,
            }
    return settings


def learning(seed: int, task: str, n_steps: int, hyperparameters: dict[str, Any], kill_every: float | None) -> dict[str, Any]:
    """
    Train once and score the last model.

    :param seed: seed of the run
    :param task: id of the environment
    :param n_steps: number of steps to train for
    :param hyperparameters: arguments of R2D2
    :param kill_every: seconds after which an actor's process is killed, again and again; ``None`` means never
    :return: score, and what the run says of itself
    """
    register()
    importlib.import_module("rl_zoo3.import_envs")
    model = R2D2(env=task, seed=seed, device="cpu", **hyperparameters)
    start = time.perf_counter()
    with killing(kill_every, seed) as killed:
        model.learn(n_steps)
    seconds = time.perf_counter() - start
    returns = score(model, task, {})
    return {
        "score": float(np.mean(returns)),
        "standard_error": float(np.std(returns, ddof=1) / np.sqrt(len(returns))),
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "seconds": seconds,
        "kills": len(killed),
        "accounts": {
            "sent": sum(model.step_ledger.n_steps_sent.values()),
            "received": model.step_ledger.n_steps_received,
            "inserted": model.step_ledger.n_steps_inserted,
            "rejected": dict(model.step_ledger.n_steps_rejected),
            "restarts": model.step_ledger.n_restarts,
        },
        "samples_per_insert": model.n_windows_sampled / max(model.n_windows_inserted, 1),
        "policy_lag": float(np.mean(model._collection.rates.policy_lags)),  # type: ignore[union-attr]  # of the last 100
    }


@contextmanager
def killing(every: float | None, seed: int) -> Iterator[list[int]]:
    """
    Kill the process of an actor on Ray again and again while the block runs.

    :param every: seconds from one to the next; ``None`` means never
    :param seed: for the choice among the actors
    :return: ids of the processes that were killed
    """
    killed: list[int] = []
    rng, stop = random.Random(seed), threading.Event()

    def kill() -> None:
        while not stop.wait(every):
            pids = [pid for pid, process in family(os.getpid()).items() if process.is_actor]
            with suppress(IndexError, ProcessLookupError):  # there is none just now, or it has just ended
                pid = rng.choice(pids)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)  # without an interval it waits for the end
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def learning_report(runs: list[dict[str, Any]]) -> str:
    """The runs as a Markdown table, a row each."""
    lines = [
        "| run | seed | score | steps | seconds | kills | restarts | sent | received | inserted | rejected "
        "| samples per insert | policy lag |",
        "|---|" + "---|" * 12,
    ]
    for run in runs:
        books = run["accounts"]
        rejected = ", ".join(f"{n_steps:,} ({reason})" for reason, n_steps in books["rejected"].items()) or "0"
        steps = " | ".join(f"{books[name]:,}" for name in ("sent", "received", "inserted"))
        asked = run["settings"]["hyperparameters"]["samples_per_insert"]
        lines.append(
            f"| {run['network']} | {run['seed']} | {run['score']:.2f} | {run['steps']:,} | {run['seconds']:.0f} "
            f"| {run['kills']} | {books['restarts']} | {steps} | {rejected} "
            f"| {run['samples_per_insert']:.2f}, asked for {asked:g} | {run['policy_lag']:.1f} |"
        )
    return "\n".join(lines)


def ratio_settings(scale: float) -> dict[str, dict[str, Any]]:
    """
    The arguments of :func:`ratio` for each value of ``samples_per_insert``.

    :param scale: share of the 20,000 steps
    """
    return {f"samples_per_insert={value}": {"samples_per_insert": value, "n_steps": int(scale * 20_000)} for value in RATIOS}


def ratio(seed: int, samples_per_insert: float, n_steps: int) -> dict[str, Any]:
    """
    How often windows were drawn, on average.

    :param seed: seed of the run
    :param samples_per_insert: how often they should be
    :param n_steps: number of steps to train for
    """
    model = R2D2(
        "MlpPolicy",
        partial(MaskedCartPole, full_windows=False),
        buffer_size=50_000,
        learning_starts=1000,
        batch_size=32,
        trace_length=20,
        burn_in_length=10,
        sequence_period=10,
        samples_per_insert=samples_per_insert,
        policy_kwargs=dict(core_kwargs=dict(hidden_size=32), encoder_arch=[32], net_arch=[32]),
        seed=seed,
        device="cpu",
        **ON_RAY,
    )
    model.learn(n_steps)
    measured = model.n_windows_sampled / max(model.n_windows_inserted, 1)
    return {
        "inserted": model.n_windows_inserted,
        "sampled": model.n_windows_sampled,
        "updates": model._n_updates,
        "ratio": measured,
        "deviation": measured / samples_per_insert - 1,
    }


def ratio_report(runs: list[dict[str, Any]]) -> str:
    """The runs as a Markdown table, a row each."""
    lines = ["| asked for | seed | windows inserted | drawn | updates | ratio | deviation |", "|---|" + "---|" * 6]
    lines += [
        f"| {run['settings']['samples_per_insert']:g} | {run['seed']} | {run['inserted']:,} | {run['sampled']:,} "
        f"| {run['updates']:,} | {run['ratio']:.3f} | {100 * run['deviation']:+.1f} % |"
        for run in runs
    ]
    return "\n".join(lines)
