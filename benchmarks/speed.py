"""
Speed of RecurrentDQN on one thread: environment steps per second, and an update against the bare LSTM.

    python -m benchmarks.speed
    python -m benchmarks.speed --peer tianshou --peer-python path/to/peer/python

What is compared is measured in turns, in one run, and reported by its median, so that whatever else the machine does
falls on all of it alike.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch as th

from benchmarks import reference
from sb3_attn import RecurrentDQN

#: What stands between the LSTM and the Q-values. Tianshou has a linear layer; ours has by default a hidden layer that sees the
#: LSTM's inputs too, and two streams.
HEADS: dict[str, dict[str, Any]] = {"linear": dict(net_arch=[], dueling=False, skip_connection=False), "default": {}}

#: For which an update is measured: size of the LSTM (the comparison's, and R2D2's), and head
UPDATES = ((reference.HIDDEN_SIZE, "linear"), (reference.HIDDEN_SIZE, "default"), (512, "default"))


def make_model(full_windows: bool, head: str, hidden_size: int = reference.HIDDEN_SIZE) -> RecurrentDQN:
    """
    The agent to measure, with the sizes of ``reference.py`` and the constructor's defaults.

    :param full_windows: Whether episodes are long, see :class:`benchmarks.reference.MaskedCartPole`.
    :param head: A key of :data:`HEADS`.
    :param hidden_size: Of the LSTM.
    """
    core: dict[str, Any] = dict(core="lstm", core_kwargs=dict(hidden_size=hidden_size))
    return RecurrentDQN(
        "MlpPolicy",
        reference.MaskedCartPole(full_windows),
        learning_rate=reference.LEARNING_RATE,
        buffer_size=reference.BUFFER_SIZE,
        learning_starts=reference.WARM_UP_STEPS,
        batch_size=reference.BATCH_SIZE,
        train_freq=reference.STEPS_PER_UPDATE,
        target_update_interval=reference.UPDATES_PER_TARGET * reference.STEPS_PER_UPDATE,
        trace_length=reference.TRACE,
        burn_in_length=reference.BURN_IN,
        exploration_initial_eps=reference.EPSILON,
        exploration_final_eps=reference.EPSILON,
        policy_kwargs=dict(**core, encoder_arch=[reference.INPUT_SIZE], **HEADS[head]),
        seed=0,
        device="cpu",
    )


def our_trainer(full_windows: bool, head: str) -> Callable[[int], float]:
    """
    RecurrentDQN after its warm-up.

    :param full_windows: Whether episodes are long.
    :param head: A key of :data:`HEADS`.
    :return: A function that trains for a number of steps and returns the seconds it took.
    """
    model = make_model(full_windows, head)
    model.learn(reference.WARM_UP_STEPS + 10 * reference.STEPS_PER_UPDATE)

    def train(steps: int) -> float:
        updates = model._n_updates
        start = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        assert model._n_updates - updates == steps // reference.STEPS_PER_UPDATE, "an update per 4 steps"
        return seconds

    return train


class PeerTrainer(AbstractContextManager["PeerTrainer"]):
    """
    Tianshou's recurrent DQN in an interpreter of its own, which rests while ours is at work.

    :param python: The interpreter of an environment that has Tianshou.
    :param full_windows: Whether episodes are long.
    """

    def __init__(self, python: str, full_windows: bool) -> None:
        command = [python, str(Path(reference.__file__).resolve()), *(["--full-windows"] if full_windows else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The peer ended before it answered; its message stands above, mend --peer-python by it.")
        return line

    def __call__(self, steps: int) -> float:
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)
        return float(self._read())

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()  # it ends with its input


def measure_training(full_windows: bool, rounds: int, steps: int, peer_python: str | None) -> dict[str, Any]:
    """
    Environment steps per second, training included.

    :param full_windows: Whether episodes are long.
    :param rounds: How many times each side is measured.
    :param steps: Environment steps per measurement.
    :param peer_python: The interpreter that has Tianshou; ``None`` leaves it out.
    :return: Medians and all measurements, by side; with a peer also, for each head, the median of the ratios of each round.
    """
    with ExitStack() as stack:
        trainers: dict[str, Callable[[int], float]] = {head: our_trainer(full_windows, head) for head in HEADS}
        if peer_python is not None:
            trainers["tianshou"] = stack.enter_context(PeerTrainer(peer_python, full_windows))
        rates: dict[str, list[float]] = {name: [] for name in trainers}
        for _ in range(rounds):
            for name, train in trainers.items():
                rates[name].append(steps / train(steps))
    result: dict[str, Any] = {name: median(values) for name, values in rates.items()}
    if peer_python is not None:
        peer = rates["tianshou"]
        result["ratios"] = {head: median(x / y for x, y in zip(rates[head], peer, strict=True)) for head in HEADS}
    return {**result, "rounds": rates}


def measure_update(hidden_size: int, head: str, rounds: int) -> dict[str, float]:
    """
    One update, sampling and optimizer included, against the bare LSTM.

    :param hidden_size: Of the LSTM.
    :param head: A key of :data:`HEADS`.
    :param rounds: How many times each is measured.
    :return: Median milliseconds of both and the median of the ratios of each round.
    """
    model = make_model(True, head, hidden_size)
    model.learn(reference.WARM_UP_STEPS)  # two episodes in the replay, none of their windows shorter than the lengths above
    sides = {"update_ms": lambda: model.train(1, reference.BATCH_SIZE), "raw_lstm_ms": reference.raw_lstm_update(hidden_size)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 10):
        for name, call in sides.items():
            start = time.process_time()  # on one thread the same as by the clock, but that others do not add to it
            call()
            if round_ >= 10:  # the first ones warm caches up
                times[name].append(1000 * (time.process_time() - start))
    ratio = median(update / raw for update, raw in zip(*times.values(), strict=True))
    return {**{name: median(values) for name, values in times.items()}, "ratio": ratio}


def measure(rounds: int, steps: int, update_rounds: int, peer_python: str | None) -> dict[str, Any]:
    """All of it, with what it was measured on; parameters as above."""
    th.set_num_threads(1)
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "torch": th.__version__,
        },
        "update": {f"LSTM {size}, {head} head": measure_update(size, head, update_rounds) for size, head in UPDATES},
        "full_windows": measure_training(True, rounds, steps, peer_python),
        "early_training": measure_training(False, rounds, steps, peer_python),
    }


def report(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    lines = ["| measured | RecurrentDQN | reference | ratio | bar |", "|---|---|---|---|---|"]
    for name, update in result["update"].items():
        lines.append(
            f"| one update, {name}, against the bare LSTM | {update['update_ms']:.2f} ms "
            f"| {update['raw_lstm_ms']:.2f} ms | {update['ratio']:.2f} | at most 1.15 |"
        )
    for name, title in (("full_windows", "episodes of 500 steps"), ("early_training", "episodes as they come")):
        rates = result[name]
        for head in HEADS:
            peer, ratio = (f"{rates['tianshou']:.0f}/s", f"{rates['ratios'][head]:.2f}") if "ratios" in rates else ("-", "-")
            title_ = f"env steps, {title}, {head} head, against Tianshou"
            lines.append(f"| {title_} | {rates[head]:.0f}/s | {peer} | {ratio} | at least 1.8 |")
    machine = result["machine"]
    return "\n".join([*lines, "", f"One thread of {machine['cores']}, load {machine['load']:.1f}, torch {machine['torch']}."])


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: Its arguments; ``None`` takes them from ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of environment steps per side")
    parser.add_argument("--steps", type=int, default=2000, help="environment steps per measurement, a multiple of 4")
    parser.add_argument("--update-rounds", type=int, default=300, help="measurements of an update")
    parser.add_argument("--peer", choices=["tianshou"], help="compare with this package, too")
    parser.add_argument("--peer-python", help="the interpreter of an environment that has the peer")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"), help="where to write")
    args = parser.parse_args(arguments)
    if (args.peer is None) != (args.peer_python is None):
        parser.error("--peer and --peer-python go together: name the package and the interpreter that has it.")
    if min(args.rounds, args.steps, args.update_rounds) < 1 or args.steps % reference.STEPS_PER_UPDATE:
        parser.error("--rounds, --steps and --update-rounds have to be positive, and --steps a multiple of 4.")
    result = measure(args.rounds, args.steps, args.update_rounds, args.peer_python)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(report(result))


if __name__ == "__main__":
    main()
