"""cpprb's prioritized replay, which is filled and sampled on command; see :mod:`benchmarks.peers.server`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.environments import FULL_EPISODE
from benchmarks.peers.server import serve
from benchmarks.peers.sizes import BATCH_SIZE, BURN_IN, TRACE
from benchmarks.speed.turns import allocated_bytes, cpu_milliseconds

#: Steps in the replay, and in the one whose memory is measured
N_STEPS = 100_000
IMAGE_SHAPE = (84, 84, 1)
N_SAMPLED = BATCH_SIZE * (BURN_IN + TRACE)


def make_replay(n_steps: int, obs_shape: tuple[int, ...], dtype: type) -> Any:
    """A replay that stores each observation once."""
    from cpprb import PrioritizedReplayBuffer

    fields = {"obs": {"shape": obs_shape, "dtype": dtype}, "act": {"dtype": np.int64}, "rew": {}, "done": {}}
    return PrioritizedReplayBuffer(n_steps, fields, next_of="obs")


def make_functions() -> dict[str, Callable[[int], float]]:
    """Milliseconds of so many calls to add a step, or to sample and set priorities; bytes of a replay for so many images."""
    replay = make_replay(N_STEPS, (4,), np.float32)
    obs = np.random.default_rng(0).standard_normal(4).astype(np.float32)
    n_added = 0

    def add(number: int) -> None:
        nonlocal n_added
        for _ in range(number):
            n_added += 1
            done = n_added % FULL_EPISODE == 0
            replay.add(obs=obs, act=0, rew=1.0, done=done, next_obs=obs)
            if done:
                replay.on_episode_end()

    def sample(number: int) -> None:
        for _ in range(number):
            batch = replay.sample(N_SAMPLED)
            replay.update_priorities(batch["indexes"], batch["weights"])

    add(N_STEPS)
    return {
        "add": lambda number: cpu_milliseconds(lambda: add(number))(),
        "sample": lambda number: cpu_milliseconds(lambda: sample(number))(),
        "bytes": lambda number: allocated_bytes(lambda: make_replay(number, IMAGE_SHAPE, np.uint8)),
    }


if __name__ == "__main__":
    serve(make_functions)
