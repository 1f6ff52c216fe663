"""
Processor time until a greedy score of 0.95, on two tasks that need a memory: RecurrentDQN's defaults against RecurrentPPO.

RecurrentPPO gets the settings below, one guess, which solves both tasks; those of ``first_try`` solve neither in its number of
steps. The time of evaluations does not count.
"""

from collections.abc import Iterator
from statistics import median
from typing import Any

from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm

from benchmarks.learning.first_try import TASKS, Curve, make_envs
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, compared
from sb3_attn import RecurrentDQN

NAMES = ("MemoryChain-v0", "popgym-RepeatFirstEasy-v0")
BAR = 0.95
#: Steps between evaluations, a rollout of RecurrentPPO, and episodes of one
EVALUATION_PERIOD, N_EPISODES = 1024, 50
MAX_SECONDS, MAX_STEPS = 120.0, 1_000_000
RECURRENT_PPO: dict[str, Any] = dict(
    learning_rate=1e-3,
    n_steps=64,
    batch_size=256,
    ent_coef=0.01,
    policy_kwargs=dict(lstm_hidden_size=64, shared_lstm=True, enable_critic_lstm=False),
)
#: Number of environments of each agent
N_ENVS = {"RecurrentDQN": 8, "RecurrentPPO": 16}


def settings(options: Options) -> Settings:
    """A variant for each task and agent."""
    max_seconds = options.scale * MAX_SECONDS
    return {
        f"{task}, {agent}": {"task": task, "agent": agent, "max_seconds": max_seconds} for task in NAMES for agent in N_ENVS
    }


class UntilSolved(Curve):
    """
    Scores the model at every ``EVALUATION_PERIOD`` steps until the score is good enough or the time is used up.

    :param env: The environments to score it in.
    :param max_seconds: The processor time.
    """

    def __init__(self, env: Any, max_seconds: float) -> None:
        super().__init__(env, n_steps=0)
        self.max_seconds = max_seconds
        self.solved_after: float | None = None

    def _on_step(self) -> bool:
        if self.num_timesteps >= (len(self.points) + 1) * EVALUATION_PERIOD:
            seconds = self.seconds
            self.points.append(self.score(N_EPISODES))
            if self.points[-1] >= BAR:
                self.solved_after = seconds
        return self.solved_after is None and self.seconds < self.max_seconds


def measure(context: Context, task: str, agent: str, max_seconds: float) -> dict[str, Any]:
    """Train until the task is solved; returns the seconds until then, if it was, the number of steps and the scores."""
    env = make_envs(task, N_ENVS[agent], context.seed)
    until_solved = UntilSolved(make_envs(task, 10, EVALUATION_SEED), max_seconds)
    if agent == "RecurrentDQN":
        model: BaseAlgorithm = RecurrentDQN("MlpPolicy", env, seed=context.seed, device="cpu")
        n_steps = TASKS[task].n_steps  # its exploration depends on them
    else:
        n_steps = MAX_STEPS
        model = RecurrentPPO("MlpLstmPolicy", env, seed=context.seed, device="cpu", **RECURRENT_PPO)
    model.learn(n_steps, callback=until_solved)
    return {"seconds": until_solved.solved_after, "steps": model.num_timesteps, "scores": until_solved.points}


def rows(variants: Variants) -> Iterator[Row]:
    """A task a row."""
    for task in NAMES:
        sides = [variants.get(f"{task}, {agent}", []) for agent in N_ENVS]
        if all(sides):
            times = [median(run.result["seconds"] or run.settings["max_seconds"] for run in runs) for runs in sides]
            solved = [f"{sum(run.result['seconds'] is not None for run in runs)} of {len(runs)}" for runs in sides]
            max_seconds = sides[0][0].settings["max_seconds"]
            note = f"solved by {solved[0]} and {solved[1]} seeds; others count as {max_seconds:g} s"
            cells = [f"{time:.1f} s" for time in times]
            yield compared(f"until {task} is solved", cells[0], "RecurrentPPO", cells[1], times[0] / times[1], note)


BENCHMARK = Benchmark(settings, measure, rows, seeds=5, alone=True)
