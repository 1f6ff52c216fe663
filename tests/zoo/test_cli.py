"""Additions of the command line to RL Zoo's programs, which a recorder of their arguments replaces here."""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("rl_zoo3")

import optuna
import rl_zoo3.enjoy
import rl_zoo3.train
from rl_zoo3 import exp_manager
from rl_zoo3.utils import ALGOS

from sb3_attn import RecurrentDQN
from sb3_attn.version import __version__
from sb3_attn.zoo import ALGORITHMS, cli, mistakes, zoo_config_path

CONFIG = str(zoo_config_path("rdqn"))
ALGO = ["--algo", "rdqn"]
INTERVAL = ["--log-interval", "50"]


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
    assert programs == [["sb3-attn train", "--conf-file", str(zoo_config_path(algo)), *INTERVAL, *ALGO, *arguments]]


@pytest.mark.parametrize("command", ["train", "optimize", "enjoy", "record-video", "record-training"])
def test_the_algorithm_is_ours_unless_one_is_given(programs, command: str) -> None:
    for given in ([], ["--algo", "dqn"], ["--alg=ppo"]):
        cli.main([command, "--env", "MemoryChain-v0", *given])
        parser = argparse.ArgumentParser()  # as RL Zoo's, which takes abbreviations
        parser.add_argument("--algo")
        assert parser.parse_known_args(programs[-1][1:])[0].algo == (given or ["rdqn"])[-1].removeprefix("--alg=")
    assert CONFIG in programs[0] or command not in ("train", "optimize")


@pytest.mark.parametrize("given", [["--conf-file", "mine.yml"], ["-conf", "mine.yml"], ["--conf-file=mine.yml"]])
def test_a_given_config_wins(monkeypatch, tmp_path, given: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yml").touch()
    # RL Zoo's own parser decides which value counts, so it runs until the value is used
    used = []
    monkeypatch.setattr(rl_zoo3.train, "ExperimentManager", lambda *args, **kwargs: used.append(kwargs["config"]) or Stop())
    with pytest.raises(Stop):
        cli.main(["train", "--algo=rdqn", "--env", "MemoryChain-v0", *given, "--num-threads", "1"])
    assert used == ["mine.yml"]


@pytest.mark.parametrize(
    ("env_id", "is_ours"), [("VisualSearch-v0", True), ("PongNoFrameskip-v4", True), ("CartPole-v1", False), ("", False)]
)
def test_stock_dqn_attends_where_we_have_hyperparameters_for_it(programs, env_id: str, is_ours: bool) -> None:
    arguments = ["--algo", "dqn", "--env", env_id]
    cli.main(["train", *arguments])
    defaults = ["--conf-file", CONFIG.replace("rdqn", "dqn")] if is_ours else []
    assert programs[0][1:] == [*defaults, *INTERVAL, *ALGO, *arguments]


class Stop(Exception):
    def setup_experiment(self) -> None:
        raise self


def test_other_algorithms_get_no_defaults(programs) -> None:
    cli.main(["train", "--algo", "ppo", "--env", "CartPole-v1"])
    assert programs[0][1:] == [*ALGO, "--algo", "ppo", "--env", "CartPole-v1"]


def test_optimize_is_train_with_defaults_in_front(programs) -> None:
    cli.main(["optimize", "--algo", "rdqn", "--env", "MemoryChain-v0", "--n-trials", "7"])
    arguments = programs[0]
    assert "--optimize-hyperparameters" in arguments
    assert CONFIG in arguments
    positions = [i for i, argument in enumerate(arguments) if argument == "--n-trials"]
    assert arguments[positions[-1] + 1] == "7"


@pytest.mark.parametrize("algo", ["rdqn", "dqn"])
@pytest.mark.parametrize("command", ["enjoy", "record-video", "record-training", "load-from-hub"])
def test_agents_are_looked_for_where_training_writes_them(programs, command: str, algo: str) -> None:
    cli.main([command, "--algo", algo, "-f", "elsewhere"])
    assert programs[0] == [f"sb3-attn {command}", *ALGO, "--folder", "logs", "--algo", algo, "-f", "elsewhere"]


def test_runs_without_a_model_are_passed_over(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run, file in (("9", "a.zip"), ("10", "best_model.zip"), ("11", "0.monitor.csv"), ("12_x", "a.zip")):
        Path("logs", "dqn", f"CartPole-v1_{run}").mkdir(parents=True)
        Path("logs", "dqn", f"CartPole-v1_{run}", file).touch()
    with pytest.raises(SystemExit, match=r"path: logs/dqn/CartPole-v1_10/CartPole-v1\.zip; train one first, or give other"):
        cli.main(["enjoy", "--algo", "dqn", "--env", "CartPole-v1"])
    with pytest.raises(SystemExit, match=r"path: logs/dqn/Acrobot-v1\.zip; train one first"):
        cli.main(["enjoy", "--algo", "dqn", "--env", "Acrobot-v1"])
    with pytest.raises(SystemExit, match=r"The logs/rdqn folder was not found; train one first"):
        cli.main(["enjoy", "--env", "Acrobot-v1"])
    assert exp_manager.get_latest_run_id("logs/dqn", "CartPole-v1") == 11, "training does not write into a used folder"


@pytest.mark.parametrize("given", ["core:ntm", "core:", "core"])
def test_values_that_are_not_python_are_refused_with_a_remedy(given: str) -> None:
    with pytest.raises(SystemExit, match=rf"sb3-attn train: -params {given} cannot be read .*with strings in quotes, as in"):
        cli.main(["train", "-params", given])


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


def printed(capsys, status: int, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    assert stop.value.code == status
    return "".join(capsys.readouterr())


def test_help_and_version(capsys) -> None:
    for arguments in ([], ["--help"]):
        output = printed(capsys, 0, *arguments)
        assert all(command in output for command in cli.COMMANDS)
    assert printed(capsys, 0, "--version") == f"sb3_attn {__version__}\n"
    assert "{plot-train,all-plots,plot-from-file}" in printed(capsys, 0, "plot", "--help")
    assert "--max-timesteps" in printed(capsys, 0, "plot", "plot-train", "--help"), "RL Zoo's"


@pytest.mark.parametrize("arguments", [["trian"], ["plot", "bars"]])
def test_unknown_commands_are_refused_with_the_known_ones(arguments: list[str], capsys) -> None:
    output = printed(capsys, 2, *arguments)
    assert f"invalid choice: '{arguments[-1]}'" in output
    assert all(name in output for name in (cli.PLOTS if "plot" in arguments else cli.COMMANDS))


def test_environments_of_packages_that_are_not_installed(programs, monkeypatch) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--env popgym-AutoencodeEasy-v0 needs popgym, which is not installed"):
        cli.main(["train", "--env", "popgym-AutoencodeEasy-v0"])
    assert cli.main(["train", "--env", "CartPole-v1"]) == 0


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


@pytest.mark.parametrize("command", ["record-video", "record-training", "benchmark", "load-from-hub", "plot"])
def test_programs_without_gym_packages_do_not_get_them(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the commands that they start do, which may import them."""
    received, started = [], []
    monkeypatch.setattr(subprocess, "call", lambda command, **kwargs: started.append(command))

    def run(module: str, arguments: list[str], trust: cli.Trust) -> None:
        received.append(arguments)
        subprocess.call(["python", "enjoy.py", "-n", "5"])

    monkeypatch.setattr(cli, "_run_module", run)
    monkeypatch.setattr(cli, "_call_function", lambda module, function, *rest: run(module, *rest))
    plot = ["plot-train"] if command == "plot" else []
    assert cli.main([command, *plot, "--gym-packages", "sb3_attn.envs", "sb3_attn.memory", "--algo", "dqn"]) == 0
    assert received[0][-2:] == ["--algo", "dqn"] and "--gym-packages" not in received[0]
    if command in ("record-training", "benchmark"):
        assert started[-1][-3:] == ["--gym-packages", "sb3_attn.envs", "sb3_attn.memory"]


def test_packages_of_environments_are_imported_for_every_command(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_tasks.py").write_text("import gymnasium as gym\ngym.register('Mine-v0', 'my_tasks:Mine')\n")
    received = []
    monkeypatch.setattr(cli, "_run_module", lambda module, arguments, trust: received.append(arguments))
    video = ["record-video", "--env", "Mine-v0", "--gym-packages", "my_tasks", "-n", "10"]
    with pytest.raises(SystemExit, match=r"--gym-packages my_tasks is not found; .* PYTHONPATH=\. before the command"):
        cli.main(video)
    with pytest.raises(SystemExit, match="--env Mine-v0 is not registered; name the package that does it by --gym-packages"):
        cli.main(["enjoy", "--env", "Mine-v0"])
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(video) == 0
    assert received[0][-4:] == ["--env", "Mine-v0", "-n", "10"]
    gym.registry.pop("Mine-v0")


@pytest.mark.parametrize("command", ["train", "optimize", "enjoy", "record-video", "record-training"])
def test_unknown_environments_are_refused_with_a_similar_one(programs, command: str) -> None:
    with pytest.raises(SystemExit, match=rf"sb3-attn {command}: --env MemoryChian-v0 is not .*, such as MemoryChain-v0\."):
        cli.main([command, "--env", "MemoryChian-v0"])
    with pytest.raises(SystemExit, match=r"--env Zzzzzzzzzz is not registered; name the .* by --gym-packages\."):
        cli.main([command, "--env", "Zzzzzzzzzz"])


@pytest.mark.parametrize("option", ["--conf-file", "-conf", "--trained-agent", "-i"])
@pytest.mark.parametrize("file", ["nofile.yml", "nofile.zip", "README.md", "folder/nofile.json", "../nofile.py"])
def test_files_of_train_that_are_missing(programs, option: str, file: str) -> None:
    name, fault = ("--conf-file", "neither an") if "conf" in option else ("--trained-agent", "not an")
    with pytest.raises(SystemExit, match=rf"sb3-attn train: {name} {file} is {fault} existing .*; give one"):
        cli.main(["train", option, file])
    assert not programs


def test_files_of_train_that_are_there(programs, tmp_path) -> None:
    for name in ("config.py", "agent.zip"):
        (tmp_path / name).touch()
    assert cli.main(["train", "-conf", str(tmp_path / "config.py"), "-i", str(tmp_path / "agent.zip")]) == 0
    assert cli.main(["train", "-conf", "sb3_attn.zoo"]) == 0, "a module"


@pytest.fixture
def made_environments(monkeypatch) -> Iterator[None]:
    """Close those of training that ends early: their files would give warnings in some later test."""
    made, make = [], exp_manager.make_vec_env
    monkeypatch.setattr(exp_manager, "make_vec_env", lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1])
    yield
    for env in made:
        env.close()


@pytest.mark.usefixtures("made_environments")
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("nosuch:1", r"got an unexpected keyword argument 'nosuch'; correct its name, or leave it out\.$"),
        ("trace_length:0", "trace_length=0 leaves no step to learn from; give at least 1"),
        ("policy_kwargs:dict(core='foo')", "core='foo' is unknown; choose one of"),
        ("policy:'CnnPolicy'", "You should use NatureCNN only with images"),
    ],
)
def test_hyperparameters_that_do_not_fit(given: str, sentence: str, tmp_path) -> None:
    """And no run folder is left behind."""
    with pytest.raises(SystemExit, match=f"^sb3-attn train: .*{sentence}"):
        cli.main(["train", "--env", "MemoryChain-v0", "-f", str(tmp_path), "--device", "cpu", "-params", given])
    assert list(tmp_path.rglob("*")) == [tmp_path / "rdqn"]


@pytest.mark.usefixtures("made_environments")
def test_environments_that_do_not_fit(tmp_path) -> None:
    train = ["train", "-f", str(tmp_path), "--device", "cpu", "--env"]
    with pytest.raises(SystemExit, match=r"train: action_space=Box\(.* is neither Discrete nor MultiDiscrete"):
        cli.main([*train, "Pendulum-v1"])
    with pytest.raises(SystemExit, match=r"unexpected keyword argument 'foo' .* MemoryChain-v0 .*; correct its name"):
        cli.main([*train, "MemoryChain-v0", "--env-kwargs", "foo:3"])


def test_environments_that_cannot_be_made_in_their_processes(tmp_path) -> None:
    """In a new interpreter, since a server of processes that an earlier test started would print into that test's output."""
    train = ["train", "-f", str(tmp_path), "--env", "MemoryChain-v0", "--vec-env", "subproc", "--env-kwargs", "length:-3"]
    command = [sys.executable, "-m", "sb3_attn.zoo", *train]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 1
    sentence = r"^sb3-attn train: the process of an environment has ended; fix the error that"
    assert re.search(sentence, process.stderr, re.MULTILINE)
    assert "length=-3 is invalid" in process.stderr


OPTIMIZE = ["optimize", "--env", "MemoryChain-v0", "-n", "300", "--n-trials", "2", "--device", "cpu", "-params"]


@pytest.mark.usefixtures("made_environments")
@pytest.mark.parametrize("n_jobs", ["1", "2"])
def test_hyperparameters_that_fit_no_trial(n_jobs: str, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^sb3-attn optimize: tau=3 must lie between 0 and 1\.$"):
        cli.main([*OPTIMIZE, "tau:3", "n_envs:1", "--n-jobs", n_jobs, "--storage", "a.log", "--study-name", "a"])
    assert "Traceback" not in capfd.readouterr().err
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("a.log"))
    assert {trial.state.name for trial in optuna.load_study(study_name="a", storage=storage).trials} == {"FAIL"}


@pytest.mark.usefixtures("made_environments")
def test_a_search_in_which_no_trial_is_completed(tmp_path, monkeypatch, capfd) -> None:
    def learn(*_: object, **__: object) -> None:
        raise ValueError("the loss is nan")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RecurrentDQN, "learn", learn)
    with pytest.raises(SystemExit, match=r"^sb3-attn optimize: No trials are completed yet; fix the errors above"):
        cli.main([*OPTIMIZE, "n_envs:1"])
    assert capfd.readouterr().out.count("the loss is nan") == 2


@pytest.mark.parametrize("error", [TypeError("unsupported operand"), KeyError("a"), AssertionError()])
def test_faults_of_programs_are_not_hidden(error: Exception, tmp_path, monkeypatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(exp_manager, "make_vec_env", fail)
    with pytest.raises(type(error)):
        cli.main(["train", "--env", "MemoryChain-v0", "-f", str(tmp_path), "--device", "cpu"])


def test_assertions_of_this_package_are_not_hidden(tmp_path, monkeypatch) -> None:
    module: dict[str, Any] = {"__name__": "sb3_attn.some_module"}
    exec("def fail(*args, **kwargs):\n    raise AssertionError('this cannot be')", module)
    monkeypatch.setattr(exp_manager, "make_vec_env", module["fail"])
    with pytest.raises(AssertionError, match="this cannot be"):
        cli.main(["train", "--env", "MemoryChain-v0", "-f", str(tmp_path), "--device", "cpu"])


def test_assertions_in_a_file_of_hyperparameters(tmp_path) -> None:
    """RL Zoo runs it in a namespace that has no ``__name__``."""
    own = tmp_path / "own.py"
    own.write_text("assert False, 'set a task first'")
    with pytest.raises(SystemExit, match=r"^sb3-attn train: set a task first\.?$"):
        cli.main(["train", "--env", "MemoryChain-v0", "-f", str(tmp_path), "--conf-file", str(own)])


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, BrokenPipeError])
def test_however_the_process_of_an_environment_ends(error: type[Exception]) -> None:
    """A process may be gone before it is asked for its spaces, or while it should answer."""
    with pytest.raises(ValueError, match="the process of an environment has ended"), mistakes.living_environments():
        raise error


@pytest.mark.usefixtures("made_environments")
def test_errors_of_training_are_not_hidden(tmp_path, monkeypatch) -> None:
    def learn(*_: object) -> None:
        raise ValueError("nothing that the user gave")

    monkeypatch.setattr(exp_manager.ExperimentManager, "learn", learn)
    setup = exp_manager.ExperimentManager.setup_experiment
    with pytest.raises(ValueError, match="nothing that the user gave"):
        cli.main(["train", "--env", "MemoryChain-v0", "-f", str(tmp_path), "--device", "cpu"])
    assert exp_manager.ExperimentManager.setup_experiment is setup


@pytest.mark.parametrize("exp_id", ["0", "-1", "3"])
@pytest.mark.parametrize("has_others", [True, False])
def test_record_training_of_a_run_that_does_not_exist(has_others: bool, exp_id: str, tmp_path, capfd) -> None:
    if has_others:
        other = tmp_path / "rdqn" / "CartPole-v1_1"
        other.mkdir(parents=True)
        (other / "CartPole-v1.zip").touch()
    before = set(tmp_path.rglob("*"))
    fault = "No model found for rdqn on Mem" if has_others and exp_id != "3" else "folder was not found"
    with pytest.raises(SystemExit, match=rf"^sb3-attn record-training: .*{fault}.*; train one first, or give other"):
        cli.main(["record-training", "--env", "MemoryChain-v0", "-f", str(tmp_path), "-n", "10", "--exp-id", exp_id])
    assert set(tmp_path.rglob("*")) == before
    assert "Saving video" not in capfd.readouterr().out


def test_files_that_plots_and_benchmarks_miss(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"sb3-attn plot: there is no nofile\.pkl; give another file or folder\."):
        cli.main(["plot", "plot-from-file", "--input", "nofile.pkl"])
    with pytest.raises(SystemExit, match="sb3-attn benchmark: there is no nologs; give another --log-dir or --benchmark-dir"):
        cli.main(["benchmark", "--no-hub", "--log-dir", "nologs"])
