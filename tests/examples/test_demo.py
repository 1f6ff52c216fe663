"""examples/demo.py: its parts on a small run, and all of it where training is allowed to take a minute."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.processes import ENV_ID, TrainingRun

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scores_and_curve_of_a_run(demo: ModuleType, training_run: TrainingRun, tmp_path: Path, capsys) -> None:
    demo.evaluate(training_run.folder / f"{ENV_ID}.zip")
    table = capsys.readouterr().out
    assert re.search(r"without memory\D+0\.00", table)
    demo.plot(training_run.folder, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(3))
def test_demo_solves_its_task(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, str(DEMO), "--seed", str(seed), "--folder", str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    trained, state_zeroed, ceiling = (float(score) for score in re.findall(r"│\s+(-?\d\.\d\d)", output))
    assert trained >= 0.95
    assert abs(state_zeroed - ceiling) <= 0.25  # 3.5 standard errors
    assert len(list(tmp_path.glob(f"rdqn/{ENV_ID}_1/learning_curve.png"))) == 1
