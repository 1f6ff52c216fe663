"""examples/lunar_lander_memory.py: a short recording of the shipped model."""

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")

EXAMPLE = Path(__file__).parents[2] / "examples" / "lunar_lander_memory.py"


# Box2D crashes the interpreter if its deprecation warnings are errors
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
def test_pages_of_the_shipped_model_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--episodes", "2", "--steps", "3", "--out", str(tmp_path)])
    example = runpy.run_path(str(EXAMPLE))
    monkeypatch.setitem(example["main"].__globals__, "N_EPISODES", 1)
    example["main"]()
    assert "Episode 2: 3 steps, return " in (output := capsys.readouterr().out)
    assert output.count("Mean return of 1 episodes") == 2
    assert 'href="episode_2.html"' in (tmp_path / "index.html").read_text(encoding="utf-8")
