"""
The first tasks of external memories: copy, repeat copy and associative recall (Graves et al. 2014, section 4).

A batch holds sequences of one size, so that no step is padded. All bits are independent and 0 or 1 with equal probability: a
network that has forgotten a bit guesses it, and is wrong half the time. Functions that make a batch draw it with ``rng``.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch as th


class Batch(NamedTuple):
    """Sequences of T steps, B rows, with the bits to answer with."""

    inputs: th.Tensor  # [T, B, F]
    targets: th.Tensor  # [T, B, D], 0 where no answer is due
    mask: th.Tensor  # [T], whether an answer is due


def _bits(rng: np.random.Generator, *shape: int) -> th.Tensor:
    return th.from_numpy(rng.integers(0, 2, shape).astype(np.float32))


def _answer_last(inputs: th.Tensor, answers: th.Tensor) -> Batch:
    """Append blank inputs for the steps of the answers."""
    blank = inputs.new_zeros(len(answers), *inputs.shape[1:])
    targets = answers.new_zeros(len(inputs) + len(answers), *answers.shape[1:])
    targets[len(inputs) :] = answers
    return Batch(th.cat((inputs, blank)), targets, th.arange(len(targets)) >= len(inputs))


def copy(rng: np.random.Generator, batch_size: int, length: int) -> Batch:
    """
    ``length`` words of 8 bits and a delimiter; the answer is the words.

    F is 9: bits, delimiter. D is 8. T is ``2 length + 1``.
    """
    words = _bits(rng, length, batch_size, 8)
    inputs = th.zeros(length + 1, batch_size, 9)
    inputs[:length, :, :8] = words
    inputs[length, :, 8] = 1.0
    return _answer_last(inputs, words)


def repeat_copy(rng: np.random.Generator, batch_size: int, length: int, repeats: int) -> Batch:
    """
    ``length`` words of 8 bits and a delimiter with a number of repeats; the answer is the words as often, and an end marker.

    The number is divided by 10, the largest that is trained; the paper normalises it, too. F is 10: bits, delimiter, number of
    repeats. D is 9: bits, end marker. T is ``length (repeats + 1) + 2``.
    """
    words = _bits(rng, length, batch_size, 8)
    inputs = th.zeros(length + 1, batch_size, 10)
    inputs[:length, :, :8] = words
    inputs[length, :, 8] = 1.0
    inputs[length, :, 9] = repeats / 10
    answers = th.zeros(length * repeats + 1, batch_size, 9)
    answers[:-1, :, :8] = words.repeat(repeats, 1, 1)
    answers[-1, :, 8] = 1.0
    return _answer_last(inputs, answers)


def associative_recall(rng: np.random.Generator, batch_size: int, items: int) -> Batch:
    """
    Items of three words of 6 bits, at least two, then one of them again, not the last; the answer is the item after it.

    A delimiter is before each item, another before and after the query. F is 8: bits, delimiter of items, of the query.
    D is 6. T is ``4 items + 8``.
    """
    words = _bits(rng, items, 3, batch_size, 6)
    rows, asked = th.arange(batch_size), th.from_numpy(rng.integers(0, items - 1, batch_size))
    inputs = th.zeros(4 * items + 5, batch_size, 8)
    shown = inputs[: 4 * items].unflatten(0, (items, 4))  # a view
    shown[:, 0, :, 6] = 1.0
    shown[:, 1:, :, :6] = words
    inputs[4 * items, :, 7] = inputs[-1, :, 7] = 1.0
    inputs[4 * items + 1 : -1, :, :6] = words[asked, :, rows].transpose(0, 1)
    return _answer_last(inputs, words[asked + 1, :, rows].transpose(0, 1))


class Task(NamedTuple):
    """A task: its sequences for training and testing."""

    make: Callable[..., Batch]  # from a generator, the number of rows and the sizes
    input_size: int  # F
    output_size: int  # D
    sizes: Mapping[str, tuple[int, int]]  # the least and the greatest of each size that is trained
    longer: Mapping[str, int]  # larger sizes, which are only tested

    def draw(self, rng: np.random.Generator, batch_size: int) -> Batch:
        """A batch of random size."""
        sizes = {name: int(rng.integers(low, high, endpoint=True)) for name, (low, high) in self.sizes.items()}
        return self.make(rng, batch_size, **sizes)


TASKS = {
    "copy": Task(copy, 9, 8, {"length": (1, 20)}, {"length": 40}),
    "repeat_copy": Task(repeat_copy, 10, 9, {"length": (1, 10), "repeats": (1, 10)}, {"length": 20, "repeats": 10}),
    "associative_recall": Task(associative_recall, 8, 6, {"items": (2, 6)}, {"items": 12}),
}
