"""Additions of the command line to RL Zoo's programs, which a recorder of their arguments replaces here."""

import subprocess
import sys

import pytest

pytest.importorskip("rl_zoo3")

import rl_zoo3.enjoy
import rl_zoo3.train
from rl_zoo3.utils import ALGOS

from sb3_attn.zoo import ALGORITHMS, cli, zoo_config_path

CONFIG = str(zoo_config_path("rdqn"))


@pytest.fixture
def programs(monkeypatch) -> list[list[str]]:
    """The argument lists that RL Zoo's functions and modules are called with."""
    calls: list[list[str]] = []

    def record(*_: object, **__: object) -> None:
        calls.append(list(sys.argv))

    monkeypatch.setattr(rl_zoo3.train, "train", record)
    monkeypatch.setattr(rl_zoo3.enjoy, "enjoy", record)
    monkeypatch.setattr(cli.runpy, "run_module", record)
    return calls


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_shipped_config_is_the_default(programs, algo: str) -> None:
    arguments = ["--algo", algo, "--env", "MemoryChain-v0", "-P"]
    assert cli.main(["train", *arguments]) == 0
    assert programs == [["sb3-attn train", "--conf-file", str(zoo_config_path(algo)), *arguments]]


@pytest.mark.parametrize("given", [["--conf-file", "mine.yml"], ["-conf", "mine.yml"], ["--conf-file=mine.yml"]])
def test_a_given_config_wins(monkeypatch, given: list[str]) -> None:
    # RL Zoo's own parser decides which value counts, so it runs until the value is used
    used = []
    monkeypatch.setattr(rl_zoo3.train, "ExperimentManager", lambda *args, **kwargs: used.append(kwargs["config"]) or Stop())
    with pytest.raises(Stop):
        cli.main(["train", "--algo=rdqn", "--env", "MemoryChain-v0", *given, "--num-threads", "1"])
    assert used == ["mine.yml"]


@pytest.mark.parametrize(
    ("env_id", "is_ours"), [("VisualSearch-v0", True), ("PongNoFrameskip-v4", True), ("CartPole-v1", False), ("No-v0", False)]
)
def test_stock_dqn_attends_where_we_have_hyperparameters_for_it(programs, env_id: str, is_ours: bool) -> None:
    arguments = ["--algo", "dqn", "--env", env_id]
    cli.main(["train", *arguments])
    defaults = ["--conf-file", CONFIG.replace("rdqn", "dqn")] if is_ours else []
    assert programs[0][1:] == [*defaults, *arguments]


class Stop(Exception):
    def setup_experiment(self) -> None:
        raise self


def test_other_algorithms_get_no_defaults(programs) -> None:
    cli.main(["train", "--algo", "ppo", "--env", "CartPole-v1"])
    cli.main(["enjoy", "--algo", "ppo", "--env", "CartPole-v1"])
    assert programs[0][1:] == ["--algo", "ppo", "--env", "CartPole-v1"]
    assert programs[1][1:] == ["--algo", "ppo", "--env", "CartPole-v1"]


def test_optimize_is_train_with_defaults_in_front(programs) -> None:
    cli.main(["optimize", "--algo", "rdqn", "--env", "MemoryChain-v0", "--n-trials", "7"])
    arguments = programs[0]
    assert "--optimize-hyperparameters" in arguments
    assert CONFIG in arguments
    positions = [i for i, argument in enumerate(arguments) if argument == "--n-trials"]
    assert arguments[positions[-1] + 1] == "7"


@pytest.mark.parametrize("command", ["enjoy", "record-video", "record-training"])
def test_our_agents_are_looked_for_where_training_writes_them(programs, command: str) -> None:
    cli.main([command, "--algo", "rdqn", "-f", "elsewhere"])
    assert programs[0] == [f"sb3-attn {command}", "--folder", "logs", "--algo", "rdqn", "-f", "elsewhere"]


def test_registered_before_the_program_runs(programs, monkeypatch) -> None:
    monkeypatch.delitem(ALGOS, "rdqn", raising=False)
    cli.main(["enjoy"])
    assert "rdqn" in ALGOS


def test_argv_is_restored(programs) -> None:
    before = sys.argv, sys.orig_argv
    cli.main(["train", "--algo", "rdqn"])
    assert (sys.argv, sys.orig_argv) == before


def test_programs_started_by_programs_are_ours() -> None:
    # As RL Zoo's record_training and benchmark start them
    ours = [sys.executable, "-m", "sb3_attn.zoo"]
    assert cli.our_command(["python", "-m", "rl_zoo3.record_video", "--seed", "0"]) == [
        *ours,
        "record-video",
        "--seed",
        "0",
    ]
    assert cli.our_command(["python", "enjoy.py", "-n", "5"]) == [*ours, "enjoy", "-n", "5"]
    assert cli.our_command(["ls", "-l"]) == ["ls", "-l"]


@pytest.mark.parametrize("command", ["record-training", "benchmark"])
def test_subprocesses_are_replaced_only_while_the_program_runs(monkeypatch, command: str) -> None:
    original, started = subprocess.call, []
    monkeypatch.setattr(subprocess, "call", lambda command, *args, **kwargs: started.append(command) or 0)
    patched = subprocess.call
    monkeypatch.setattr(cli.runpy, "run_module", lambda *_, **__: subprocess.call(["python", "enjoy.py"]))
    cli.main([command, "--algo", "rdqn"])
    assert [sys.executable, "-m", "sb3_attn.zoo", "enjoy"] in started  # beside it, imageio may ask ffmpeg for its version
    assert subprocess.call is patched is not original


@pytest.mark.parametrize("on_path", [True, False])
def test_subprocesses_import_from_the_working_directory_only_if_we_do(monkeypatch, on_path: bool, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path] + [str(tmp_path)] * on_path)
    given = []
    monkeypatch.setattr(subprocess, "call", lambda command, env=None: given.append((env or {}).get("PYTHONSAFEPATH")) or 0)
    monkeypatch.setattr(cli.runpy, "run_module", lambda *_, **__: subprocess.call(["python", "enjoy.py"]))
    cli.main(["benchmark"])
    assert given == [None if on_path else "1"]


def test_help_lists_every_command(capsys) -> None:
    for arguments in ([], ["--help"]):
        assert cli.main(arguments) == 0
        output = capsys.readouterr().out
        assert all(command in output for command in cli.COMMANDS)


def test_unknown_command_is_refused_with_the_known_ones(capsys) -> None:
    assert cli.main(["trian"]) == 2
    assert "no command 'trian'; use one of train, enjoy" in capsys.readouterr().err


def test_unknown_plot_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match="one of plot-train, all-plots, plot-from-file, not 'bars'"):
        cli.main(["plot", "bars"])


@pytest.mark.parametrize("missing", ["rl_zoo3", "seaborn", "optuna"])
def test_missing_extra_is_named(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from sb3_attn.zoo.cli import main; sys.exit(main())"
    arguments = ["plot", "plot-train"] if missing == "seaborn" else ["train", "--algo", "rdqn"]
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert process.returncode == 1
    assert (
        f'needs {missing}, which is not installed; install the zoo extra with pip install "sb3_attn[zoo]".' in process.stderr
    )
    assert "Traceback" not in process.stderr


def test_other_missing_modules_are_not_blamed_on_the_extra(monkeypatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'my_wrappers'", name="my_wrappers")

    monkeypatch.setattr(rl_zoo3.enjoy, "enjoy", fail)
    with pytest.raises(ModuleNotFoundError, match="my_wrappers"):
        cli.main(["enjoy"])
