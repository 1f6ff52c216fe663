"""Tests of this folder that take ``make`` run with each algorithm, since both make these promises."""

import pytest

from tests.helpers.models import ALGORITHMS, Make


@pytest.fixture(params=ALGORITHMS)
def make(request: pytest.FixtureRequest) -> Make:
    """Makes small models of one algorithm."""
    return ALGORITHMS[request.param]
