"""The shipped hyperparameters solve their tasks within their budgets, by memory and by nothing else."""

from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("popgym")

from benchmarks.learning.memory_tasks import TASKS, measure, settings
from benchmarks.runner import Context, Options


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["MemoryChain-v0", "AssociativeRecall-v0", "popgym-RepeatFirstEasy-v0"])
def test_reaches_its_threshold_by_memory(name: str, seed: int, tmp_path: Path) -> None:
    result = measure(Context(seed, tmp_path), **settings(Options())[name])
    threshold, ceiling = TASKS[name]
    assert result["score"] >= threshold, "the model at the end of training"
    # A guess scatters; at four standard errors one sound model in 30,000 fails
    assert result["state_zeroed"] <= ceiling + 4 * result["state_zeroed_standard_error"], "without its memory"
