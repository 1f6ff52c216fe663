"""Our cells against numbers computed with other implementations."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.reference import run_dnc_access, run_ntm

DATA = Path(__file__).parents[1] / "data"


def assert_equal_to_the_file(results: dict[str, np.ndarray], arrays: dict[str, np.ndarray], tolerance: float) -> None:
    for name, result in results.items():
        assert result.shape == arrays[name].shape and result.dtype == arrays[name].dtype, name
        np.testing.assert_allclose(result, arrays[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_the_ntm_equals_its_reference():
    arrays = dict(np.load(DATA / "ntm.npz"))
    results = run_ntm(arrays)
    compared = {"output", "memory", "read_weights", "write_weights", "last_read"}
    assert results.keys() == compared | {name for name in arrays if name.startswith("grad_")}
    assert_equal_to_the_file(results, arrays, 1e-6)


def test_the_memory_access_of_the_dnc_equals_its_reference():
    arrays = dict(np.load(DATA / "dnc_access.npz"))
    results = run_dnc_access(arrays)
    assert results.keys() == {"reads", "memory", "link", "precedence", "usage", "read_weights", "write_weights"}
    assert_equal_to_the_file(results, arrays, 1e-5)


def ntm_arrays(batch_size: int, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    n_inputs, n_outputs, hidden_size, n_slots, word_size, n_shifts, n_steps = sizes
    random = np.random.default_rng(0)
    head = word_size + 3 + n_shifts
    shapes = {
        "x": (n_steps, batch_size, n_inputs),
        "lstm_weight_ih": (4 * hidden_size, n_inputs + word_size),
        "lstm_weight_hh": (4 * hidden_size, hidden_size),
        "lstm_bias": (4 * hidden_size,),
        "h0": (1, hidden_size),
        "c0": (1, hidden_size),
        "read_head_weight": (head, hidden_size),
        "read_head_bias": (head,),
        "write_head_weight": (head + 2 * word_size, hidden_size),
        "write_head_bias": (head + 2 * word_size,),
        "out_weight": (n_outputs, hidden_size + word_size),
        "out_bias": (n_outputs,),
        "memory0": (n_slots, word_size),
        "read0": (1, word_size),
    }
    return {name: random.normal(size=shape) for name, shape in shapes.items()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def ntm_row_by_numbers(arrays: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """One row of a batch, written from the description in ``tests/data/README.md`` with loops over slots."""
    memory, last_read = arrays["memory0"].copy(), arrays["read0"][0]
    hidden, cell = arrays["h0"][0], arrays["c0"][0]
    n_slots, word_size = memory.shape
    weights = {"read": np.zeros(n_slots), "write": np.zeros(n_slots)}
    outputs = []
    for x in arrays["x"][:, row]:
        gates = arrays["lstm_weight_ih"] @ np.concatenate((x, last_read)) + arrays["lstm_weight_hh"] @ hidden
        i, f, g, o = np.split(gates + arrays["lstm_bias"], 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        rest = {}
        for head in ("read", "write"):
            vector = arrays[f"{head}_head_weight"] @ hidden + arrays[f"{head}_head_bias"]
            key, vector = vector[:word_size], vector[word_size:]
            strength, gate, vector = np.log1p(np.exp(vector[0])), sigmoid(vector[1]), vector[2:]
            n_shifts = len(vector) - 1 - (2 * word_size if head == "write" else 0)
            shifts, exponent, rest[head] = (
                softmax(vector[:n_shifts]),
                1 + np.log1p(np.exp(vector[n_shifts])),
                vector[n_shifts + 1 :],
            )
            cosines = [m @ key / (np.linalg.norm(m) * np.linalg.norm(key)) for m in memory]
            mixed = gate * softmax(strength * np.array(cosines)) + (1 - gate) * weights[head]
            moved = np.zeros(n_slots)
            for slot in range(n_slots):
                for index, share in enumerate(shifts):
                    moved[slot] += share * mixed[(slot + index - n_shifts // 2) % n_slots]
            weights[head] = moved**exponent / (moved**exponent).sum()
        last_read = weights["read"] @ memory
        erase, add = sigmoid(rest["write"][:word_size]), rest["write"][word_size:]
        for slot in range(n_slots):
            memory[slot] = memory[slot] * (1 - weights["write"][slot] * erase) + weights["write"][slot] * add
        outputs.append(sigmoid(arrays["out_weight"] @ np.concatenate((hidden, last_read)) + arrays["out_bias"]))
    return {
        "output": np.stack(outputs),
        "memory": memory,
        "read_weights": weights["read"],
        "write_weights": weights["write"],
        "last_read": last_read,
    }


@pytest.mark.parametrize(
    "sizes",
    [
        (5, 4, 6, 9, 3, 3, 5),
        (1, 1, 1, 3, 1, 3, 2),
        (2, 3, 4, 8, 5, 5, 6),
        (3, 2, 5, 4, 2, 1, 4),
        (2, 2, 4, 2, 3, 3, 4),
        (2, 2, 4, 4, 3, 5, 4),
    ],
)
def test_any_sizes_equal_the_definition_written_out(sizes):
    arrays = ntm_arrays(batch_size=2, sizes=sizes)
    results = run_ntm(arrays)
    for row in range(2):
        for name, expected in ntm_row_by_numbers(arrays, row).items():
            result = results[name][:, row] if name == "output" else results[name][row]
            np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12, err_msg=name)
