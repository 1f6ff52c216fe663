"""The documentation: its examples run, and its table of the constructor's arguments is complete."""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_attn import R2D2, RecurrentDQN
from sb3_attn.recurrent_dqn import diagnostics
from sb3_attn.recurrent_dqn.arguments import CONTRIB_ARGUMENTS

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide" / "recurrent_dqn.md"
DIAGNOSTICS = ROOT / "docs" / "guide" / "diagnostics.md"
MIGRATION = ROOT / "docs" / "migration.md"
OURS = inspect.signature(RecurrentDQN).parameters
THEIRS = inspect.signature(DQN).parameters

#: design.md shows parts of our own code; zoo.md uploads to the Hub
NOT_TO_RUN = {"design.md", "zoo.md"}
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if page.name not in NOT_TO_RUN and "```python" in page.read_text(encoding="utf-8")
]
PAGES += sorted((ROOT / "examples").rglob("*.ipynb"))
NEEDS_RAY = {"ray_vec_env.md"}


def code_of(page: Path) -> str:
    """The Python blocks of a page at their own lines, so that a traceback shows the line of the page; or a notebook's."""
    if page.suffix == ".ipynb":
        cells = [cell for cell in json.loads(page.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        return "".join(line for cell in cells for line in [*cell["source"], "\n"] if not line.startswith("%"))
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


def test_the_table_of_dqns_arguments_has_every_other_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w.-]+) \| ([\w.-]+) \|$", MIGRATION.read_text(encoding="utf-8"), re.MULTILINE)
    defaults = {name: tuple(map(ast.literal_eval, both)) for name, *both in rows}
    both = {name: (THEIRS[name].default, OURS[name].default) for name in THEIRS.keys() & OURS.keys()}
    assert defaults == {name: (theirs, ours) for name, (theirs, ours) in both.items() if theirs != ours}


def test_the_table_of_recurrent_ppos_arguments_has_all_that_differ() -> None:
    table = MIGRATION.read_text(encoding="utf-8").partition("\n| RecurrentPPO |")[2].partition("\n\n")[0]
    described = {name for row in table.splitlines() for name in re.findall(r"\w+", row.split("|")[1])}
    theirs = inspect.signature(RecurrentPPO).parameters
    differ = {name for name in theirs if name not in OURS or theirs[name].default != OURS[name].default}
    assert differ | CONTRIB_ARGUMENTS.keys() <= described


class Keys(KVWriter):
    """Records which keys are logged."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.keys |= key_values.keys()

    def close(self) -> None: ...


def logged_keys(algorithm: type[RecurrentDQN], **kwargs: Any) -> set[str]:
    """The keys of a short run that has everything of which something can be logged."""
    env = make_vec_env("MemoryChain-v0", n_envs=2)
    lengths = dict(trace_length=4, burn_in_length=2, batch_size=4, buffer_size=400, learning_starts=40)
    model = algorithm("MlpPolicy", env, seed=0, **lengths, **kwargs)
    keys = Keys()
    model.set_logger(Logger(None, [keys]))
    evaluation = EvalCallback(make_vec_env("MemoryChain-v0"), n_eval_episodes=1, eval_freq=50, verbose=0)
    model.learn(200, evaluation, log_interval=1)
    return keys.keys


def test_the_table_of_keys_has_every_one(monkeypatch: pytest.MonkeyPatch) -> None:
    section = DIAGNOSTICS.read_text(encoding="utf-8").partition("\n## Every key\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \| (.+) \|$", section, re.MULTILINE)
    described = {key: text for keys, text in rows for key in re.findall(r"`(.+?)`", keys)}
    of_r2d2 = {key for key, text in described.items() if text.startswith("`R2D2`: ")}
    monkeypatch.setattr(diagnostics, "DELTA_Q_INTERVAL", 1)
    assert logged_keys(RecurrentDQN) == described.keys() - of_r2d2
    assert logged_keys(R2D2, settings="small", rollout_length=10) == described.keys()


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700
