"""The benchmark of the supervised tasks counts wrong bits, stops when the threshold is held, and trains every core."""

import numpy as np
import pytest
import torch as th

pytest.importorskip("matplotlib")
pytest.importorskip("yaml")

from benchmarks.learning.supervised import CORES, N_HELD, THRESHOLD, Network, bit_errors, held, reached, settings
from benchmarks.runner import Options
from benchmarks.sequence_tasks import TASKS, Batch

GOOD, BAD = THRESHOLD / 2, THRESHOLD * 2


class Parrot(th.nn.Module):
    """Knows the answers, except for some bits of the first row.

    :param wrong: number of bits to say wrongly in each batch
    """

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, batch: Batch) -> tuple[th.Tensor, th.Tensor]:
        targets = batch.targets[batch.mask]
        logits = 2 * targets - 1
        logits[0, 0, : self.wrong] *= -1
        return logits, targets


def test_wrong_bits_are_counted_per_sequence() -> None:
    batches = [TASKS["copy"].make(np.random.default_rng(0), 4, length=length) for length in (1, 5)]
    assert bit_errors(Parrot(0), batches) == 0.0
    assert bit_errors(Parrot(6), batches) == pytest.approx(6 / 4), "however long the sequences are"


def test_the_threshold_has_to_be_held() -> None:
    assert not held([GOOD] * (N_HELD - 1))
    assert held([BAD] + [GOOD] * N_HELD)
    assert not held([GOOD] * N_HELD + [BAD]), "learned and forgotten"
    assert not held([GOOD] * (N_HELD - 1) + [THRESHOLD]), "at the threshold is not below it"


def test_the_threshold_is_reached_at_the_first_of_the_evaluations_that_held_it() -> None:
    errors = [BAD, GOOD, BAD] + [GOOD] * N_HELD
    times = [float(i) for i in range(len(errors))]
    curve = {"errors": errors, "seconds": times, "sequences": [100 * time for time in times]}
    assert reached(curve, "seconds") == 3.0 and reached(curve, "sequences") == 300.0
    assert reached({**curve, "errors": [BAD] * len(errors)}, "seconds") is None


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("name", TASKS)
def test_every_core_answers_every_task(name: str, core: str) -> None:
    batch = TASKS[name].make(np.random.default_rng(0), 2, **{size: low for size, (low, _) in TASKS[name].sizes.items()})
    network = Network(core, settings(Options())[f"{name}, {core}"]["core_kwargs"], TASKS[name])
    logits, targets = network(batch)
    assert logits.shape == targets.shape == (int(batch.mask.sum()), 2, TASKS[name].output_size)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
