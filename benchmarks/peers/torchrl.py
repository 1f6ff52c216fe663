"""A recurrent DQN of TorchRL's parts, which trains on command; see :mod:`benchmarks.peers.server`."""

import sys
import time
from collections.abc import Callable

import torch as th

from benchmarks.environments import MaskedCartPole
from benchmarks.peers import sizes
from benchmarks.peers.server import serve


def make_trainer(full_windows: bool) -> Callable[[int], float]:
    """
    A recurrent DQN of the parts that TorchRL's tutorials use: LSTMModule, SliceSampler, BurnInTransform and DQNLoss.

    It samples slices of ``BURN_IN + TRACE`` steps, which its sampler pads where an episode is shorter, and trains all after
    the burn-in, which begins at the stored state. Returns a function that trains for a number of steps and returns the seconds
    of CPU time that it took.
    """
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
    from torchrl.envs import BurnInTransform, GymWrapper, InitTracker, TransformedEnv
    from torchrl.modules import EGreedyModule, LSTMModule, QValueModule, set_recurrent_mode
    from torchrl.objectives import DQNLoss, HardUpdate

    lstm = LSTMModule(input_size=sizes.INPUT_SIZE, hidden_size=sizes.HIDDEN_SIZE, in_key="features", out_key="features")
    env = TransformedEnv(GymWrapper(MaskedCartPole(full_windows)), InitTracker())
    env.append_transform(lstm.make_tensordict_primer())
    layers = th.nn.Sequential(th.nn.Linear(4, sizes.INPUT_SIZE), th.nn.ReLU())
    encoder = TensorDictModule(layers, ["observation"], ["features"])
    head = TensorDictModule(th.nn.Linear(sizes.HIDDEN_SIZE, 2), ["features"], ["action_value"])
    policy = TensorDictSequential(encoder, lstm, head, QValueModule(spec=env.action_spec))
    explorer = TensorDictSequential(policy, EGreedyModule(env.action_spec, eps_init=sizes.EPSILON, eps_end=sizes.EPSILON))
    collector = iter(Collector(env, explorer, frames_per_batch=sizes.STEPS_PER_UPDATE, total_frames=-1))

    length = sizes.BURN_IN + sizes.TRACE
    sampler = SliceSampler(slice_len=length, end_key=("next", "done"), strict_length=False, pad_output=True)
    storage = LazyTensorStorage(sizes.BUFFER_SIZE)
    replay = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=sizes.BATCH_SIZE * length)
    burn_in = BurnInTransform([encoder, lstm], burn_in=sizes.BURN_IN)
    loss = DQNLoss(policy, action_space=env.action_spec, delay_value=True, double_dqn=True, reduction="none")
    loss.make_value_estimator(gamma=sizes.GAMMA)
    target = HardUpdate(loss, value_network_update_interval=sizes.UPDATES_PER_TARGET)
    optimizer = th.optim.Adam(loss.parameters(), lr=sizes.LEARNING_RATE, fused=True)

    def collect() -> None:
        replay.extend(next(collector))

    def update() -> None:
        batch = replay.sample().reshape(sizes.BATCH_SIZE, length)
        with set_recurrent_mode(True):
            batch = burn_in(batch)
            losses = loss(batch)["loss"]
        mask = batch.get(("collector", "mask"), None)  # absent where nothing was padded
        (losses if mask is None else losses * mask.reshape(losses.shape)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        target.step()

    def train(steps: int) -> float:
        start = time.process_time()
        for _ in range(steps // sizes.STEPS_PER_UPDATE):
            collect()
            update()
        return time.process_time() - start

    for _ in range(sizes.WARM_UP_STEPS // sizes.STEPS_PER_UPDATE):
        collect()
    train(10 * sizes.STEPS_PER_UPDATE)
    return train


if __name__ == "__main__":
    serve(lambda: {"train": make_trainer(full_windows="--full-windows" in sys.argv)})
