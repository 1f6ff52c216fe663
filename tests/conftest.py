"""Every test begins with the same random numbers, in whatever order the tests run."""

import pytest
from stable_baselines3.common.utils import set_random_seed


@pytest.fixture(autouse=True)
def _seed() -> None:
    set_random_seed(0)
