"""
The ``sb3-attn`` command: RL Zoo's own programs, run in a process where our algorithms are registered.

The first argument names the command; all others are passed on unchanged, since each program has an argparse parser of its own.
A parser in between would take ``--help`` and abbreviated options away from them. Defaults of ours are put *in front* of the
user's arguments: argparse keeps the last value that it reads, so the user's value wins, however the option is spelled.
"""

import argparse
import contextlib
import importlib
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_attn.recurrent_dqn.safe_loading import RefusedFileError
from sb3_attn.version import __version__
from sb3_attn.zoo.mistakes import explained_making, named_files
from sb3_attn.zoo.trust import TRUST_HELP, refusal, split_trust, trust_options

#: What may be run from files: nothing, all, or what has one of these names
Trust = bool | list[str]

#: Modules that RL Zoo imports. If one is missing, the remedy is to install the zoo extra.
ZOO_MODULES = {"rl_zoo3", "optuna", "huggingface_sb3", "huggingface_hub", "pytablewriter", "yaml", "imageio_ffmpeg"}
ZOO_MODULES |= {"pandas", "requests", "seaborn", "scipy"}  # RL Zoo does not declare these

#: Modules of the viz extra, which our own commands need
VIZ_MODULES = {"matplotlib", "imageio", "imageio_ffmpeg"}

#: RL Zoo's own defaults are 500 trials, each scored once, at its end, over 5 episodes. That is too noisy to compare agents
#: whose learning is uneven, and without intermediate scores no trial can be pruned.
OPTIMIZE_DEFAULTS = (
    *("--optimize-hyperparameters", "--n-trials", "100", "--n-evaluations", "5"),
    *("--eval-episodes", "20", "--n-eval-envs", "5"),
)

#: What to install for environments whose ids begin like this, of which Gymnasium only says that they do not exist
ENVIRONMENT_PACKAGES = {"popgym-": "popgym", "MiniGrid-": "minigrid"}

#: RL Zoo's own default is PPO, which has no memory
ALGO = ("--algo", "rdqn")

#: What RL Zoo and Optuna say below a traceback, and what to do then
REMEDIES = {
    "folder was not found|No (model|checkpoint) found": "train one first, or give other --folder, --algo, --env or --exp-id",
    "No trials are completed": "fix the errors above, or search for longer",
}

#: For algorithms that count episodes between two tables of the log; SB3's own default is 4, which floods the terminal
LOG_INTERVAL = ("--log-interval", "50")

#: Training writes to logs/, but RL Zoo looks for agents in rl-trained-agents/, where it downloads those of the SB3 team
AGENT = (*ALGO, "--folder", "logs")

#: Commands of RL Zoo that end in a traceback if --env is not registered
NEED_ENVIRONMENT = {"train", "optimize", "enjoy", "record-video", "record-training"}

PLOTS = {"plot-train": "plot_train", "all-plots": "all_plots", "plot-from-file": "plot_from_file"}


def train(arguments: list[str], trust: Trust) -> None:
    """Train an agent, with the shipped hyperparameters unless --conf-file gives others."""
    from rl_zoo3 import ALGOS

    from sb3_attn.zoo.masking import masked_evaluations
    from sb3_attn.zoo.registration import default_config, fitting_policies

    _check_files(arguments)
    arguments = [*ALGO, *arguments]
    algo = _value(arguments, "--algo")
    config = default_config(algo, _value(arguments, "--env"))
    defaults = [] if config is None else ["--conf-file", str(config)]
    if algo in ALGOS and issubclass(ALGOS[algo], OffPolicyAlgorithm):
        defaults += LOG_INTERVAL
    with masked_evaluations(), fitting_policies():
        _call_function("rl_zoo3.train", "train", defaults + arguments, trust)


def optimize(arguments: list[str], trust: Trust) -> None:
    """Search for hyperparameters with Optuna."""
    train([*OPTIMIZE_DEFAULTS, *arguments], trust)


def enjoy(arguments: list[str], trust: Trust) -> None:
    """Watch or score a trained agent."""
    from sb3_attn.zoo.masking import masked_acting

    with masked_acting():
        _call_function("rl_zoo3.enjoy", "enjoy", [*AGENT, *arguments], trust)


def record_video(arguments: list[str], trust: Trust) -> None:
    """Record a video of a trained agent."""
    from sb3_attn.zoo.masking import masked_acting

    with masked_acting():
        _run_module("rl_zoo3.record_video", [*AGENT, *_split_packages(arguments)[1]], trust)


def record_training(arguments: list[str], trust: Trust) -> None:
    """Record a video of all checkpoints of a training run."""
    from sb3_attn.zoo.run_folders import check_models, check_videos

    packages, arguments = _split_packages([*AGENT, *arguments])
    runs = Path(_value(arguments, "-f", "--folder"), _value(arguments, "--algo"))
    env_id, exp_id = _value(arguments, "--env"), _value(arguments, "--exp-id")
    if trust is not True and not _value(arguments, "-o", "--output-folder"):
        check_videos(runs)
    if env_id:
        check_models(runs, env_id, int(exp_id) if exp_id.lstrip("-").isdecimal() else 0)
    with _our_subprocesses(trust, packages), _ffmpeg_on_path():
        _run_module("rl_zoo3.record_training", arguments, trust)


def benchmark(arguments: list[str], trust: Trust) -> None:
    """Score every trained agent in a folder and write a table."""
    packages, arguments = _split_packages(arguments)
    with _our_subprocesses(trust, packages), named_files("--log-dir or --benchmark-dir"):
        _run_module("rl_zoo3.benchmark", arguments, trust)


def push_to_hub(arguments: list[str], trust: Trust) -> None:
    """Score a trained agent and upload it to the Hugging Face Hub, with a model card."""
    importlib.import_module("sb3_attn.zoo.hub").push_to_hub(arguments, trust)


def load_from_hub(arguments: list[str], trust: Trust) -> None:
    """Download a trained agent from the Hugging Face Hub."""
    with importlib.import_module("sb3_attn.zoo.hub").safe_downloads():
        _run_module("rl_zoo3.load_from_hub", [*AGENT, *_split_packages(arguments)[1]], trust)


def plot(arguments: list[str], trust: Trust) -> None:
    """Plot learning curves and compare runs."""
    parser = argparse.ArgumentParser("sb3-attn plot", epilog="sb3-attn plot PLOT --help lists the arguments of a plot.")
    parser.add_argument("plot", choices=PLOTS)
    name = parser.parse_args(arguments[:1]).plot
    with named_files("file or folder"):
        _call_function("rl_zoo3.plots", PLOTS[name], _split_packages(arguments[1:])[1], trust)


def show(arguments: list[str], trust: Trust) -> None:
    """Record a trained agent together with its attention and memory; needs the viz extra."""
    importlib.import_module("sb3_attn.zoo.show").show(arguments, trust)


def ball(arguments: list[str], trust: Trust) -> None:
    """Measure an agent's attention to the ball in Pong or Breakout; needs the viz extra."""
    importlib.import_module("sb3_attn.zoo.show").ball(arguments, trust)


COMMANDS: dict[str, Callable[[list[str], Trust], None]] = {
    "train": train,
    "enjoy": enjoy,
    "record-video": record_video,
    "record-training": record_training,
    "plot": plot,
    "benchmark": benchmark,
    "optimize": optimize,
    "push-to-hub": push_to_hub,
    "load-from-hub": load_from_hub,
    "show": show,
    "ball": ball,
}

#: Our own commands. They also take models that were not trained with RL Zoo, and run without it.
OWN_COMMANDS = {"show", "ball"}


def main(arguments: list[str] | None = None) -> int:
    """
    Run the command line.

    :param arguments: the command's name and its arguments; ``None`` takes them from ``sys.argv``
    :return: the exit status: 0 after success, 1 if an optional package is not installed
    :raises SystemExit: after help and version; with a sentence, if the command is unknown, a file was refused, or an argument
        does not fit
    """
    first, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    name = _parser().parse_args([first]).command
    saved = sys.argv, sys.orig_argv
    sys.argv = [f"sb3-attn {name}"]  # RL Zoo's programs read it, and print it in their help
    sys.orig_argv = ["sb3-attn", name, *map(shlex.quote, rest)]  # and write this into a run's command.txt
    try:
        if name not in OWN_COMMANDS:
            from sb3_attn.zoo.registration import register

            register()
        trust, rest = split_trust(rest)
        _check_packages(_value(rest, "--env"))
        _import_environments(name, rest)
        COMMANDS[name](rest, trust)
    except RefusedFileError as error:
        raise SystemExit(f"sb3-attn {name}: {refusal(error)}") from error
    except (AssertionError, ValueError) as error:
        remedy = next((remedy for fault, remedy in REMEDIES.items() if re.search(fault, str(error))), None)
        if remedy is None:
            raise
        raise SystemExit(f"sb3-attn {name}: {str(error).rstrip('.')}; {remedy}.") from error
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ZOO_MODULES | VIZ_MODULES:
            raise
        extra = "viz" if name in OWN_COMMANDS and missing in VIZ_MODULES else "zoo"
        remedy = f'install the {extra} extra with pip install "sb3_attn[{extra}]"'
        print(f"sb3-attn {name} needs {missing}, which is not installed; {remedy}.", file=sys.stderr)
        return 1
    finally:
        sys.argv, sys.orig_argv = saved
    return 0


def _check_packages(env_id: str) -> None:
    for prefix, package in ENVIRONMENT_PACKAGES.items():
        if env_id.startswith(prefix) and importlib.util.find_spec(package) is None:
            raise SystemExit(f"{sys.argv[0]}: --env {env_id} needs {package}, which is not installed; pip install {package}.")


def _split_packages(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate the values of ``--gym-packages`` from the other arguments: some of RL Zoo's programs lack this option."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--gym-packages", nargs="+", default=[])
    given, others = parser.parse_known_args(arguments)
    return given.gym_packages, others


def _import_environments(command: str, arguments: list[str]) -> None:
    """
    Import what ``--gym-packages`` names, and find out whether ``--env`` is registered then.

    :param command: the command's name
    :param arguments: its arguments
    :raises SystemExit: with a sentence, if a package or the environment is not there
    """
    for package in _split_packages(arguments)[0]:
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            remedy = "install it, or put PYTHONPATH=. before the command if it lies in this folder"
            raise SystemExit(f"{sys.argv[0]}: --gym-packages {package} is not found; {remedy}.")
        importlib.import_module(package)
    if command not in NEED_ENVIRONMENT:
        return
    env_id = _value(arguments, "--env")
    importlib.import_module("rl_zoo3.import_envs")
    if env_id and env_id not in gym.registry:
        similar = "".join(f", or give another, such as {name}" for name in get_close_matches(env_id, gym.registry, n=1))
        remedy = f"name the package that does it by --gym-packages{similar}"
        raise SystemExit(f"{sys.argv[0]}: --env {env_id} is not registered; {remedy}.")


def _check_files(arguments: list[str]) -> None:
    """Find out whether the files that training reads are there: RL Zoo says it without the option that names them."""
    config, agent = _value(arguments, "-conf", "--conf-file"), _value(arguments, "-i", "--trained-agent")
    module = config.partition(".")[0]
    if config.endswith((".yml", ".yaml", ".py")):
        is_there = Path(config).is_file()
    else:
        is_there = module.isidentifier() and importlib.util.find_spec(module) is not None
    if config and not is_there:
        fault = f"--conf-file {config} is neither an existing .yml or .py file nor a module that can be imported"
        raise SystemExit(f"{sys.argv[0]}: {fault}; give one with hyperparameters, or leave it out.")
    if agent and not (agent.endswith(".zip") and Path(agent).is_file()):
        raise SystemExit(f"{sys.argv[0]}: --trained-agent {agent} is not an existing .zip file; give one that training wrote.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sb3-attn",
        epilog=f"sb3-attn COMMAND --help lists the arguments of a command; --algo is rdqn if left out. {TRUST_HELP}",
    )
    parser.add_argument("--version", action="version", version=f"sb3_attn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, run in COMMANDS.items():
        commands.add_parser(name, help=run.__doc__, add_help=False)
    return parser


def _value(arguments: list[str], *options: str) -> str:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(*options, dest="value", default="")
    return str(parser.parse_known_args(arguments)[0].value)


def _call_function(module: str, function: str, arguments: list[str], trust: Trust) -> None:
    from sb3_attn.zoo.run_folders import safe_reading

    program = getattr(importlib.import_module(module), function)
    sys.argv[1:] = arguments
    with safe_reading(trust), _explained_values(), explained_making():
        program()


def _run_module(module: str, arguments: list[str], trust: Trust) -> None:
    from sb3_attn.zoo.run_folders import safe_reading

    # These programs have no function to call: their code is under ``if __name__ == "__main__"``
    sys.argv[1:] = arguments
    with safe_reading(trust), _explained_values(), explained_making():
        runpy.run_module(module, run_name="__main__")


@contextlib.contextmanager
def _explained_values() -> Iterator[None]:
    """RL Zoo evaluates KEY:VALUE as Python; say so where that fails, as for a string without quotes."""
    from rl_zoo3.utils import StoreDict

    original = StoreDict.__call__

    def store(self: Any, parser: Any, namespace: Any, values: list[str], option_string: str | None = None) -> None:
        try:
            original(self, parser, namespace, values, option_string)
        except (NameError, SyntaxError, ValueError) as error:
            raise SystemExit(
                f"{sys.argv[0]}: {option_string} {' '.join(values)} cannot be read ({error}): give KEY:VALUE, where VALUE is "
                "Python, with strings in quotes, as in -params learning_rate:0.001 \"policy_kwargs:dict(core='ntm')\"."
            ) from error

    StoreDict.__call__ = store  # type: ignore[method-assign]
    try:
        yield
    finally:
        StoreDict.__call__ = original  # type: ignore[method-assign]


def our_command(command: list[str], trust: Trust = False, packages: Sequence[str] = ()) -> list[str]:
    """
    Translate a command with which RL Zoo starts one of its own programs into ours.

    :param command: ``["python", "-m", "rl_zoo3.record_video", ...]`` (from ``record_training``) or
        ``["python", "enjoy.py", ...]`` (from ``benchmark``, which on its own works only in a checkout of RL Zoo)
    :param trust: what this command was told to trust
    :param packages: what register environments
    :return: the ``sb3-attn`` command that does the same with this interpreter, where our algorithms are registered; any other
        command unchanged
    """
    ours, named = [sys.executable, "-m", "sb3_attn.zoo"], ["--gym-packages", *packages] if packages else []
    if command[:3] == ["python", "-m", "rl_zoo3.record_video"]:
        return [*ours, "record-video", *trust_options(trust), *command[3:], *named]
    if command[:2] == ["python", "enjoy.py"]:
        from sb3_attn.zoo.run_folders import check_env_id

        check_env_id(_value(command, "--env"), trust)
        return [*ours, "enjoy", *trust_options(trust), *command[2:], *named]
    return command


@contextlib.contextmanager
def _our_subprocesses(trust: Trust, packages: Sequence[str]) -> Iterator[None]:
    # Our algorithms are not registered in a new interpreter, so RL Zoo's programs have to be started through this module
    original = subprocess.call

    def call(command: Any, *args: Any, **kwargs: Any) -> int:
        if not {"", os.getcwd()} & set(sys.path):  # "python -m" would add it, and with it modules of whoever made the folder
            kwargs.setdefault("env", {**os.environ, "PYTHONSAFEPATH": "1"})
        ours = our_command(command, trust, packages) if isinstance(command, list) else command
        return original(ours, *args, **kwargs)

    subprocess.call = call  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.call = original


@contextlib.contextmanager
def _ffmpeg_on_path() -> Iterator[None]:
    # record_training calls "ffmpeg" through the shell and ignores its exit status. imageio-ffmpeg, which moviepy depends on,
    # installs one under another name.
    if shutil.which("ffmpeg"):
        yield
        return
    import imageio_ffmpeg

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        saved = os.environ.get("PATH", os.defpath)
        os.environ["PATH"] = saved + os.pathsep + folder
        try:
            yield
        finally:
            os.environ["PATH"] = saved
