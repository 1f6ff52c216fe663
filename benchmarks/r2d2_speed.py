"""How fast R2D2's actors are, what processor time Ray costs, and whether more of them are faster."""

import os
import time
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.processes import family
from benchmarks.reference import MaskedCartPole
from sb3_attn import R2D2

#: Number of trajectories of each actor before measurements begin, among them what was done ahead of the learner at the start
WARM_UP = 3

ALONE, BESIDE_ANOTHER = "in process", "in process, beside another"

ROLLOUT_LENGTH = 80
ENVS_PER_ACTOR = 8
IN_PROCESS = 0
N_ACTORS = (1, 2, 4, 8)

#: Seconds that an environment sleeps for a step
STEP_TIME = 0.005


class Snapshot(NamedTuple):
    """
    How far a run has come.

    :param seconds: time
    :param n_steps: number of steps received
    :param n_windows: number of windows that the replay has had
    :param cpu_seconds: processor time of each process, with what it is: learner, actors or Ray
    """

    seconds: float
    n_steps: int
    n_windows: int
    cpu_seconds: dict[int, tuple[str, float]]


class Stretch(BaseCallback):
    """
    Measures from when each actor has answered :data:`WARM_UP` times until each has answered some times more, and ends there.

    So it goes over whole trajectories, and starting processes does not count.

    :param n_trajectories: number of trajectories of each actor
    """

    def __init__(self, n_trajectories: int) -> None:
        super().__init__()
        self.n_trajectories = n_trajectories
        self.first: Snapshot | None = None
        self.last: Snapshot | None = None

    def _on_step(self) -> bool:
        return self.last is None

    def _on_rollout_end(self) -> None:
        n_answers = self._n_answers()
        if self.first is None and n_answers >= WARM_UP:
            self.first = self._snapshot()
        elif self.last is None and n_answers >= WARM_UP + self.n_trajectories:
            self.last = self._snapshot()

    def _n_answers(self) -> int:
        """Number of trajectories that each actor has sent, at least."""
        model = self.model
        assert isinstance(model, R2D2)
        n_sent = model.step_ledger.n_steps_sent.values()
        return min(n_sent) // (model.rollout_length * model.n_envs) if len(n_sent) == max(model.n_actors, 1) else 0

    def _snapshot(self) -> Snapshot:
        cpu_seconds = {}
        for pid, process in family(os.getpid()).items():
            kind = "learner" if pid == os.getpid() else "actors" if process.is_actor else "ray"
            cpu_seconds[pid] = kind, process.cpu_seconds
        n_windows = self.model.replay_buffer.n_windows_added  # type: ignore[attr-defined]
        return Snapshot(time.perf_counter(), self.num_timesteps, n_windows, cpu_seconds)

    def rates(self) -> dict[str, Any]:
        """Steps and windows per second, and milliseconds of processor time per step."""
        first, last = self.first, self.last
        assert first is not None and last is not None
        seconds, n_steps = last.seconds - first.seconds, last.n_steps - first.n_steps
        cpu_seconds = dict.fromkeys(("learner", "actors", "ray"), 0.0)
        for pid, (kind, used) in last.cpu_seconds.items():
            cpu_seconds[kind] += used - first.cpu_seconds.get(pid, (kind, 0.0))[1]
        return {
            "steps": n_steps,
            "seconds": seconds,
            "steps_per_second": n_steps / seconds,
            "windows_per_second": (last.n_windows - first.n_windows) / seconds,
            "cpu_seconds_per_1000_steps": {kind: 1000 * used / n_steps for kind, used in cpu_seconds.items()},
        }


def act(seed: int, env: Any, n_actors: int, envs_per_actor: int, n_trajectories: int, hidden_size: int) -> dict[str, Any]:
    """
    Run actors without learning, with the paper's windows.

    :param seed: seed of the run
    :param env: makes an environment
    :param n_actors: number of actors on Ray, or :data:`IN_PROCESS`
    :param envs_per_actor: number of environments of each
    :param n_trajectories: number of trajectories of each to measure
    :param hidden_size: of the LSTM
    :return: as :meth:`Stretch.rates` returns it
    """
    on_ray: dict[str, Any] = dict(backend="ray", backend_kwargs=dict(cpus_per_actor=0.2))  # of 2 cores each has some
    model = R2D2(
        "MlpPolicy",
        env,
        buffer_size=100_000,
        learning_starts=10**9,
        trace_length=80,
        burn_in_length=40,
        sequence_period=40,
        rollout_length=ROLLOUT_LENGTH,
        n_actors=n_actors,
        envs_per_actor=envs_per_actor,
        policy_kwargs=dict(core_kwargs=dict(hidden_size=hidden_size), encoder_arch=[64], net_arch=[hidden_size]),
        seed=seed,
        device="cpu",
        **({} if n_actors == IN_PROCESS else on_ray),
    )
    stretch = Stretch(n_trajectories)
    model.learn(10**9, callback=stretch)
    return stretch.rates()


def throughput_settings(scale: float) -> dict[str, dict[str, Any]]:
    """
    The arguments of :func:`throughput` for each number of actors.

    :param scale: share of the 120,000 steps
    """
    names = {IN_PROCESS: ALONE, 1: "Ray, 1 actor", 2: "Ray, 2 actors", 4: "Ray, 4 actors"}
    settings = {name: {"n_actors": n_actors, "n_steps": int(scale * 120_000)} for n_actors, name in names.items()}
    return {BESIDE_ANOTHER: {**settings[ALONE], "beside_another": True}, **settings}


def throughput(seed: int, n_actors: int, n_steps: int, beside_another: bool = False) -> dict[str, Any]:
    """
    Actors in episodes of 500 steps of CartPole without velocities.

    :param seed: seed of the run
    :param n_actors: number of actors on Ray, or :data:`IN_PROCESS`
    :param n_steps: number of steps to measure
    :param beside_another: while another process does the same
    """
    n_trajectories = max(n_steps // (ROLLOUT_LENGTH * ENVS_PER_ACTOR * max(n_actors, 1)), 1)
    env = partial(MaskedCartPole, full_windows=True)
    arguments = seed, env, n_actors, ENVS_PER_ACTOR, n_trajectories, 128
    if not beside_another:
        return act(*arguments)
    context = get_context("spawn")
    ready = context.Event()
    other = context.Process(target=act_for_ever, args=(ready, *arguments))
    other.start()
    ready.wait()
    rates = act(*arguments)
    other.kill()
    rates["cpu_seconds_per_1000_steps"]["ray"] = 0.0  # it was the other's
    return rates


def act_for_ever(ready: Any, *arguments: Any) -> None:
    """
    Run :func:`act` again and again.

    :param ready: an event, set when the first run is about to begin
    :param arguments: of :func:`act`
    """
    ready.set()
    while True:
        act(*arguments)


def throughput_report(runs: list[dict[str, Any]]) -> str:
    """
    The medians as a Markdown table, a number of actors a row.

    The tax is what all processes of a run cost more than one process without Ray, alone or while another keeps the other
    core busy, which makes each slower; compared within each round.

    :param runs: as :func:`throughput` returns them, with the names of what was measured
    """
    lines = [
        "| actors | steps/s | windows/s | CPU s per 1000 steps: learner | actors | Ray's own | tax | tax, cores busy |",
        "|---|" + "---|" * 7,
    ]
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_name.setdefault(run["network"], {})[run["seed"]] = run
    for name, rows in by_name.items():
        rates = [f"{median(row[rate] for row in rows.values()):,.0f}" for rate in ("steps_per_second", "windows_per_second")]
        costs = {seed: row["cpu_seconds_per_1000_steps"] for seed, row in rows.items()}
        parts = [f"{median(cost[kind] for cost in costs.values()):.3f}" for kind in ("learner", "actors", "ray")]
        taxes = []
        for without_ray in (ALONE, BESIDE_ANOTHER):
            ratios = [
                sum(cost.values()) / other["cpu_seconds_per_1000_steps"]["learner"]
                for seed, cost in costs.items()
                if (other := by_name.get(without_ray, {}).get(seed)) is not None
            ]
            taxes.append(f"{100 * (median(ratios) - 1):+.0f} %" if ratios and name.startswith("Ray") else "-")
        lines.append(f"| {' | '.join([name, *rates, *parts, *taxes])} |")
    return "\n".join(lines)


class Sleeper(gym.Env):
    """Takes its time for a step, as an environment does that waits for a simulator; its only episode does not end."""

    observation_space = spaces.Box(0, 1, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the episode."""
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Sleep for :data:`STEP_TIME`."""
        time.sleep(STEP_TIME)
        return np.zeros(4, np.float32), 0.0, False, False, {}


def sleeping_settings(scale: float) -> dict[str, dict[str, Any]]:
    """
    The arguments of :func:`sleeping` for each number of environments and actors.

    :param scale: share of the 20 seconds of a measurement
    """
    return {
        f"{n_envs} x {n_actors}": {"n_actors": n_actors, "envs_per_actor": n_envs, "seconds": scale * 20}
        for n_envs in (1, ENVS_PER_ACTOR)
        for n_actors in N_ACTORS
    }


def sleeping(seed: int, n_actors: int, envs_per_actor: int, seconds: float) -> dict[str, Any]:
    """
    Actors whose environments sleep.

    :param seed: seed of the run
    :param n_actors: number of actors on Ray
    :param envs_per_actor: number of environments of each, which sleep one after the other
    :param seconds: what the steps to measure take if they do nothing but sleep
    """
    n_trajectories = max(round(seconds / (ROLLOUT_LENGTH * envs_per_actor * STEP_TIME)), 1)
    return act(seed, Sleeper, n_actors, envs_per_actor, n_trajectories, hidden_size=32)


def sleeping_report(runs: list[dict[str, Any]]) -> str:
    """The medians as a Markdown table, a number of environments and actors a row."""
    lines = [
        "| environments per actor | actors | steps/s | times one actor | of linear | of sleeping alone |",
        "|---|" + "---|" * 5,
    ]
    rates: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        settings = run["settings"]
        rates.setdefault((settings["envs_per_actor"], settings["n_actors"]), []).append(run["steps_per_second"])
    for (n_envs, n_actors), values in sorted(rates.items()):
        rate = median(values)
        ratio = rate / median(rates[n_envs, 1])
        lines.append(
            f"| {n_envs} | {n_actors} | {rate:,.0f} | {ratio:.2f} | {100 * ratio / n_actors:.0f} % "
            f"| {100 * rate * STEP_TIME / n_actors:.0f} % |"
        )
    return "\n".join(lines)
