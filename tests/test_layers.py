"""The layer rule of docs/design.md: a layer imports only lower ones, optional packages appear only in the top one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sb3_attn"
MODULES = sorted(PACKAGE.rglob("*.py"))

LEVELS = {
    "version": -1,
    **dict.fromkeys(("common", "envs"), 0),
    **dict.fromkeys(("attention", "memory"), 1),
    **dict.fromkeys(("extractors", "replay"), 2),
    **dict.fromkeys(("dqn", "recurrent_dqn"), 3),
    "r2d2": 4,
    **dict.fromkeys(("distributed", "viz"), 5),
    "zoo": 6,  # the command line, which calls what the others offer
}
TOP = 5  # from here on optional packages are allowed
OPTIONAL = ("rl_zoo3", "ray", "matplotlib", "imageio", "optuna", "popgym", "minigrid", "pandas", "requests", "yaml", "cv2")

# Third-party packages each part may import. The learning code sees a state as a flat tuple of arrays, so replay works
# with any core; a core knows no framework, so it works outside Stable-Baselines3 too.
BASE_INSTALL = {"numpy", "torch", "gymnasium", "stable_baselines3", "sb3_contrib", "ale_py", "cloudpickle"}
THIRD_PARTY = {
    "common": {"numpy", "torch"},
    "envs": {"numpy", "gymnasium"},
    "attention": {"numpy", "torch"},
    "memory": {"numpy", "torch"},
}
FORBIDDEN = {"replay": {"memory", "attention"}}


def imported_modules(source: str, module: str) -> set[str]:
    """Absolute dotted names of all modules that ``source`` imports anywhere, also inside functions.

    :param source: Python source of the module
    :param module: dotted name of the package that relative imports start from
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: len(module.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            # `from sb3_attn import zoo` and `from . import zoo` name the module only in the list.
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def layer_faults(source: str, part: str, package: str) -> list[str]:
    """Sentences about the imports of ``source`` that break the layer rule; empty if there are none.

    :param source: Python source of the module
    :param part: the part of sb3_attn it belongs to, ``""`` for ``sb3_attn/__init__.py``
    :param package: dotted name of the package that relative imports start from
    """
    level = LEVELS.get(part, TOP)
    allowed = THIRD_PARTY.get(part, BASE_INSTALL)
    faults = []
    for name in sorted(imported_modules(source, package)):
        top, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if top == "sb3_attn":
            if other not in LEVELS or other == part:
                continue
            if LEVELS[other] >= level or other in FORBIDDEN.get(part, ()):
                faults.append(f"{part or 'sb3_attn'} (level {level}) imports {name}")
        elif (part == "" or level < TOP) and top not in sys.stdlib_module_names | allowed:
            faults.append(f"{part or 'sb3_attn'} imports {name}, which only the top layer may")
    return faults


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).parts[:-1])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_layer_imports_only_lower_ones(path: Path):
    assert part_of(path) in {"", *LEVELS}, f"{path} belongs to no layer; add its part to LEVELS and to docs/design.md"
    assert layer_faults(path.read_text(encoding="utf-8"), part_of(path), package_of(path)) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("memory", "import stable_baselines3"),
        ("memory", "from sb3_attn.attention import functional"),
        ("common", "def f():\n    import gymnasium"),
        ("replay", "from sb3_attn.memory.core import MemoryCore"),
        ("replay", "from ..memory import core"),
        ("recurrent_dqn", "import rl_zoo3"),
        ("recurrent_dqn", "from sb3_attn.zoo.registration import register"),
        ("envs", "import popgym"),
        ("envs", "from sb3_attn import recurrent_dqn"),
        ("viz", "from sb3_attn import zoo"),
        ("recurrent_dqn", "from sb3_attn.viz import record_episode"),
        ("", "import sb3_attn.zoo"),
        ("", "from rl_zoo3 import ALGOS"),
    ],
)
def test_the_rule_finds_a_forbidden_import(part: str, source: str):
    assert len(layer_faults(source, part, f"sb3_attn.{part}".rstrip("."))) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("memory", "import math\nimport torch\nfrom sb3_attn.common import core_state\nfrom .core import MemoryCore"),
        ("recurrent_dqn", "from stable_baselines3 import DQN\nfrom sb3_attn.memory import make_core"),
        ("zoo", "import rl_zoo3\nfrom sb3_attn.viz import record_episode\nfrom sb3_attn.recurrent_dqn import RecurrentDQN"),
        ("", "from sb3_attn.recurrent_dqn import RecurrentDQN\nfrom sb3_attn.version import __version__"),
    ],
)
def test_the_rule_lets_lower_layers_through(part: str, source: str):
    assert layer_faults(source, part, f"sb3_attn.{part}".rstrip(".")) == []


def test_everything_below_the_top_layer_imports_with_the_base_install():
    """Import every module below the top layer in a fresh process in which no optional package can be found."""
    names = []
    for path in MODULES:
        if LEVELS.get(part_of(path), 0) < TOP:
            dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            names.append(dotted.removesuffix(".__init__"))
    code = f"""
import importlib, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotInstalled())
for name in {names!r}:
    importlib.import_module(name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_leaves_the_zoo_alone():
    """RL Zoo must not be imported, or its argument parser would read its algorithms before we register ours."""
    code = "import sys, sb3_attn; print({'sb3_attn.zoo', 'rl_zoo3', 'ray', 'optuna'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body; signature and docstring grow with SB3's arguments, not with the logic."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def code_lines(source: str) -> int:
    """Lines of code: docstrings, signatures, comments and blank lines grow with what is explained, not with the logic."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            skipped.update(range(node.lineno, node.body[0].lineno))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            skipped.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(number not in skipped and bool(line.strip()) and not line.lstrip().startswith("#") for number, line in lines)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_short(path: Path):
    source = path.read_text(encoding="utf-8")
    assert code_lines(source) <= 350, "split the module"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 90 if node.name == "train" else 60
            assert body_length(node) <= limit, f"{node.name} is {body_length(node)} lines long; the limit is {limit}"
