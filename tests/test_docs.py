"""The documentation: its examples run, and its table of the constructor's arguments is complete."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from stable_baselines3 import DQN

from sb3_attn import RecurrentDQN

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide" / "recurrent_dqn.md"
OURS = inspect.signature(RecurrentDQN).parameters
THEIRS = inspect.signature(DQN).parameters

#: The pages that readers copy from
PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
NEEDS_RAY = {"ray_vec_env.md"}


def code_of(page: Path) -> str:
    """The Python blocks of a page at their own lines, so that a traceback shows the line of the page."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line.startswith("```python")
            line = ""
        lines.append(line if inside else "")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=pytest.mark.ray if page.name in NEEDS_RAY else ()) for page in PAGES]
)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace, as a reader would run them, but with only 200 steps of training."""
    monkeypatch.chdir(tmp_path)
    code, n_trainings = re.subn(r"\.learn\([\d_]+", ".learn(200", code_of(page))
    assert n_trainings == code.count(".learn("), "every example names its number of steps first, so that it can be cut short"
    exec(compile(code, str(page), "exec"), {"__name__": page.stem})


def test_the_table_of_switches_has_every_one_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    defaults = {name: ast.literal_eval(default) for name, default in rows}
    assert defaults == {name: OURS[name].default for name in OURS.keys() - THEIRS.keys() | {"n_steps"}}


def test_all_arguments_of_dqn_are_taken() -> None:
    assert THEIRS.keys() <= OURS.keys()


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700
