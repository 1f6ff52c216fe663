"""
Runs on the Hugging Face Hub: the command ``sb3-attn push-to-hub``, and what ``load-from-hub`` downloads with.

A repository has the files that RL Zoo's have, so each can load what the other has pushed. RL Zoo 2.9.2 has both commands, but
its ``push_to_hub`` cannot be imported with ``sb3-team-hf-integration`` 3.2, and its ``load_from_hub`` fails where there is no
VecNormalize.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import huggingface_sb3
import numpy as np
import stable_baselines3
import torch as th
import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.errors import HTTPError as ClientError  # of httpx, or its successor
from huggingface_sb3 import EnvironmentName, ModelName, ModelRepoId
from requests.exceptions import HTTPError
from rl_zoo3.utils import ALGOS, get_model_path
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_with_masks
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed

from sb3_attn.recurrent_dqn.safe_loading import RefusedFileError, check_archive, check_own_file
from sb3_attn.recurrent_dqn.saving import SaveAndLoad
from sb3_attn.version import __version__
from sb3_attn.viz.recording import wrap_env
from sb3_attn.zoo.loading import load_algorithm
from sb3_attn.zoo.run_folders import load_settings, make_run_env, newest_run_id
from sb3_attn.zoo.trust import TRUST_HELP

#: As RL Zoo names the statistics in a repository; in a run folder it calls them vecnormalize.pkl
VEC_NORMALIZE = "vec_normalize.pkl"

#: What its client raises: a bad name is a ValueError, and that there is no network need not be an OSError
HUB_ERRORS = (OSError, ValueError, ClientError)

CARD = """
# {agent} playing {env}

| mean return | episodes | seed of training | seed of these episodes |
|---|---|---|---|
| {score} | {n_episodes}, greedy | {seed} | {evaluation_seed} |

One training run, {model}; pushed with sb3_attn {version}, Stable-Baselines3 {sb3}, Gymnasium {gymnasium} and PyTorch {torch}.

## Training

{fence}bash
{command}
{fence}

Hyperparameters and all arguments are in `config.yml` and `args.yml`.

## Use

```bash
sb3-attn load-from-hub --algo {algo} --env {env} -orga {organization} -name {name} -f logs
sb3-attn enjoy --algo {algo} --env {env} -f logs
```

```python
from huggingface_hub import hf_hub_download
from {package} import {agent}

model = {agent}.load(hf_hub_download("{organization}/{name}", "{filename}"))
```
"""


class Run(NamedTuple):
    """
    A trained model, as RL Zoo saves it.

    :param model_path: the zip
    :param folder: the folder of the run
    :param settings: the folder in it with ``config.yml``, ``args.yml`` and ``command.txt``
    """

    model_path: Path
    folder: Path
    settings: Path

    @property
    def results(self) -> list[Path]:
        """The files with training curves."""
        return [*self.folder.glob("evaluations.npz"), *sorted(self.folder.glob("*.csv"))]

    def check(self) -> None:
        """
        Check all files that are read or uploaded.

        :raises RefusedFileError: if one is a link, or no regular file
        """
        optional = [self.settings / name for name in ("vecnormalize.pkl", "command.txt")]
        needed = [self.model_path, self.settings / "config.yml", self.settings / "args.yml"]
        for path in (*needed, *filter(os.path.lexists, optional), *self.results):
            check_own_file(path, self.folder)


def push_to_hub(arguments: list[str], trust: bool | list[str] = False) -> None:
    """
    Run ``sb3-attn push-to-hub``.

    :param arguments: the command line after the name of the command
    :param trust: as for ``RecurrentDQN.load``, for all files
    :raises SystemExit: with a sentence for the user, if there is no such run, or the Hub refuses
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.n_eval_episodes < 1:
        parser.error(f"--n-eval-episodes {args.n_eval_episodes} gives no score; let it be at least 1")
    run = _find_run(args)
    run.check()
    repo_id = ModelRepoId(args.organization, args.repo_name or ModelName(args.algo, args.env))
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(folder), run, ModelName(args.algo, args.env).filename, trust)
        api = HfApi()
        with _asking_for(repo_id):  # before the evaluation, which takes long
            url = api.create_repo(repo_id, exist_ok=True)
        model, returns = evaluate(run, args, trust)
        model_card(run, model, returns, args, repo_id, trust).save(Path(folder, "README.md"))
        with _asking_for(repo_id):
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=args.commit_message)
    print(f"{_score(returns)} over {len(returns)} episodes; pushed to {url}")


def evaluate(run: Run, args: argparse.Namespace, trust: bool | list[str]) -> tuple[BaseAlgorithm, list[float]]:
    """
    Load the model of a run and score it in the environment of its settings.

    :param run: the run
    :param args: the command line
    :param trust: as for ``RecurrentDQN.load``
    :return: the model, and the returns of greedy episodes
    """
    set_random_seed(args.seed)
    env = make_run_env(run.settings, args.env.gym_id, {}, args.seed, trust)
    kwargs: dict[str, Any] = {}
    if issubclass(ALGOS[args.algo], OffPolicyAlgorithm):  # a replay buffer of the size used in training could take gigabytes
        kwargs = dict(buffer_size=1, optimize_memory_usage=False)
        if not issubclass(ALGOS[args.algo], SaveAndLoad):  # HerReplayBuffer needs it, and R2D2 would check it for actors
            kwargs["env"] = env
    model = load_algorithm(ALGOS[args.algo], run.model_path, trust, device=args.device, **kwargs)
    env.seed(args.seed)  # loading gave it the seed of training
    env = wrap_env(model, env)
    function = evaluate_with_masks if getattr(model, "use_masking", False) else evaluate_policy
    returns, _ = function(model, env, args.n_eval_episodes, return_episode_rewards=True)  # type: ignore[arg-type]
    env.close()
    assert isinstance(returns, list)
    return model, returns


def write_repository(folder: Path, run: Run, filename: str, trust: bool | list[str]) -> None:
    """
    Copy the files of a run, under the names that RL Zoo's ``load_from_hub`` looks for, without Optuna's database.

    :param folder: where to copy them to
    :param run: the run
    :param filename: name of the zip
    :param trust: as for ``RecurrentDQN.load``
    """
    shutil.copy(run.model_path, folder / filename)
    shutil.copy(run.settings / "config.yml", folder / "config.yml")
    if (run.settings / "vecnormalize.pkl").is_file():
        shutil.copy(run.settings / "vecnormalize.pkl", folder / VEC_NORMALIZE)
    args = load_settings(run.settings / "args.yml", trust)
    args.pop("storage", None)
    (folder / "args.yml").write_text(yaml.dump(OrderedDict(args)), encoding="utf-8")  # as RL Zoo does
    (folder / "env_kwargs.yml").write_text(yaml.safe_dump(args.get("env_kwargs") or {}), encoding="utf-8")
    with zipfile.ZipFile(folder / "train_eval_metrics.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in run.results:
            archive.write(path, path.name)


def model_card(
    run: Run,
    model: BaseAlgorithm,
    returns: list[float],
    args: argparse.Namespace,
    repo_id: str,
    trust: bool | list[str],
) -> ModelCard:
    """
    The page of a repository: the score, and what it is the score of.

    :param run: the run
    :param model: its model
    :param returns: returns of the episodes of the evaluation
    :param args: the command line
    :param repo_id: organization and name of the repository
    :param trust: as for ``RecurrentDQN.load``
    :return: the card
    """
    agent, env = type(model).__name__, args.env.gym_id
    result = EvalResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_type=env,
        dataset_name=env,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=_score(returns).replace("±", "+/-"),  # as on the pages of the SB3 team, for the Hub's leaderboards
    )
    tags = [env, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3"]
    data = ModelCardData(library_name="stable-baselines3", tags=tags, model_name=agent, eval_results=[result])
    file = run.settings / "command.txt"
    command = _without_storage(file.read_text(encoding="utf-8")) if file.is_file() else "# not recorded"
    text = CARD.format(
        agent=agent,
        package=type(model).__module__.partition(".")[0],
        algo=args.algo,
        env=env,
        score=_score(returns),
        n_episodes=len(returns),
        seed=load_settings(run.settings / "args.yml", trust).get("seed"),
        evaluation_seed=args.seed,
        model="its best model by evaluations during training" if args.load_best else "its last model",
        version=__version__,
        sb3=stable_baselines3.__version__,
        gymnasium=gym.__version__,
        torch=th.__version__,
        command=command,
        fence="`" * (max([2, *map(len, re.findall("`+", command))]) + 1),
        organization=args.organization,
        name=repo_id.partition("/")[2],
        filename=ModelName(args.algo, args.env).filename,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


@contextlib.contextmanager
def safe_downloads() -> Iterator[None]:
    """
    Have RL Zoo download with ``download``.

    Its own function asks for the environment variable ``TRUST_REMOTE_CODE``, since what reads the files may run code in them.
    Ours do not.
    """
    original = huggingface_sb3.load_from_hub
    huggingface_sb3.load_from_hub = download
    try:
        yield
    finally:
        huggingface_sb3.load_from_hub = original


def download(repo_id: str, filename: str) -> str:
    """
    Download a file from the Hub, without reading what is in it.

    :param repo_id: organization and name of the repository
    :param filename: the file
    :return: its path in the Hub's cache
    :raises RefusedFileError: if it is a zip that is damaged, or needs many times its size in memory
    :raises HTTPError: if there are no statistics of VecNormalize, which RL Zoo goes on without
    :raises SystemExit: with a sentence for the user, if anything else is missing
    """
    try:
        path = hf_hub_download(repo_id, filename)
    except HUB_ERRORS as error:
        # A LocalEntryNotFoundError says that there is no network, not that there is no such file
        is_absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        if filename == VEC_NORMALIZE and is_absent:
            raise HTTPError(str(error)) from error
        raise SystemExit(
            f"sb3-attn load-from-hub: {repo_id} has no {filename} for you ({error}); check the names and the network."
        ) from error
    if filename.endswith(".zip"):
        try:
            with open(path, "rb") as file:
                check_archive(file, filename)
        except RefusedFileError:
            raise
        except Exception as error:
            raise RefusedFileError(f"{filename} of {repo_id} is damaged, or is no zip-file: {error!r}.") from error
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sb3-attn push-to-hub", description="Score a trained agent and upload it with its settings.", epilog=TRUST_HELP
    )
    parser.add_argument("--algo", default="rdqn", choices=list(ALGOS), help="algorithm (rdqn)")
    parser.add_argument("--env", required=True, type=EnvironmentName, help="id of the environment")
    parser.add_argument("-f", "--folder", default="logs", help="folder of the runs (logs)")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (0: the newest)")
    parser.add_argument("--load-best", action="store_true", help="the best model of the evaluations instead of the last one")
    parser.add_argument("-orga", "--organization", required=True, help="your name, or that of an organization, on the Hub")
    parser.add_argument("-name", "--repo-name", help="name of the repository (the algorithm and the environment)")
    parser.add_argument("-m", "--commit-message", default="Push a trained agent", help="commit message")
    parser.add_argument("--n-eval-episodes", type=int, default=100, help="number of greedy episodes that give its score (100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of these episodes (0)")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages to import because they register environments")
    parser.add_argument("--device", default="auto", help="PyTorch device (auto)")
    return parser


def _find_run(args: argparse.Namespace) -> Run:
    try:
        exp_id = args.exp_id or newest_run_id(os.path.join(args.folder, args.algo), args.env)
        _, model_path, folder = get_model_path(exp_id, args.folder, args.algo, args.env, args.load_best)
    except (AssertionError, ValueError) as error:
        raise SystemExit(f"sb3-attn push-to-hub: {error}; give the --folder and the --exp-id of a run.") from error
    return Run(Path(model_path), Path(folder), Path(folder, args.env))


@contextlib.contextmanager
def _asking_for(repo_id: str) -> Iterator[None]:
    try:
        yield
    except HUB_ERRORS as error:
        raise SystemExit(
            f"sb3-attn push-to-hub: the Hub did not take {repo_id} ({error}); log in with `hf auth login`, and check the "
            "names and the network."
        ) from error


def _without_storage(command: str) -> str:
    """A training command without Optuna's database, the URL of which may have a password."""
    quoted = command.startswith("sb3-attn ")  # for a shell, as RL Zoo's are not
    try:
        words = shlex.split(command) if quoted else command.split()
    except ValueError as error:
        raise RefusedFileError(f"command.txt has no command for a shell ({error}); remove it.") from error
    parser = argparse.ArgumentParser(add_help=False)  # it also knows --storage=URL and abbreviations
    parser.add_argument("--storage", nargs="?")
    words = parser.parse_known_args(words)[1]
    return shlex.join(words) if quoted else " ".join(words)


def _score(returns: list[float]) -> str:
    return f"{np.mean(returns):.2f} ± {np.std(returns):.2f}"
