"""
What the speed of RecurrentDQN is measured against: the bare LSTM, and Tianshou's recurrent DQN.

The second needs an environment of its own (see the README beside this file), which has neither Stable-Baselines3 nor
sb3_attn, so this file imports no more than torch, numpy and Gymnasium at its top. ``speed.py`` starts it there as a
server that trains on command:

    path/to/peer/python benchmarks/reference.py [--full-windows]     # a number of steps in, seconds out, line by line
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from torch import nn

# The sizes of the comparison, for both sides
HIDDEN_SIZE = 128
INPUT_SIZE = 64  # the layer between observation and LSTM (Tianshou's is as wide as its LSTM and cannot be set)
BURN_IN = 20
TRACE = 40
BATCH_SIZE = 32
STEPS_PER_UPDATE = 4
BUFFER_SIZE = 20_000
WARM_UP_STEPS = 1000
EPSILON = 0.1
LEARNING_RATE = 5e-4
UPDATES_PER_TARGET = 250
FULL_EPISODE = 500


class MaskedCartPole(gym.Wrapper[np.ndarray, np.int64, np.ndarray, np.int64]):
    """
    CartPole-v1 with its velocities set to 0, as RL Zoo's CartPoleNoVel-v1.

    :param full_windows: Start anew without ending the episode when the pole falls, so that every episode has 500 steps.
        Untrained agents let it fall after some 20 steps; windows of training are then as short, and cost as little.
    """

    POSITIONS = np.array([1.0, 0.0, 1.0, 0.0], dtype=np.float32)

    def __init__(self, full_windows: bool) -> None:
        super().__init__(gym.make("CartPole-v1").unwrapped)
        self.full_windows = full_windows
        self._elapsed_steps = 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._elapsed_steps = 0
        return obs * self.POSITIONS, info

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, _, info = self.env.step(action)
        if terminated and self.full_windows:
            obs, info = self.env.reset()
            terminated = False
        self._elapsed_steps += 1
        return obs * self.POSITIONS, float(reward), terminated, self._elapsed_steps == FULL_EPISODE, info


def raw_lstm_update(hidden_size: int) -> Callable[[], None]:
    """
    What no update with these shapes can do without: the fused LSTM alone.

    :param hidden_size: Of the LSTM.
    :return: A function that warms both networks up, unrolls the target network, and the online one with its gradient.
    """
    online, target = nn.LSTM(INPUT_SIZE, hidden_size), nn.LSTM(INPUT_SIZE, hidden_size)
    past = th.randn(BURN_IN, BATCH_SIZE, INPUT_SIZE)
    trained = th.randn(TRACE + 1, BATCH_SIZE, INPUT_SIZE, requires_grad=True)  # there is an encoder before the LSTM
    gradient = th.randn(TRACE + 1, BATCH_SIZE, hidden_size)

    def update() -> None:
        with th.no_grad():
            _, online_state = online(past)
            _, target_state = target(past)
            target(trained, target_state)
        outputs, _ = online(trained, online_state)
        online.zero_grad()
        trained.grad = None
        outputs.backward(gradient)

    return update


def tianshou_trainer(full_windows: bool) -> Callable[[int], float]:
    """
    Tianshou's recurrent DQN, put together as in its own ``test/discrete/test_drqn.py``, with one environment.

    It samples stacks of ``BURN_IN + TRACE`` observations and trains the last step of each, from a zero state.

    :param full_windows: Whether episodes are long, see :class:`MaskedCartPole`.
    :return: A function that trains for a number of steps and returns the seconds it took.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-windows", action="store_true", help="episodes of 500 steps whatever the agent does")
    full_windows = parser.parse_args().full_windows
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    train = tianshou_trainer(full_windows)
    print("ready", flush=True)
    for line in sys.stdin:
        print(train(int(line)), flush=True)


if __name__ == "__main__":
    main()
