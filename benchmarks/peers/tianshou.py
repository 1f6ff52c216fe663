"""
Tianshou's recurrent DQN in an interpreter of its own, whose environment has neither Stable-Baselines3 nor sb3_attn.

:func:`tianshou_trainer` is our side. It runs this file there as a server, which trains on command:

    path/to/peer/python -m benchmarks.peers.tianshou [--full-windows]  # reads numbers of steps, writes seconds, line by line
"""

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch as th

from benchmarks.environments import MaskedCartPole

# The sizes of the comparison, for both sides
HIDDEN_SIZE = 128
INPUT_SIZE = 64  # the layer between observation and LSTM; Tianshou's is as wide as its LSTM and cannot be set
BURN_IN = 20
TRACE = 40
BATCH_SIZE = 32
STEPS_PER_UPDATE = 4
BUFFER_SIZE = 20_000
WARM_UP_STEPS = 1000
EPSILON = 0.1
LEARNING_RATE = 5e-4
UPDATES_PER_TARGET = 250


@contextmanager
def tianshou_trainer(python: str, full_windows: bool) -> Iterator[Callable[[int], float]]:
    """
    :func:`make_trainer` in a process of another interpreter, which is idle while ours is measured.

    :raises RuntimeError: if it ends before it answers
    """
    command = [python, "-m", "benchmarks.peers.tianshou", *(["--full-windows"] if full_windows else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def train(steps: int) -> float:
            print(steps, file=requests, flush=True)
            if answer := answers.readline():
                return float(answer)
            raise RuntimeError("Tianshou's process ended before it answered; its message stands above. Check --tianshou.")

        train(0)  # has it warmed up
        yield train


def make_trainer(full_windows: bool) -> Callable[[int], float]:
    """
    Tianshou's recurrent DQN, put together as in its own ``test/discrete/test_drqn.py``, with one environment.

    It samples stacks of ``BURN_IN + TRACE`` observations and trains the last step of each, from a zero state. Returns a
    function that trains for a number of steps and returns the seconds it took.
    """
    from tianshou.algorithm import DQN
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, CollectStats, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.utils.net.common import Recurrent
    from tianshou.utils.torch_utils import policy_within_training_step

    env = MaskedCartPole(full_windows)
    net = Recurrent(layer_num=1, state_shape=(4,), action_shape=2, hidden_layer_size=HIDDEN_SIZE)
    policy = DiscreteQLearningPolicy(model=net, action_space=env.action_space, eps_training=EPSILON)
    optim = AdamOptimizerFactory(lr=LEARNING_RATE)
    algorithm: DQN = DQN(policy=policy, optim=optim, target_update_freq=UPDATES_PER_TARGET)
    buffer = VectorReplayBuffer(BUFFER_SIZE, buffer_num=1, stack_num=BURN_IN + TRACE, ignore_obs_next=True)
    collector = Collector[CollectStats](algorithm, DummyVectorEnv([lambda: env]), buffer, exploration_noise=True)

    def train(steps: int) -> float:
        start = time.perf_counter()
        with policy_within_training_step(policy):
            for _ in range(steps // STEPS_PER_UPDATE):
                collector.collect(n_step=STEPS_PER_UPDATE)
                algorithm.update(buffer=buffer, sample_size=BATCH_SIZE)
        return time.perf_counter() - start

    collector.reset()
    with policy_within_training_step(policy):
        collector.collect(n_step=WARM_UP_STEPS)
    train(10 * STEPS_PER_UPDATE)
    return train


def serve() -> None:
    """Train for each number of steps on the standard input until it ends."""
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    train = make_trainer(full_windows="--full-windows" in sys.argv)
    for line in sys.stdin:
        print(train(int(line)), flush=True)


if __name__ == "__main__":
    serve()
