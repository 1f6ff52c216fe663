"""A Ray cluster that the tests of a module share, since starting one takes seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from sb3_attn.distributed import connect


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Actors import what the tests define, but Ray passes only one folder of this process's path on to them
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "2")  # what actors have unless it is set otherwise
        with connect(1, "the tests"):
            yield
