"""The supervised tasks ask for what was shown."""

import numpy as np
import pytest
import torch as th

from benchmarks.sequence_tasks import TASKS, Batch, associative_recall, copy, repeat_copy

ROWS = 64


def shown_and_asked(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Inputs before the first answer, and the answers, rows first."""
    first = int(batch.mask.float().argmax())
    assert batch.mask[first:].all() and not batch.mask[:first].any(), "answers are the last steps"
    assert not batch.inputs[first:].any(), "the answer is not shown"
    assert not batch.targets[:first].any()
    return batch.inputs[:first].transpose(0, 1).numpy(), batch.targets[first:].transpose(0, 1).numpy()


@pytest.mark.parametrize("name", TASKS)
def test_batches_have_the_sizes_of_the_task(name: str) -> None:
    task = TASKS[name]
    batches = [task.draw(np.random.default_rng(seed), batch_size=3) for seed in range(5)]
    for inputs, targets, mask in (*batches, task.make(np.random.default_rng(0), 3, **task.longer)):
        assert inputs.shape == (len(mask), 3, task.input_size)
        assert targets.shape == (len(mask), 3, task.output_size)
        assert inputs.dtype == targets.dtype == th.float32


@pytest.mark.parametrize("name", TASKS)
def test_all_sizes_are_drawn_from_the_least_to_the_greatest(name: str) -> None:
    drawn: dict[str, set[int]] = {size: set() for size in TASKS[name].sizes}

    def note(rng: np.random.Generator, batch_size: int, **sizes: int) -> None:
        for size, value in sizes.items():
            drawn[size].add(value)

    rng = np.random.default_rng(0)
    for _ in range(300):
        TASKS[name]._replace(make=note).draw(rng, batch_size=1)  # type: ignore[arg-type]
    assert drawn == {size: set(range(low, high + 1)) for size, (low, high) in TASKS[name].sizes.items()}


@pytest.mark.parametrize("name", TASKS)
def test_bits_are_even_and_rows_differ(name: str) -> None:
    task = TASKS[name]
    batch = task.make(np.random.default_rng(0), ROWS, **task.longer)
    _, asked = shown_and_asked(batch)
    bits = asked[..., :6]
    assert 0.4 < bits[:, :3].mean() < 0.6
    assert len(np.unique(bits[:, :3].reshape(ROWS, -1), axis=0)) > 0.9 * ROWS


def test_copy_asks_for_the_words_in_order() -> None:
    shown, asked = shown_and_asked(copy(np.random.default_rng(0), ROWS, length=5))
    for row in range(ROWS):
        np.testing.assert_array_equal(shown[row, :5, :8], asked[row])
        np.testing.assert_array_equal(shown[row, :, 8], [0, 0, 0, 0, 0, 1])
        assert not shown[row, 5, :8].any()


def test_repeat_copy_asks_for_the_words_again_and_again_and_for_the_end() -> None:
    shown, asked = shown_and_asked(repeat_copy(np.random.default_rng(0), ROWS, length=4, repeats=3))
    for row in range(ROWS):
        words = shown[row, :4, :8].tolist()
        assert asked[row, :, :8].tolist() == words + words + words + [[0] * 8]
        assert asked[row, :, 8].tolist() == [0] * 12 + [1]
        np.testing.assert_allclose(shown[row, 4, 8:], [1, 0.3])
        assert not shown[row, :4, 8:].any()


def test_associative_recall_asks_for_the_item_after_the_one_asked_about() -> None:
    shown, asked = shown_and_asked(associative_recall(np.random.default_rng(0), ROWS, items=4))
    queries = []
    for row in range(ROWS):
        items = shown[row, :16].reshape(4, 4, 8)
        np.testing.assert_array_equal(items[:, 0], np.tile(np.eye(8)[6], (4, 1)))
        assert not items[:, 1:, 6:].any()
        np.testing.assert_array_equal(shown[row, [16, 20]], np.eye(8)[[7, 7]])
        matches = [i for i in range(4) if (items[i, 1:] == shown[row, 17:20]).all()]
        queries.append(matches[0])
        np.testing.assert_array_equal(asked[row], items[matches[0] + 1, 1:, :6])
    assert set(queries) == {0, 1, 2}, "every item but the last is asked about"
