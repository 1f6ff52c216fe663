"""Observations, one array or a dict of them."""

import numpy as np
import pytest
import torch as th

from sb3_attn.common.observations import batch_size, map_obs

ARRAY = np.arange(6.0).reshape(3, 2)


def test_a_function_is_applied_to_one_array_or_to_each_of_a_dict():
    np.testing.assert_array_equal(map_obs(np.negative, ARRAY), -ARRAY)
    result = map_obs(np.negative, {"a": ARRAY, "b": ARRAY[:, 0]})
    assert list(result) == ["a", "b"]
    np.testing.assert_array_equal(result["a"], -ARRAY)
    np.testing.assert_array_equal(result["b"], -ARRAY[:, 0])


def test_a_function_of_several_observations_gets_their_matching_arrays():
    first, second = ({"a": sign * ARRAY, "b": sign * ARRAY[0]} for sign in (1, 10))
    np.testing.assert_array_equal(map_obs(np.add, ARRAY, 10 * ARRAY), 11 * ARRAY)
    result = map_obs(np.add, first, dict(reversed(second.items())))
    np.testing.assert_array_equal(result["a"], 11 * ARRAY)
    np.testing.assert_array_equal(result["b"], 11 * ARRAY[0])


@pytest.mark.parametrize("obs", [ARRAY, th.zeros(3, 5), {"a": ARRAY, "b": ARRAY[:, 0]}, {"a": th.zeros(3)}])
def test_the_batch_size_is_the_leading_axis(obs):
    assert batch_size(obs) == 3
