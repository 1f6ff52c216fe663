"""Every core learns what needs its memory, in RecurrentDQN and over stacked frames."""

from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("popgym")

from benchmarks.cores import CORES, TASKS, run, solved_at

RUNS = [(task, core) for task in TASKS for core in CORES if TASKS[task].algo == "rdqn" or CORES[core] is not None]


@pytest.mark.learning
@pytest.mark.parametrize(("task", "core"), [pair for pair in RUNS if pair[0] != "AssociativeRecall8-v0"])
@pytest.mark.parametrize("seed", range(3))
def test_a_core_reaches_the_bar(task: str, core: str, seed: int, tmp_path: Path) -> None:
    assert run(task, core, seed, tmp_path)["curve"][-1][1] >= TASKS[task].bar


@pytest.mark.learning
def test_eight_pairs_are_learned_faster_than_by_an_lstm(tmp_path: Path) -> None:
    memory, lstm = (run("AssociativeRecall8-v0", name, 0, tmp_path) for name in ("key_value", "lstm"))
    solved, solved_by_lstm = solved_at(memory), solved_at(lstm)
    assert solved is not None and (solved_by_lstm is None or 2 * solved < solved_by_lstm)
