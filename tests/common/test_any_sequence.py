"""Returns of whatever sequence there may be: Hypothesis looks for one that differs from the definition."""

import numpy as np
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_attn.common import td
from tests.common.test_td import GAMMA, lambda_return, n_step_return

NUMBERS = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    rows=st.lists(
        st.tuples(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=8), st.booleans()), min_size=1, max_size=4
    ),
    n=st.integers(1, 10),
    td_lambda=st.floats(0, 1),
)
def test_returns_are_those_of_the_definition(
    rows: list[tuple[list[tuple[float, float]], bool]], n: int, td_lambda: float
) -> None:
    shape = max(len(steps) for steps, _ in rows), len(rows)
    rewards, next_values, discounts = np.full((3, *shape), np.nan)  # padding must not matter
    mask = np.zeros(shape, bool)
    for b, (steps, terminated) in enumerate(rows):
        length = len(steps)
        rewards[:length, b], next_values[:length, b] = zip(*steps, strict=True)
        discounts[:length, b] = GAMMA
        discounts[length - 1, b] *= not terminated
        mask[:length, b] = True
    batch = [th.from_numpy(array) for array in (rewards, discounts, next_values, mask)]
    n_step, blended = td.n_step_returns(*batch, n=n), td.lambda_returns(*batch, td_lambda=td_lambda)
    for b, (steps, terminated) in enumerate(rows):
        row = [reward for reward, _ in steps], [value for _, value in steps], terminated
        for t in range(len(steps)):
            np.testing.assert_allclose(n_step[t, b], n_step_return(*row, t, n), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(blended[t, b], lambda_return(*row, t, td_lambda), rtol=1e-9, atol=1e-9)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(x=st.floats(-1e6, 1e6))
def test_value_rescaling_has_its_inverse_everywhere(x: float) -> None:
    value = th.tensor(x, dtype=th.float64)
    np.testing.assert_allclose(td.signed_parabolic(td.signed_hyperbolic(value)), x, rtol=1e-9, atol=1e-12)
