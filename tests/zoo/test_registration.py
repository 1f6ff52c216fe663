from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")

from rl_zoo3 import enjoy, exp_manager, hyperparams_opt, train, utils

import sb3_attn
from sb3_attn import R2D2, MaskableDQN, RecurrentDQN
from sb3_attn.zoo import ALGORITHMS, register, registration, zoo_config_path
from tests.helpers.processes import run_python


@pytest.mark.parametrize(("name", "model_class"), [("rdqn", RecurrentDQN), ("r2d2", R2D2)])
def test_registration_reaches_every_module_of_the_zoo(name: str, model_class: type) -> None:
    register()
    for module in (utils, train, enjoy, exp_manager):
        assert module.ALGOS[name] is model_class
    for module in (hyperparams_opt, exp_manager):
        assert module.HYPERPARAMS_SAMPLER[name] is ALGORITHMS[name].sampler
        assert module.HYPERPARAMS_CONVERTER[name] is ALGORITHMS[name].converter


#: What is missing, what needs it, and what the error says
MISSING = [
    ("rl_zoo3", "import sb3_attn.zoo; sb3_attn.zoo.register()", "register() needs rl_zoo3"),
    ("matplotlib", "import sb3_attn.viz", "sb3_attn.viz needs matplotlib, which is not installed; pip"),
    ("imageio", "import sb3_attn.viz", "sb3_attn.viz needs imageio"),
    ("popgym", "import gymnasium as g, sb3_attn; g.make('popgym-RepeatPrevious8-v0')", "needs the optional package popgym"),
]


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    """All in one new process, as starting one takes seconds."""
    program = (
        "import sys\n"
        f"for missing, code in {[row[:2] for row in MISSING]}:\n"
        "    sys.modules[missing] = None\n"
        "    try:\n"
        "        exec(code)\n"
        "    except Exception as error:\n"
        "        print(error)\n"
        "    del sys.modules[missing]\n"
    )
    for (_, _, message), line in zip(MISSING, run_python("-c", program, cwd=tmp_path).splitlines(), strict=True):
        assert message in line


def test_maskable_dqn_is_searched_as_dqn() -> None:
    register()
    assert utils.ALGOS["maskable_dqn"] is MaskableDQN
    for table in (hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER):
        assert table["maskable_dqn"] is table["dqn"]


def test_registration_twice_changes_nothing() -> None:
    register()
    tables = (utils.ALGOS, hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER)
    before = [dict(table) for table in tables]
    register()
    assert [dict(table) for table in tables] == before
    assert "ppo_lstm" in utils.ALGOS  # the zoo's own are still there


@pytest.mark.parametrize("content", ["import_typo", "import no_such_module", "from os import no_such_name"])
def test_a_broken_package_of_environments_gives_a_warning(content: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_tasks.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registration, "ENVIRONMENT_PACKAGES", ("not_installed", "broken_tasks"))
    with pytest.warns(UserWarning, match=r"^broken_tasks cannot be imported \(.*, so its environments are missing") as warned:
        register()
    assert len(warned) == 1


def test_every_algorithm_has_a_config() -> None:
    for name in ALGORITHMS:
        assert zoo_config_path(name).is_file()


def test_config_path_prefers_the_one_inside_the_package(tmp_path, monkeypatch) -> None:
    package = tmp_path / "sb3_attn"
    for folder in (tmp_path, package):
        (folder / "zoo_configs").mkdir(parents=True)
        (folder / "zoo_configs" / "rdqn.yml").touch()
    monkeypatch.setattr(sb3_attn, "__file__", str(package / "__init__.py"))
    assert zoo_config_path("rdqn") == package / "zoo_configs" / "rdqn.yml"
    (package / "zoo_configs" / "rdqn.yml").unlink()
    assert zoo_config_path("rdqn") == tmp_path / "zoo_configs" / "rdqn.yml"


def test_unknown_config_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"algo='ppo' has to be one of \['dqn', 'maskable_dqn', 'r2d2', 'rdqn'\]"):
        zoo_config_path("ppo")
