"""examples/demo.py: its parts on a small run, and all of it where training is allowed to take a minute."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.env_util import make_vec_env

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from sb3_attn import RecurrentDQN

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
ENV_ID = "MemoryChain-v0"


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    return runpy.run_path(str(DEMO))


def test_scores_and_learning_curve_of_a_run(demo: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run leaves a zip and, in the same folder, one Monitor file for each environment."""
    env = make_vec_env(ENV_ID, 2, seed=0, monitor_dir=str(tmp_path), env_kwargs=dict(length=5))
    model = RecurrentDQN("MlpPolicy", env, buffer_size=1000, device="cpu", seed=0).learn(600)
    env.close()
    model.save(tmp_path / "model.zip")
    demo["evaluate"](tmp_path / "model.zip")
    table = capsys.readouterr().out
    assert re.search(r"without memory\D+0\.00", table)
    demo["plot"](tmp_path, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[1:4] == b"PNG"
    demo["plt"].close("all")  # other tests look at what pyplot has open


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(3))
def test_the_demo_solves_its_task(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, str(DEMO), "--seed", str(seed), "--folder", str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    trained, state_zeroed, ceiling = (float(score) for score in re.findall(r"│\s+(-?\d\.\d\d)", output))
    assert trained >= 0.95
    assert abs(state_zeroed - ceiling) <= 0.25  # 3.5 standard errors
    assert len(list(tmp_path.glob(f"rdqn/{ENV_ID}_1/learning_curve.png"))) == 1
