"""The benchmark of faults: what happens in forks comes back, damage is damage, and an outcome is told from another."""

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

if sys.platform == "win32":
    pytest.skip("needs fork()", allow_module_level=True)

from benchmarks.reliability import forks
from benchmarks.reliability.faults import File, cell, measure, mutate
from benchmarks.reliability.forks import in_fork, kill
from benchmarks.runner import Context

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def die() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_the_end_of_a_fork_is_its_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "LONGEST", 1)
    assert in_fork(lambda: "well") == "well"
    assert in_fork(lambda: {}["key"]) == "KeyError"  # type: ignore[return-value]
    assert in_fork(die) == "dies by SIGKILL"
    assert in_fork(lambda: str(time.sleep(9))) == "hangs for 1 s"


def test_a_killed_process_is_killed_in_the_middle(tmp_path: Path) -> None:
    kill(lambda: (tmp_path / "begun").touch() or time.sleep(99), seconds=0.3)
    assert (tmp_path / "begun").exists()


def test_damage_is_of_all_kinds() -> None:
    rng, content = np.random.default_rng(0), bytes(range(256)) * 40
    lengths = {np.sign(len(mutate(content, rng)) - len(content)) for _ in range(50)}
    assert lengths == {-1, 0, 1}


@pytest.mark.parametrize("kind", ["model", "replay", "checkpoint"])
def test_a_file_is_the_same_until_it_is_another(kind: str, tmp_path: Path) -> None:
    file = File(kind, "RecurrentDQN", tmp_path)
    assert file.outcome() == "loads the same"
    name = next(iter(file.content))
    file.content[name] = np.asarray(file.content[name]) + 1
    assert file.outcome() == "loads different"
    damaged = file.path / "model.zip" if kind == "checkpoint" else file.path
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="is damaged") if kind == "checkpoint" else pytest.MonkeyPatch.context():
        assert file.outcome() == "error that names the file"


@pytest.mark.parametrize("fault", ["hostile pickles", "Adam's moments of other shapes", "disk full while a replay is saved"])
def test_a_fault_has_other_outcomes_in_stock_dqn(fault: str) -> None:
    expected = {
        "hostile pickles": ({"code ran"}, {"no code ran"}),
        "Adam's moments of other shapes": ({"RuntimeError, weights are good"}, {"ValueError at load()"}),
        "disk full while a replay is saved": (
            {"OSError without the path, the old file is destroyed"},
            {"OSError with the path, the old file is kept"},
        ),
    }
    for algorithm, outcomes in zip(("DQN", "RecurrentDQN"), expected[fault], strict=True):
        assert measure(Context(0), fault, algorithm, n=2)["outcomes"].keys() == outcomes


def test_outcomes_are_counted_unless_there_is_one() -> None:
    assert cell(Counter({"unreadable": 2, "loads the same": 3})) == "3 loads the same, 2 unreadable"
    assert (cell(Counter({"is saved": 1})), cell(Counter())) == ("is saved", "-")
