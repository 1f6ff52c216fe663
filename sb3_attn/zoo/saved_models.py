"""Find the saved model that a command line names: a zip file, a run folder, or a run by RL Zoo's arguments."""

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from sb3_attn.zoo.loading import LOADABLE, model_path


class SavedModel(NamedTuple):
    """A file, and what is known about its training."""

    #: Of the zip file
    path: Path
    #: Id of the environment
    env_id: str
    #: A key of ``LOADABLE``; ``None`` if neither the user nor the run names one
    algo: str | None
    #: The folder in which RL Zoo saved the settings of the training; ``None`` if there is none
    settings: Path | None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add what ``find_model`` reads.

    :param parser: of the command
    """
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        help="zip file of a model, or folder of a run of RL Zoo, whose settings are used; without it, the run is found as by "
        "enjoy: --folder, --algo, --env, --exp-id",
    )
    parser.add_argument("--env", help="id of the environment (the run's)")
    parser.add_argument(
        "--algo",
        help=f"algorithm, {', '.join(LOADABLE)} (the run's, or the first that has the saved policy; rdqn to find a run)",
    )
    parser.add_argument("-f", "--folder", type=Path, help="folder of all runs (logs)")
    parser.add_argument("--exp-id", type=int, help="number of the run; 0 is the newest, -1 means no run folder (0)")
    parser.add_argument("--load-best", action="store_true", help="the run's best_model.zip instead of its last model")


def find_model(args: argparse.Namespace, trust: bool | Collection[str] = False) -> SavedModel:
    """
    Find the file of a model, its environment and its settings.

    :param args: with the arguments of ``add_model_arguments``
    :param trust: as for ``RecurrentDQN.load``, for the run's settings
    :return: the model
    :raises FileNotFoundError: if there is no model
    :raises ValueError: if the arguments contradict each other, or do not tell the environment
    """
    if args.model is None:
        folder: Path | None = _run_folder(args)
    else:
        if args.folder is not None or args.exp_id is not None:
            raise ValueError(f"--folder and --exp-id find a run, but the model is {args.model}; leave out one or the other.")
        # A model may be given without its suffix, and RL Zoo's has a folder of that name beside it
        folder = args.model if args.model.is_dir() and not Path(f"{args.model}.zip").is_file() else None
        if folder is None and args.load_best:
            raise ValueError(f"--load-best chooses a file in a run folder, but {args.model} is none; leave it out.")
    path = model_path(args.model) if folder is None else None
    folder = path.parent if path is not None else folder
    assert folder is not None, "it is the run's, or the file's"
    settings = _settings_folder(folder, args.env)
    saved = _saved_arguments(settings, trust)
    env_id = args.env or _saved_env_id(saved, settings, trust)
    if env_id is None:
        raise ValueError(f"{args.model} does not tell its environment; give its id, --env ID.")
    path = path or _model_in(folder, _folder_name(env_id), args.load_best)
    algo = args.algo or next((name for name in LOADABLE if name == saved.get("algo")), None)
    return SavedModel(path, env_id, algo, settings)


def _run_folder(args: argparse.Namespace) -> Path:
    if args.env is None:
        raise ValueError("There is no model to show; give a zip file, a run folder, or --env ID for the newest run.")
    from sb3_attn.zoo.run_folders import newest_run_id

    runs, name = (args.folder or Path("logs")) / (args.algo or "rdqn"), _folder_name(args.env)
    exp_id = args.exp_id or newest_run_id(str(runs), name)
    folder = runs / f"{name}_{exp_id}" if exp_id > 0 else runs
    if exp_id == 0 or not folder.is_dir():
        what = f"run {exp_id}" if exp_id else "run with a model"
        raise FileNotFoundError(f"{runs} has no {what} of {args.env}; give other --folder, --algo, --env or --exp-id.")
    return folder


def _model_in(folder: Path, name: str, load_best: bool) -> Path:
    files = [folder / "best_model.zip"] if load_best else [folder / f"{name}.zip", folder / "best_model.zip"]
    for file in files:
        if file.is_file():
            return file
    raise FileNotFoundError(f"{folder} has no {' and no '.join(file.name for file in files)}; give another file or folder.")


def _folder_name(env_id: str) -> str:
    """As RL Zoo's EnvironmentName writes the id: without a module to import, and without slashes."""
    return env_id.rpartition(":")[2].replace("/", "-")


def _settings_folder(folder: Path, env_id: str | None) -> Path | None:
    if env_id is not None:
        settings = folder / _folder_name(env_id)
        return settings if (settings / "config.yml").is_file() else None
    found = [file.parent for file in folder.glob("*/config.yml")]
    # RL Zoo's has the arguments or the model's name; other programs have folders with a config.yml, too
    found = [path for path in found if (path / "args.yml").is_file() or (folder / f"{path.name}.zip").is_file()]
    return found[0] if len(found) == 1 else None


def _saved_arguments(settings: Path | None, trust: bool | Collection[str]) -> dict[str, Any]:
    if settings is None or not (settings / "args.yml").is_file():
        return {}
    from sb3_attn.zoo.run_folders import load_settings

    return load_settings(settings / "args.yml", trust)


def _saved_env_id(saved: dict[str, Any], settings: Path | None, trust: bool | Collection[str]) -> str | None:
    if settings is None:
        return None
    from sb3_attn.zoo.run_folders import check_env_id

    env_id = str(saved.get("env") or settings.name)
    check_env_id(env_id, trust)
    return env_id
