"""Every test begins with the same random numbers, in whatever order the tests run, and has one thread."""

import os

import pytest

# Before PyTorch is imported. Small networks are several times slower on two threads, and far slower beside other programs
os.environ.setdefault("OMP_NUM_THREADS", "1")

from stable_baselines3.common.utils import set_random_seed


@pytest.fixture(autouse=True)
def _seed() -> None:
    set_random_seed(0)
