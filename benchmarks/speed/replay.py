"""
Adding steps, sampling windows and memory: our replay against SB3's and cpprb's.

Vectors of four numbers in episodes of 500 steps, with the states of an LSTM; memory with images of 84 x 84. Ours samples
windows of consecutive steps, the others as many steps from anywhere. Where there are priorities, sampling includes new ones.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks.environments import FULL_EPISODE
from benchmarks.peers import server
from benchmarks.peers.cpprb import IMAGE_SHAPE, N_SAMPLED, N_STEPS
from benchmarks.peers.sizes import BATCH_SIZE, BURN_IN, HIDDEN_SIZE, TRACE
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, compared, values
from benchmarks.speed.turns import allocated_bytes, cpu_milliseconds, in_turn, medians, ratio
from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer

N_CALLS = 100
N_IMAGES = 2000
IMAGES = spaces.Box(0, 255, IMAGE_SHAPE, np.uint8)
VECTORS = spaces.Box(-1, 1, (4,), np.float32)
SB3, SB3_OPTIMIZED, CPPRB = "SB3's ReplayBuffer", "SB3's, optimize_memory_usage", "cpprb, prioritized"
LENGTHS: dict[str, Any] = dict(trace_length=TRACE, burn_in_length=BURN_IN)
#: Class and arguments
BUFFERS: dict[str, tuple[type[ReplayBuffer], dict[str, Any]]] = {
    "windows": (SequenceReplayBuffer, LENGTHS),
    "prioritized windows": (PrioritizedSequenceReplayBuffer, LENGTHS),
    SB3: (ReplayBuffer, {}),
    SB3_OPTIMIZED: (ReplayBuffer, dict(optimize_memory_usage=True, handle_timeout_termination=False)),  # SB3 wants both
}
#: What is compared: an operation, ours and the other
PAIRS = (
    ("add", "prioritized windows", SB3),
    ("add", "prioritized windows", CPPRB),
    ("sample", "windows", SB3),
    ("sample", "prioritized windows", CPPRB),
    ("memory", "prioritized windows", SB3),
    ("memory", "prioritized windows", SB3_OPTIMIZED),
    ("memory", "prioritized windows", CPPRB),
    ("memory", "prioritized windows", "limit: one image"),
)
TITLES = {"add": "add a step", "sample": f"sample {N_SAMPLED:,} steps", "memory": "memory for a step with an image"}


def settings(options: Options) -> Settings:
    """One variant, with all sides."""
    peers = [CPPRB] if "python" in options.peers else []
    return {"100,000 steps": {"sides": [*BUFFERS, *peers], "rounds": options.scaled(15)}}


def make_buffer(name: str, n_steps: int, space: spaces.Box) -> ReplayBuffer:
    """One of :data:`BUFFERS`, for one environment."""
    buffer_class, arguments = BUFFERS[name]
    return buffer_class(n_steps, space, spaces.Discrete(2), device="cpu", n_envs=1, **arguments)


def adder(buffer: ReplayBuffer) -> Callable[[int], None]:
    """A function that adds a number of steps."""
    obs = buffer.observation_space.sample()[None]
    state = tuple(np.zeros((1, HIDDEN_SIZE), np.float32) for _ in range(2))
    extra: dict[str, Any] = dict(core_state=state) if isinstance(buffer, SequenceReplayBuffer) else {}
    action, reward, n_added = np.zeros((1, 1), np.int64), np.ones(1), 0

    def add(number: int) -> None:
        nonlocal n_added
        for _ in range(number):
            n_added += 1
            buffer.add(obs, obs, action, reward, np.array([n_added % FULL_EPISODE == 0]), [{}], **extra)

    return add


def sampler(buffer: Any) -> Callable[[int], None]:
    """A function that samples a number of batches."""
    batch_size = BATCH_SIZE if isinstance(buffer, SequenceReplayBuffer) else N_SAMPLED

    def sample(number: int) -> None:
        for _ in range(number):
            batch = buffer.sample(batch_size)
            if isinstance(buffer, PrioritizedSequenceReplayBuffer):
                buffer.update_priorities(batch, np.ones(BATCH_SIZE))

    return sample


def memory(name: str) -> int:
    """Bytes of a buffer for :data:`N_IMAGES` steps, which knows the size of states only when the first step is added."""

    def make() -> ReplayBuffer:
        buffer = make_buffer(name, N_IMAGES, IMAGES)
        adder(buffer)(1)
        return buffer

    return allocated_bytes(make)


def measure(context: Context, sides: list[str], rounds: int) -> dict[str, Any]:
    """Measure all sides in turn; returns microseconds of a call, bytes for a step, and the ratios of :data:`PAIRS`."""
    np.random.seed(context.seed)
    calls: dict[str, Callable[[], float]] = {}
    costs = {"memory: limit: one image": [float(np.prod(IMAGE_SHAPE))]}
    with ExitStack() as stack:
        for name in BUFFERS:
            buffer = make_buffer(name, N_STEPS, VECTORS)
            add = adder(buffer)
            add(N_STEPS)
            calls[f"add: {name}"] = cpu_milliseconds(partial(add, N_CALLS))
            calls[f"sample: {name}"] = cpu_milliseconds(partial(sampler(buffer), N_CALLS))
            costs[f"memory: {name}"] = [memory(name) / N_IMAGES]
        if CPPRB in sides:
            ask = stack.enter_context(server.start(context.peers["python"], "cpprb"))
            calls |= {f"{operation}: {CPPRB}": partial(ask, operation, N_CALLS) for operation in ("add", "sample")}
            costs[f"memory: {CPPRB}"] = [ask("bytes", N_IMAGES) / N_IMAGES]
        times = in_turn(calls, rounds, warm_up=1)
    costs |= {name: [1000 * time / N_CALLS for time in measured] for name, measured in times.items()}
    ratios = {
        f"{operation}: {ours}, {other}": ratio(costs[f"{operation}: {ours}"], costs[f"{operation}: {other}"])
        for operation, ours, other in PAIRS
        if f"{operation}: {other}" in costs
    }
    return {"costs": medians(costs), "ratios": ratios, "rounds": costs}


def rows(variants: Variants) -> Iterator[Row]:
    """A pair a row."""
    for runs in variants.values():
        for operation, ours, other in PAIRS:
            if f"{operation}: {ours}, {other}" in runs[0].result["ratios"]:
                costs = [median(values(runs, "costs", f"{operation}: {side}")) for side in (ours, other)]
                cells = [f"{cost:,.0f} {'bytes' if operation == 'memory' else 'us'}" for cost in costs]
                share = median(values(runs, "ratios", f"{operation}: {ours}, {other}"))
                yield compared(f"replay, {TITLES[operation]}: {ours}", cells[0], other, cells[1], share)


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
