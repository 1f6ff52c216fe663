"""What the documentation says of the constructor's arguments."""

import ast
import inspect
import re
from pathlib import Path

from stable_baselines3 import DQN

from sb3_attn import RecurrentDQN

GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "recurrent_dqn.md"
OURS = inspect.signature(RecurrentDQN).parameters
THEIRS = inspect.signature(DQN).parameters


def test_the_table_of_switches_has_every_one_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    defaults = {name: ast.literal_eval(default) for name, default in rows}
    assert defaults == {name: OURS[name].default for name in OURS.keys() - THEIRS.keys() | {"n_steps"}}


def test_all_arguments_of_dqn_are_taken() -> None:
    assert THEIRS.keys() <= OURS.keys()
