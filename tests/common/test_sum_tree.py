"""The sum tree against brute force on a plain array."""

import numpy as np
import pytest

from sb3_attn.common.sum_tree import RADIX, SumTree

CAPACITIES = [1, 2, RADIX - 1, RADIX, RADIX + 1, RADIX**2, RADIX**2 + 1, 5000]


def filled(leaves: np.ndarray) -> SumTree:
    tree = SumTree(len(leaves))
    tree.update(np.arange(len(leaves)), leaves)
    return tree


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_random_updates_keep_the_sums_and_the_largest(capacity):
    rng = np.random.default_rng(capacity)
    tree, leaves = SumTree(capacity), np.zeros(capacity)
    assert tree.total == tree.largest == 0
    for _ in range(50):
        indices = rng.choice(capacity, size=rng.integers(1, min(capacity, 40) + 1), replace=False)
        leaves[indices] = rng.integers(0, 9, size=len(indices)) * rng.integers(0, 2)
        tree.update(indices, leaves[indices])
        assert tree.total == leaves.sum() and tree.largest == leaves.max()
        np.testing.assert_array_equal(tree[np.arange(capacity)], leaves)
        if tree.total > 0:
            prefix_sums = rng.uniform(0, leaves.sum(), size=20)
            expected = np.searchsorted(leaves.cumsum(), prefix_sums, side="right")
            np.testing.assert_array_equal(tree.find(prefix_sums), expected)


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_whole_number_finds_the_leaf_of_that_rank(capacity):
    ones = np.random.default_rng(0).random(capacity) < 0.3
    ones[-1] = True
    tree = filled(ones.astype(float))
    np.testing.assert_array_equal(tree.find(np.arange(ones.sum())), np.flatnonzero(ones))


def test_each_boundary_belongs_to_the_leaf_that_begins_there():
    tree = filled(np.array([0.0, 2.0, 0.0, 0.0, 3.0, 0.0]))
    np.testing.assert_array_equal(tree.find(np.array([0.0, 1.999, 2.0, 4.999])), [1, 1, 4, 4])


def test_one_value_sets_many_leaves_and_an_empty_update_none():
    tree = filled(np.arange(100.0))
    tree.update(np.array([3, 50, 99]), 0.0)
    tree.update(np.array([], dtype=np.int64), 7.0)
    assert tree.total == sum(range(100)) - 3 - 50 - 99


def test_rounding_never_finds_an_empty_leaf():
    """Sums of numbers that differ by 1e12 are inexact; the end of the total is where that would show."""
    rng = np.random.default_rng(1)
    leaves = 10.0 ** rng.uniform(-6, 6, size=3000) * (rng.random(3000) < 0.2)
    leaves[-500:] = 0
    tree = filled(leaves)
    near_the_end = tree.total * (1 - np.geomspace(1e-16, 1e-3, 1000))
    found = tree.find(np.concatenate([near_the_end, rng.uniform(0, tree.total, 5000), [tree.total]]))
    assert (leaves[found] > 0).all()


def test_rounding_errors_do_not_accumulate():
    """A tree that adds differences to its sums would keep the rounding of the large numbers."""
    tree = SumTree(2000)
    rng = np.random.default_rng(2)
    for scale in (1e12, 1e-6):
        for _ in range(50):
            tree.update(rng.permutation(2000), scale * rng.random(2000))
    assert tree.total == pytest.approx(tree[np.arange(2000)].sum(), rel=1e-12)


def test_a_million_leaves():
    capacity = 1_000_003
    tree, rng = SumTree(capacity), np.random.default_rng(3)
    leaves = rng.random(capacity)
    leaves[rng.random(capacity) < 0.5] = 0
    tree.update(np.arange(capacity), leaves)
    indices = rng.choice(capacity, size=1000, replace=False)
    leaves[indices] = 5.0
    tree.update(indices, 5.0)
    assert tree.total == pytest.approx(leaves.sum(), rel=1e-12)
    prefix_sums = np.sort(rng.uniform(0, leaves.sum(), size=1000))
    expected = np.searchsorted(leaves.cumsum(), prefix_sums, side="right")
    found = tree.find(prefix_sums)
    # Two ways of summing round differently, so a number close to a boundary may fall on either side
    assert (np.diff(found) >= 0).all() and (leaves[found] > 0).all()
    assert (found == expected).mean() > 0.99
