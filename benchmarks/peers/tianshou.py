"""Tianshou's recurrent DQN, which trains on command; see :mod:`benchmarks.peers.server`."""

import sys
import time
from collections.abc import Callable

from benchmarks.environments import MaskedCartPole
from benchmarks.peers import sizes
from benchmarks.peers.server import serve


def make_trainer(full_windows: bool) -> Callable[[int], float]:
    """
    Tianshou's recurrent DQN, put together as in its own ``test/discrete/test_drqn.py``, with one environment.

    It samples stacks of ``BURN_IN + TRACE`` observations and trains the last step of each, from a zero state. Returns a
    function that trains for a number of steps and returns the seconds of CPU time that it took.
    """
    from tianshou.algorithm import DQN
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, CollectStats, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.utils.net.common import Recurrent
    from tianshou.utils.torch_utils import policy_within_training_step

    env = MaskedCartPole(full_windows)
    net = Recurrent(layer_num=1, state_shape=(4,), action_shape=2, hidden_layer_size=sizes.HIDDEN_SIZE)
    policy = DiscreteQLearningPolicy(model=net, action_space=env.action_space, eps_training=sizes.EPSILON)
    optim = AdamOptimizerFactory(lr=sizes.LEARNING_RATE)
    algorithm: DQN = DQN(policy=policy, optim=optim, target_update_freq=sizes.UPDATES_PER_TARGET)
    buffer = VectorReplayBuffer(sizes.BUFFER_SIZE, buffer_num=1, stack_num=sizes.BURN_IN + sizes.TRACE, ignore_obs_next=True)
    collector = Collector[CollectStats](algorithm, DummyVectorEnv([lambda: env]), buffer, exploration_noise=True)

    def train(steps: int) -> float:
        start = time.process_time()
        with policy_within_training_step(policy):
            for _ in range(steps // sizes.STEPS_PER_UPDATE):
                collector.collect(n_step=sizes.STEPS_PER_UPDATE)
                algorithm.update(buffer=buffer, sample_size=sizes.BATCH_SIZE)
        return time.process_time() - start

    collector.reset()
    with policy_within_training_step(policy):
        collector.collect(n_step=sizes.WARM_UP_STEPS)
    train(10 * sizes.STEPS_PER_UPDATE)
    return train


if __name__ == "__main__":
    serve(lambda: {"train": make_trainer(full_windows="--full-windows" in sys.argv)})
