"""
An update of stock DQN with attention, against one with NatureCNN: 84 x 84 x 4, batch 32, one thread.

    python -m benchmarks.attention_speed

All networks take turns, and each is reported by the median of its CPU time.
"""

import argparse
import time
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN

from sb3_attn import DQNSAPolicy, HardAttentionPolicy, SelfAttentionPolicy, SoftAttentionPolicy

POLICIES = {
    "NatureCNN": "CnnPolicy",
    "soft attention": SoftAttentionPolicy,
    "hard attention": HardAttentionPolicy,
    "DQN-SA": DQNSAPolicy,
    "self-attention": SelfAttentionPolicy,
}


class Noise(gym.Env[np.ndarray, np.int64]):
    """Random frames of Atari's size."""

    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def filled(policy: Any) -> DQN:
    """
    A model with frames in its replay.

    :param policy: As for DQN.
    """
    model = DQN(policy, Noise(), buffer_size=1000, learning_starts=10_000, device="cpu", seed=0)
    model.learn(500)
    return model


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: Its arguments; ``None`` takes them from ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="measurements of each network")
    rounds = parser.parse_args(arguments).rounds
    th.set_num_threads(1)
    models = {name: filled(policy) for name, policy in POLICIES.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(rounds + 3):
        for name, model in models.items():
            start = time.process_time()
            model.train(1, 32)
            if round_ >= 3:  # the first ones warm caches up
                times[name].append(1000 * (time.process_time() - start))
    print("| network | parameters | update | of NatureCNN's |\n|---|---|---|---|")
    for name, model in models.items():
        n_parameters = sum(parameter.numel() for parameter in model.q_net.parameters())
        ratio = median(ours / stock for ours, stock in zip(times[name], times["NatureCNN"], strict=True))
        print(f"| {name} | {n_parameters:,} | {median(times[name]):.1f} ms | {ratio:.2f} |")


if __name__ == "__main__":
    main()
