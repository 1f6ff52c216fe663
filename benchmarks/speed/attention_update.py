"""An update of stock DQN with attention against one with NatureCNN: 84 x 84 x 4 pixels, batch 32."""

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

from stable_baselines3 import DQN
from stable_baselines3.common.envs import FakeImageEnv

from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, compared, values
from benchmarks.speed.turns import cpu_milliseconds, in_turn, medians, ratio
from sb3_attn import DQNSAPolicy, HardAttentionPolicy, SelfAttentionPolicy, SoftAttentionPolicy

POLICIES: dict[str, Any] = {
    "NatureCNN": "CnnPolicy",
    "soft attention": SoftAttentionPolicy,
    "hard attention": HardAttentionPolicy,
    "DQN-SA": DQNSAPolicy,
    "self-attention": SelfAttentionPolicy,
}


def settings(options: Options) -> Settings:
    """One variant, with all networks."""
    return {"84 x 84 x 4, batch 32": {"rounds": options.scaled(50)}}


def measure(context: Context, rounds: int) -> dict[str, Any]:
    """Measure all networks in turn; returns parameters and milliseconds of each, and the ratio to NatureCNN's."""
    models = {}
    for name, policy in POLICIES.items():
        env = FakeImageEnv(action_dim=4, n_channels=4, channel_first=True)
        models[name] = DQN(policy, env, buffer_size=1000, learning_starts=10_000, device="cpu", seed=context.seed)
        models[name].learn(500)  # fills the replay
    updates = {name: cpu_milliseconds(partial(model.train, 1, batch_size=32)) for name, model in models.items()}
    times = in_turn(updates, rounds, warm_up=3)
    return {
        "parameters": {name: sum(p.numel() for p in model.q_net.parameters()) for name, model in models.items()},
        "milliseconds": medians(times),
        "ratios": {name: ratio(times[name], times["NatureCNN"]) for name in times},
        "rounds": times,
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A network with attention a row."""
    for name, runs in variants.items():
        parameters, (base, *others) = runs[0].result["parameters"], POLICIES
        times = {network: f"{median(values(runs, 'milliseconds', network)):.1f} ms" for network in parameters}
        for network in others:
            share = median(values(runs, "ratios", network))
            note = f"{parameters[network]:,} parameters, {base} {parameters[base]:,}"
            yield compared(f"update of DQN, {name}: {network}", times[network], base, times[base], share, note)


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
