"""The rules of docs/design.md: imports lead to lower layers and make no cycle; modules and functions stay short."""

import ast
import re
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DESIGN = ROOT / "docs" / "design.md"
#: Path of each module below the repository, by the module's name
MODULES = {
    ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(path.relative_to(ROOT) for path in (ROOT / "sb3_attn").rglob("*.py"))
}

LEVELS = {
    "version": -1,
    **dict.fromkeys(("common", "envs"), 0),
    **dict.fromkeys(("attention", "memory"), 1),
    **dict.fromkeys(("extractors", "replay"), 2),
    **dict.fromkeys(("dqn", "recurrent_dqn"), 3),
    "r2d2": 4,
    **dict.fromkeys(("distributed", "viz"), 5),
    "zoo": 6,
}
LOWEST_OPTIONAL_LEVEL = 5  # optional packages are allowed from here on
OPTIONAL = ("rl_zoo3", "ray", "matplotlib", "imageio", "optuna", "popgym", "minigrid", "pandas", "requests", "yaml", "cv2")

# Third-party packages each part may import. The learning code sees a state as a flat tuple of arrays, so replay works
# with any core; a core knows no framework, so it works outside Stable-Baselines3 too.
BASE_INSTALL = {"numpy", "torch", "gymnasium", "stable_baselines3", "sb3_contrib", "ale_py", "cloudpickle"}
THIRD_PARTY = {
    "common": {"numpy", "torch"},
    "envs": {"numpy", "gymnasium", "stable_baselines3"},
    "attention": {"numpy", "torch"},
    "memory": {"numpy", "torch"},
}
FORBIDDEN = {"replay": {"memory", "attention"}}

#: The only imports that lead upwards: made when a user asks for Ray, by name, so that R2D2 works without it
UPWARD = {("sb3_attn.r2d2.r2d2", "sb3_attn.distributed")}


def source_of(module: str) -> str:
    return (ROOT / MODULES[module]).read_text(encoding="utf-8")


def part_of(module: str) -> str:
    """The part of sb3_attn that a module belongs to; ``""`` for sb3_attn itself."""
    return module.split(".")[1] if "." in module else ""


# ---------------------------------------------------------------- imports


def imported_names(source: str, package: str) -> set[str]:
    """
    Names that a module imports anywhere: at its top, inside functions, under ``TYPE_CHECKING``, by ``importlib``.

    :param source: Python source of the module
    :param package: where relative imports start from
    :return: absolute dotted names, of modules or of what a module has
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                names.update(alias.name for alias in node.names)
            case ast.ImportFrom():
                # `from sb3_attn import zoo` and `from . import zoo` name the module only in the list
                base = resolve_name("." * node.level + (node.module or ""), package)
                names.update(f"{base}.{alias.name}" for alias in node.names)
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                names.add(name)
    return names


def imports_of(module: str) -> set[str]:
    """Names that a module of sb3_attn imports."""
    is_package = MODULES[module].name == "__init__.py"
    return imported_names(source_of(module), module if is_package else module.rpartition(".")[0])


def layer_faults(module: str, names: set[str]) -> list[str]:
    """
    List the imports that break the layer rule.

    :param module: dotted name of the module
    :param names: the names that it imports
    :return: a sentence for each
    """
    part = part_of(module)
    level = LEVELS.get(part, LOWEST_OPTIONAL_LEVEL)  # sb3_attn itself stands above all that need no optional package
    allowed = BASE_INSTALL if part == "" else THIRD_PARTY.get(part, BASE_INSTALL)
    faults = []
    for name in sorted(names):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "sb3_attn":
            if other not in LEVELS or other == part or (module, name) in UPWARD:
                continue
            if LEVELS[other] >= level or other in FORBIDDEN.get(part, ()):
                faults.append(f"{module} (level {level}) imports {name}")
        elif (part == "" or level < LOWEST_OPTIONAL_LEVEL) and top not in sys.stdlib_module_names | allowed:
            faults.append(f"{module} imports {name}, which is not among the packages allowed there")
    return faults


def test_a_layer_imports_only_lower_ones():
    assert [fault for module in MODULES for fault in layer_faults(module, imports_of(module))] == []


def test_the_layers_are_those_of_the_design():
    """Each part has a line such as ``memory/  1  torch  ...`` in the layout of docs/design.md."""
    assert {part_of(module) for module in MODULES} == {"", *LEVELS}
    lines = re.findall(r"^  (\w+)/ +(\d) ", DESIGN.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"version": -1} | {part: int(level) for part, level in lines} == LEVELS


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sb3_attn.memory.x", "import stable_baselines3"),
        ("sb3_attn.memory.x", "from sb3_attn.attention import functional"),
        ("sb3_attn.common.x", "def f():\n    import gymnasium"),
        ("sb3_attn.replay.x", "from sb3_attn.memory.core import MemoryCore"),
        ("sb3_attn.replay.x", "from ..memory import core"),
        ("sb3_attn.recurrent_dqn.x", "import rl_zoo3"),
        ("sb3_attn.recurrent_dqn.x", "from sb3_attn.zoo.registration import register"),
        ("sb3_attn.recurrent_dqn.x", "import importlib\nimportlib.import_module('sb3_attn.zoo')"),
        ("sb3_attn.envs.x", "import popgym"),
        ("sb3_attn.envs.x", "from sb3_attn import recurrent_dqn"),
        ("sb3_attn.viz.x", "from sb3_attn import zoo"),
        ("sb3_attn.recurrent_dqn.x", "from sb3_attn.viz import record_episode"),
        ("sb3_attn", "import sb3_attn.zoo"),
        ("sb3_attn", "from rl_zoo3 import ALGOS"),
    ],
)
def test_the_layer_rule_finds_a_forbidden_import(module: str, source: str):
    assert len(layer_faults(module, imported_names(source, module.rpartition(".")[0]))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sb3_attn.memory.x", "import math\nimport torch\nfrom sb3_attn.common import core_state\nfrom .core import Core"),
        ("sb3_attn.recurrent_dqn.x", "from stable_baselines3 import DQN\nfrom sb3_attn.memory import make_core"),
        ("sb3_attn.zoo.x", "import rl_zoo3\nfrom sb3_attn.viz import record_episode\nfrom sb3_attn.r2d2 import R2D2"),
        ("sb3_attn", "from sb3_attn.recurrent_dqn import RecurrentDQN\nfrom sb3_attn.version import __version__"),
    ],
)
def test_the_layer_rule_lets_lower_layers_through(module: str, source: str):
    assert layer_faults(module, imported_names(source, module.rpartition(".")[0])) == []


def module_graph(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """
    Draw the imports between modules.

    :param imports: the names that each module imports, by the module's name
    :return: the modules among them that each module imports. That Python imports the packages around a module before the
        module itself does not count: a package exports what its modules have, so that alone would make a cycle.
    """
    graph: dict[str, set[str]] = {}
    for module, names in imports.items():
        owners = {name if name in imports else name.rpartition(".")[0] for name in names}
        graph[module] = (owners & imports.keys()) - {module}
    return graph


def import_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, from one back to itself; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def test_there_is_no_import_cycle():
    assert import_cycle(module_graph({module: imports_of(module) for module in MODULES})) == []


@pytest.mark.parametrize(
    "back",
    [
        "from p.a import f",
        "from p import a",
        "from . import a",
        "if TYPE_CHECKING:\n    from p.a import A",
        "def g():\n    import p.a",
        "importlib.import_module('p.a')",
    ],
)
def test_every_kind_of_import_can_close_a_cycle(back: str):
    sources = {"p": "from p.a import f", "p.a": "from p.b import g\nimport torch", "p.b": "from p.c import h", "p.c": back}
    cycle = import_cycle(module_graph({module: imported_names(source, "p") for module, source in sources.items()}))
    assert sorted(cycle[1:]) == ["p.a", "p.b", "p.c"] and cycle[0] == cycle[-1]
    assert dict(pairwise(cycle)) == {"p.a": "p.b", "p.b": "p.c", "p.c": "p.a"}


def test_everything_below_the_optional_layers_imports_with_the_base_install():
    """Import all these modules in a fresh process in which no optional package can be found."""
    names = [module for module in MODULES if LEVELS.get(part_of(module), 0) < LOWEST_OPTIONAL_LEVEL]
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


# ---------------------------------------------------------------- lengths


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


def length_faults(module: str, source: str) -> list[str]:
    """List a module and those of its functions that are too long."""
    faults = []
    if (n_lines := code_lines(source)) > 350:
        faults.append(f"{module} has {n_lines} lines of code, more than 350")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 90 if node.name == "train" else 60
            if (n_lines := body_length(node)) > limit:
                faults.append(f"{module}: {node.name} has {n_lines} lines, more than {limit}")
    return faults


def test_modules_and_functions_stay_short():
    assert [fault for module in MODULES for fault in length_faults(module, source_of(module))] == []


def test_the_length_rule_finds_a_long_module_and_a_long_function():
    function = 'def f(\n    x,\n):\n    """Doc."""\n' + "    x += 1\n" * 61
    assert length_faults("m", function) == ["m: f has 61 lines, more than 60"]
    assert length_faults("m", function.replace("def f", "def train")) == []
    assert length_faults("m", '"""Doc."""\n\n# why\n' + "x = 1\n" * 351) == ["m has 351 lines of code, more than 350"]
    assert length_faults("m", '"""Doc."""\n\n# why\n' + "x = 1\n" * 350) == []
