"""
RecurrentDQN with one of its defaults changed at a time, on control without velocities and on a cue.

The score is that of ``first_try``: the last model, greedy, over 100 episodes. The difference to the defaults has the bootstrap
interval of the difference of means over seeds.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from benchmarks.learning.first_try import FORMER_DEFAULTS, make_envs, score
from benchmarks.learning.zoo import N_EPISODES
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn import LSTMCore, RecurrentDQN
from sb3_attn.common.core_state import CoreState
from sb3_attn.memory.rnn import LSTMState

#: Number of training steps; LunarLander's is a third of what `first_try` gives it
TASKS = {
    "CartPoleNoVel-v1": 50_000,
    "MemoryChain-v0": 20_000,
    "MemoryChain-v0/100": 25_000,
    "LunarLanderNoVel-v3": 100_000,
}


class LayerNormBefore(LSTMCore):
    """An LSTM whose inputs are normalized."""

    def __init__(self, input_size: int, hidden_size: int = 64) -> None:
        super().__init__(input_size, hidden_size)
        self.norm = nn.LayerNorm(input_size)

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, LSTMState]:
        return super().forward(self.norm(inputs), state)

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, LSTMState]:
        return super().unroll(self.norm(inputs), state)


class LayerNormAfter(LSTMCore):
    """An LSTM whose outputs are normalized, but not those that it feeds back."""

    def __init__(self, input_size: int, hidden_size: int = 64) -> None:
        super().__init__(input_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, LSTMState]:
        output, state = super().forward(inputs, state)
        return self.norm(output), state

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, LSTMState]:
        outputs, state = super().unroll(inputs, state)
        return self.norm(outputs), state


class SlowMemory(RecurrentDQN):
    """RecurrentDQN with a tenth of the learning rate for all up to the core's outputs (RESeL, Luo et al. 2024)."""

    def _setup_model(self) -> None:
        super()._setup_model()
        (group,) = self.policy.optimizer.param_groups
        head = {id(parameter) for parameter in self.policy.q_net.head.parameters()}
        slow = [parameter for parameter in group["params"] if id(parameter) not in head]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) in head]
        self.policy.optimizer.add_param_group({"params": slow})

    def _update_learning_rate(self, optimizers: th.optim.Optimizer | list[th.optim.Optimizer]) -> None:
        super()._update_learning_rate(optimizers)
        self.policy.optimizer.param_groups[1]["lr"] *= 0.1


class Change(NamedTuple):
    """
    A change of the defaults.

    :param arguments: Arguments of RecurrentDQN.
    :param policy: Entries of ``policy_kwargs``.
    :param algorithm: The class.
    """

    arguments: dict[str, Any]
    policy: dict[str, Any]
    algorithm: type[RecurrentDQN] = RecurrentDQN


CHANGES = {
    "defaults": Change({}, {}),
    "one forget bias of 3": Change({}, {"core_kwargs": {"forget_bias": 3.0}}),
    "learning rate 5e-4": Change({"learning_rate": 5e-4}, {}),
    "learning rate falls to 0": Change({"learning_rate": "linear"}, {}),
    "learning rate rises over 5 % of the steps": Change({"learning_rate": "warm-up"}, {}),
    "a tenth of it up to the head": Change({}, {}, SlowMemory),
    "two layers": Change({}, {"core_kwargs": {"num_layers": 2}}),
    "GRU": Change({}, {"core": "gru"}),
    "GRU of two layers": Change({}, {"core": "gru", "core_kwargs": {"num_layers": 2}}),
    "vanilla RNN": Change({}, {"core": "rnn"}),
    "CTRNN": Change({}, {"core": "ctrnn"}),
    "minGRU": Change({}, {"core": "mingru"}),
    "LayerNorm before the LSTM": Change({}, {"core": LayerNormBefore}),
    "LayerNorm after the LSTM": Change({}, {"core": LayerNormAfter}),
    "Polyak targets": Change({"tau": 0.02, "target_update_interval": 40}, {}),  # after four updates: 0.005 for each
    "acting without average": Change({}, {"ema_decay": 0.0}),
    "hidden layer of 64": Change({}, {"net_arch": [64]}),
    "lambda 0.8": Change({"td_lambda": 0.8}, {}),
    "Peng's Q(lambda)": Change({"trace_tolerance": None}, {}),
    "twice the updates": Change({"train_freq": 5, "gradient_steps": 8}, {}),
    "rewards as they come": Change({"reward_scaling": False}, {}),
    "quantile head": Change({}, {"head": "quantile"}),
    "Munchausen": Change({"munchausen_alpha": 0.9}, {}),
}
#: Each also with former defaults
CHANGES |= {
    f"{former}, {name}": change._replace(arguments=change.arguments | arguments)
    for former, arguments in FORMER_DEFAULTS.items()
    for name, change in CHANGES.items()
}


def learning_rate(name: str) -> Any:
    """A schedule by name, since JSON has none."""
    if name == "linear":
        return LinearSchedule(1e-3, 0.0, 1.0)
    return lambda progress_remaining: 1e-3 * min(1.0, (1 - progress_remaining) / 0.05)


def settings(options: Options) -> Settings:
    """A variant "task, change" for each; ``--only`` selects."""
    return {
        f"{task}, {name}": {"task": task, "n_steps": options.scaled(n_steps), "change": name}
        for name in CHANGES
        for task, n_steps in TASKS.items()
    }


def measure(context: Context, task: str, n_steps: int, change: str) -> dict[str, Any]:
    """Train once; returns the score."""
    arguments, policy_kwargs, algorithm = CHANGES[change]
    if isinstance(rate := arguments.get("learning_rate"), str):
        arguments = {**arguments, "learning_rate": learning_rate(rate)}
    env = make_envs(task, 8, context.seed)
    model = algorithm("MlpPolicy", env, seed=context.seed, device="cpu", policy_kwargs=policy_kwargs, **arguments)
    model.learn(n_steps)
    return {"score": score(model, make_envs(task, 10, EVALUATION_SEED), N_EPISODES)}


def rows(variants: Variants) -> Iterator[Row]:
    """A variant a row, with its difference to the defaults."""
    rng = np.random.default_rng(0)
    for name, runs in variants.items():
        task, _, change = name.partition(", ")
        form = ".0f" if task.startswith(("CartPole", "LunarLander")) else ".2f"
        former, _, _ = change.rpartition(", ")
        base = f"{former}, defaults" if former else "defaults"
        scores, defaults = (np.array(values(r, "score")) for r in (runs, variants.get(f"{task}, {base}", [])))
        row = {"task": task, "change": change, "seeds": str(len(runs)), "mean": format(scores.mean(), form)}
        difference = ""
        if change != base and len(defaults) > 1 and len(scores) > 1:
            means = [rng.choice(array, (10_000, len(array))).mean(axis=1) for array in (scores, defaults)]
            low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
            difference = f"{format(low, form)} to {format(high, form)}"
        yield row | {"each seed": each(list(scores), form), "difference to the defaults, 95 %": difference}


BENCHMARK = Benchmark(settings, measure, rows, seeds=10, quick="MemoryChain-v0/100, defaults")
