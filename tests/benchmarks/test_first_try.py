"""The documentation's figures of the first try are those of the results file."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("popgym")
pytest.importorskip("matplotlib")

from benchmarks import runner
from benchmarks.learning.first_try import TASKS, best_recurrent_ppo
from benchmarks.runner import Options, Run, values

ROOT = Path(runner.__file__).parents[1]
#: Rows of docs/migration.md
NAMES = {
    "CartPole-v1": "CartPole-v1",
    "CartPole without velocities": "CartPoleNoVel-v1",
    "MemoryChain, 30 steps": "MemoryChain-v0",
    "MemoryChain, 100 steps": "MemoryChain-v0/100",
    "RepeatFirst": "popgym-RepeatFirstEasy-v0",
    "AssociativeRecall": "AssociativeRecall-v0",
    "RepeatPrevious": "popgym-RepeatPreviousEasy-v0",
}


@pytest.fixture(scope="module")
def variants() -> runner.Variants:
    settings = runner.load("first_try").settings(Options())
    return runner.in_order(runner.read(ROOT / "benchmarks" / "results" / "first_try.json"), settings)


def mean(task: str, runs: list[Run]) -> str:
    return format(np.mean(values(runs, "score")), ".0f" if (TASKS[task].bar or 0) > 1 else ".2f")


def seconds(runs: list[Run]) -> str:
    return format(1e5 / runs[0].settings["n_steps"] * np.mean(values(runs, "cpu_seconds")), ".0f")


def row(page: str, first: str) -> list[str]:
    """The cells of the first table row that begins with a cell, without its marks."""
    rows = [line.strip("|").split("|") for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()]
    return next([cell.strip(" *") for cell in cells] for cells in rows if cells[0].strip(" *") == first)


@pytest.mark.parametrize("task", TASKS)
def test_the_table_of_results(variants: runner.Variants, task: str) -> None:
    _, _, _, ours, _, _, theirs, *_ = row("results.md", task)
    assert ours == mean(task, variants[task])
    assert theirs.split(" ")[0] == mean(task, list(best_recurrent_ppo(variants, task)))


@pytest.mark.parametrize("name", NAMES)
def test_the_table_for_users_of_recurrent_ppo(variants: runner.Variants, name: str) -> None:
    task = NAMES[name]
    ours, theirs = variants[task], variants[f"{task}, RecurrentPPO with RL Zoo's for CartPoleNoVel"]
    expected = [mean(task, ours), mean(task, theirs), f"{seconds(ours)}, {seconds(theirs)}"]
    assert row("migration.md", name)[2:] == expected
