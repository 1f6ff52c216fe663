"""
Reading run folders without running code from them.

RL Zoo reads settings with PyYAML's unsafe loader, evaluates strings in them, calls wrappers that they name, and unpickles
models, replays and statistics. While one of its programs runs, ours read these files in place of its own functions.
"""

import ast
import contextlib
import functools
import inspect
import os
import re
import sys
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import gymnasium as gym
import numpy as np
import rl_zoo3.exp_manager  # before its functions are replaced: training numbers its runs by RL Zoo's own
import rl_zoo3.import_envs  # noqa: F401  # it may register algorithms of the user's
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import utils
from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams
from stable_baselines3.common import off_policy_algorithm
from stable_baselines3.common import vec_env as vec_envs
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import get_monitor_files, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecVideoRecorder

from sb3_attn.recurrent_dqn.safe_loading import (
    RefusedFileError,
    UnsafePickleError,
    check_archive,
    find_allowed,
    load_pickle,
    trusted_names,
)
from sb3_attn.recurrent_dqn.saving import SaveAndLoad
from sb3_attn.zoo.loading import load_algorithm, load_vec_normalize

#: Wrappers that settings may name, by module or package: none of them writes files or calls functions that it is given
WRAPPERS: dict[str, tuple[str, ...]] = {
    "gymnasium.wrappers": (
        *("AddRenderObservation", "AddWhiteNoise", "AtariPreprocessing", "ClipAction", "ClipReward", "DelayObservation"),
        *("DiscretizeAction", "DiscretizeObservation", "DtypeObservation", "FilterObservation", "FlattenObservation"),
        *("FrameStackObservation", "GrayscaleObservation", "MaxAndSkipObservation", "NormalizeObservation"),
        *("NormalizeReward", "ObstructView", "RepeatAction", "RescaleAction", "RescaleObservation", "ReshapeObservation"),
        *("ResizeObservation", "StickyAction", "TimeAwareObservation", "TimeLimit"),
    ),
    "minigrid.wrappers": (
        *("ActionBonus", "DictObservationSpaceWrapper", "DirectionObsWrapper", "FlatObsWrapper", "FullyObsWrapper"),
        *("ImgObsWrapper", "NoDeath", "OneHotPartialObsWrapper", "PositionBonus", "ReseedWrapper", "RGBImgObsWrapper"),
        *("RGBImgPartialObsWrapper", "StochasticActionWrapper", "SymbolicObsWrapper", "ViewSizeWrapper"),
    ),
    "rl_zoo3.wrappers": (
        *("ActionNoiseWrapper", "ActionSmoothingWrapper", "DelayedRewardWrapper", "FrameSkip", "HistoryWrapper"),
        *("HistoryWrapperObsDict", "MaskVelocityWrapper", "TruncatedOnSuccessWrapper", "YAMLCompatResizeObservation"),
    ),
    "sb3_attn.envs": ("FinalActionMasks", "FlattenSpaces", "PreviousActionReward"),
    "sb3_attn.extractors": ("VecFrozenFeatures",),
    "sb3_contrib.common.wrappers": ("TimeFeatureWrapper",),
    "stable_baselines3.common.atari_wrappers": (
        *("AtariWrapper", "ClipRewardEnv", "EpisodicLifeEnv", "FireResetEnv", "MaxAndSkipEnv", "NoopResetEnv"),
        *("StickyActionEnv", "WarpFrame"),
    ),
    "stable_baselines3.common.vec_env": (
        *("VecCheckNan", "VecExtractDictObs", "VecFrameStack", "VecNormalize", "VecTransposeImage"),
    ),
}

#: Largest number of characters in a file of settings; RL Zoo's have some thousands
LARGEST_SETTINGS = 2**20

#: Largest number of bytes in a file of results: a line of a monitor.csv has some thirty
LARGEST_RESULTS = 2**28


class SettingsLoader(yaml.SafeLoader):
    """
    Reader of the YAML files that RL Zoo writes: plain values, tuples, and what pickles may name.

    :param file: the open file, or a text
    :param trusted: further classes and functions, as "module.name"
    """

    def __init__(self, file: TextIO | str, trusted: Collection[str] = ()) -> None:
        name = getattr(file, "name", "YAML")
        try:
            text = file if isinstance(file, str) else file.read(LARGEST_SETTINGS + 1)
            super().__init__(text)
        except (UnicodeError, yaml.YAMLError) as error:
            raise RefusedFileError(f"{name} is no text ({error}); give the file that RL Zoo wrote.") from error
        if len(text) > LARGEST_SETTINGS:
            raise RefusedFileError(f"{name} has more than {LARGEST_SETTINGS} characters, so it was not read.")
        self.name, self.trusted = name, trusted

    def get_single_data(self) -> dict[str, Any]:
        """Read the file, and check what RL Zoo would run in it."""
        try:
            settings = dict(super().get_single_data())
            if isinstance(settings.get("normalize"), str):
                settings["normalize"] = _literal(settings["normalize"])
            for key in ("env_wrapper", "vec_env_wrapper"):
                for name in _names(settings.get(key)):
                    self._check_wrapper(name)
            for key in ("env_kwargs", "eval_env_kwargs"):
                self._check_plain(settings.get(key))
        except UnsafePickleError as error:
            raise UnsafePickleError(error.name, self.name) from None
        except Exception as error:
            raise RefusedFileError(
                f"{self.name} has something else than plain settings ({error}), so it was not read. If you trust who made it, "
                "add --trust."
            ) from error
        return settings

    def find(self, name: str) -> Any:
        """Find a class or a function that is allowed."""
        module, _, attribute = name.rpartition(".")
        return find_allowed(module, attribute, self.trusted)

    def _check_wrapper(self, name: Any) -> None:
        if isinstance(name, str) and name not in self.trusted:  # a class has been found by its name already
            module, _, attribute = name.rpartition(".")
            if not any(f"{module}.".startswith(f"{known}.") and attribute in names for known, names in WRAPPERS.items()):
                raise UnsafePickleError(name)

    def _check_plain(self, value: Any) -> None:
        """An environment may call what it is given, so what pickles may name is too much for its arguments."""
        if isinstance(value, dict | list | tuple):
            for item in (*value, *value.values()) if isinstance(value, dict) else value:
                self._check_plain(item)
        elif value is not None and not isinstance(value, bool | int | float | str):
            named = value if hasattr(value, "__qualname__") else type(value)
            if (full_name := f"{named.__module__}.{named.__qualname__}") not in self.trusted:
                raise UnsafePickleError(full_name)


PYTHON = "tag:yaml.org,2002:python/"
SettingsLoader.add_constructor(f"{PYTHON}tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))
SettingsLoader.add_multi_constructor(f"{PYTHON}name:", lambda loader, name, node: loader.find(name))
SettingsLoader.add_multi_constructor(  # an OrderedDict, for example
    f"{PYTHON}object/apply:", lambda loader, name, node: loader.find(name)(*loader.construct_sequence(node, deep=True))
)


def _literal(text: str) -> Any:
    """The value of ``normalize``: a literal, or ``dict(...)`` with literals."""
    call = ast.parse(text.strip(), mode="eval").body
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "dict" and not call.args and all(k.arg for k in call.keywords):
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return ast.literal_eval(call)


def _names(wrappers: Any) -> list[Any]:
    """The wrappers in settings, which have none, one, or a list, each a name or a mapping from it to arguments."""
    entries = wrappers if isinstance(wrappers, list) else [] if wrappers is None else [wrappers]
    return [name for entry in entries for name in (entry if isinstance(entry, dict) else [entry])]


def settings_loader(trust: bool | Collection[str]) -> Any:
    """
    Choose how to read settings.

    :param trust: as for ``RecurrentDQN.load``
    :return: a ``Loader`` for ``yaml.load``
    """
    return yaml.UnsafeLoader if trust is True else functools.partial(SettingsLoader, trusted=trusted_names(trust))


def load_settings(path: Path, trust: bool | Collection[str] = False) -> dict[str, Any]:
    """
    Read the settings that RL Zoo saved, ``config.yml`` or ``args.yml``.

    :param path: the file
    :param trust: as for ``RecurrentDQN.load``
    :return: the settings
    :raises RefusedFileError: if it has something else than plain settings
    """
    with path.open(encoding="utf-8") as file:
        return dict(yaml.load(file, Loader=settings_loader(trust)))


class SafeAlgorithm:
    """
    An algorithm as RL Zoo uses it, whose ``load`` runs no code from the file.

    :param algorithm: its class
    :param trust: as for ``RecurrentDQN.load``
    """

    def __init__(self, algorithm: type[BaseAlgorithm], trust: bool | Collection[str]) -> None:
        self.algorithm, self.trust = algorithm, trust

    def __call__(self, *args: Any, **kwargs: Any) -> BaseAlgorithm:
        return self.algorithm(*args, **kwargs)

    def load(self, path: str, **kwargs: Any) -> BaseAlgorithm:
        model = load_algorithm(self.algorithm, path, self.trust, **kwargs)
        options = getattr(model, "backend_kwargs", None) or {}
        goes_on_learning = "tensorboard_log" in kwargs  # acting connects to nothing
        if goes_on_learning and self.trust is not True and "backend_kwargs" not in kwargs and options.get("address"):
            raise RefusedFileError(
                f"{path} would have its actors run on the Ray cluster at {options['address']!r}; if that is yours, add "
                "-params with these backend_kwargs, or --trust."
            )
        return model


@contextlib.contextmanager
def safe_reading(trust: bool | Collection[str]) -> Iterator[None]:
    """
    Have RL Zoo read run folders with our functions.

    :param trust: as for ``RecurrentDQN.load``
    """
    algorithms = dict(ALGOS)
    replay_loader = functools.partialmethod(SaveAndLoad.load_replay_buffer, trust=trust)
    with contextlib.ExitStack() as stack:
        stack.callback(ALGOS.update, algorithms)
        ALGOS.update({name: SafeAlgorithm(algorithm, trust) for name, algorithm in algorithms.items()})  # type: ignore[misc]
        for owner, name, value in (
            (utils, "get_latest_run_id", newest_run_id),
            (yaml, "UnsafeLoader", settings_loader(trust)),
            (VecNormalize, "load", staticmethod(lambda load_path, venv: load_vec_normalize(load_path, venv, trust))),
            (off_policy_algorithm, "load_from_pkl", lambda path, verbose=0: load_pickle(path, trust)),
            (SaveAndLoad, "load_replay_buffer", replay_loader),
            *([] if trust is True else [(vec_envs, "VecVideoRecorder", _video_recorder)]),
            *_plot_readers(trust),
        ):
            stack.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, value)
        yield


def newest_run_id(log_path: str, env_name: str) -> int:
    """
    The number of the newest run that has a model: a search for hyperparameters leaves a folder without one.

    :param log_path: folder of an algorithm's runs
    :param env_name: name of the environment in names of folders
    :return: the number; 0 if there is no such run
    """
    runs = {path.parent.name for path in Path(log_path).glob("*/*.zip")}
    prefix = f"{env_name}_"
    return max((int(run.removeprefix(prefix)) for run in runs if re.fullmatch(re.escape(prefix) + r"\d+", run)), default=0)


def make_run_env(
    settings: Path, env_id: str, env_kwargs: dict[str, Any], seed: int, trust: bool | Collection[str] = False
) -> VecEnv:
    """
    Make the environment from the settings of a training run, as RL Zoo's ``enjoy`` does.

    :param settings: the folder with ``config.yml``
    :param env_id: id of the environment
    :param env_kwargs: arguments of its constructor, which go before those of the run
    :param seed: its seed
    :param trust: as for ``RecurrentDQN.load``
    :return: one environment, vectorised
    """
    with safe_reading(trust):
        hyperparams, stats_path = get_saved_hyperparams(str(settings), test_mode=True)
        kwargs: dict[str, Any] = dict(hyperparams.pop("env_kwargs", None) or {})
        if (settings / "args.yml").is_file():
            kwargs = dict(load_settings(settings / "args.yml", trust).get("env_kwargs") or kwargs)
        kwargs |= env_kwargs
        # Frames as arrays: RL Zoo's should_render would open a window
        if "render_mode" not in kwargs and _renders(env_id):
            kwargs["render_mode"] = "rgb_array"
        return create_test_env(
            env_id,
            stats_path=stats_path,
            seed=seed,
            should_render=False,
            hyperparams=hyperparams,
            env_kwargs=kwargs,
            vec_env_cls=DummyVecEnv,
        )


def _renders(env_id: str) -> bool:
    entry_point = gym.spec(env_id).entry_point
    creator: Any = gym.envs.registration.load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if metadata := getattr(creator, "metadata", None):
        return "rgb_array" in metadata.get("render_modes", ())
    return "render_mode" in inspect.signature(creator).parameters  # a function, such as RL Zoo's of CartPoleNoVel-v1


def _plot_readers(trust: bool | Collection[str]) -> Iterator[tuple[Any, str, Any]]:
    """What the plots read, if they were imported: they need packages that the other programs do not need."""
    if module := sys.modules.get("rl_zoo3.plots.all_plots"):
        yield module, "np", SimpleNamespace(**(vars(np) | {"load": _load_arrays}))
    if module := sys.modules.get("rl_zoo3.plots.plot_from_file"):
        yield module, "pickle", SimpleNamespace(load=lambda file: load_pickle(file.name, trust))
    if module := sys.modules.get("rl_zoo3.plots.plot_train"):
        yield module, "load_results", _load_results


def _load_results(path: str) -> Any:
    for file in get_monitor_files(path):
        _check_results(file)
    return load_results(path)


def _check_results(path: str) -> None:
    if os.path.exists(path) and not (os.path.isfile(path) and os.path.getsize(path) <= LARGEST_RESULTS):
        raise RefusedFileError(f"{path} is no regular file of at most {LARGEST_RESULTS} bytes, so it was not read; remove it.")


def _video_recorder(venv: VecEnv, video_folder: str, *args: Any, **kwargs: Any) -> VecVideoRecorder:
    folder = Path(video_folder)
    if link := next(filter(Path.is_symlink, (folder, *folder.glob("*"))), None):
        raise RefusedFileError(
            f"{link} is a link, through which a video may overwrite another file; remove it, or give another folder by -o."
        )
    return VecVideoRecorder(venv, video_folder, *args, **kwargs)


def check_videos(folder: Path) -> None:
    """
    Check the folders of videos that RL Zoo's ``record_training`` empties, where it can, before it uses them.

    The names of videos that stay there reach a shell.

    :param folder: of an algorithm's runs
    :raises RefusedFileError: if one is a link, or has a name in it that RL Zoo does not give
    """
    for videos in (folder / "videos", *folder.glob("*/videos")):
        for path in (videos, *videos.glob("*")):
            if videos.is_symlink() or not re.fullmatch(r"[\w.+-]+", path.name):
                raise RefusedFileError(
                    f"{str(path)!r} is a link, or has a name that RL Zoo does not give; remove it, or give another -o."
                )


def check_models(folder: Path, env_id: str, exp_id: int = 0) -> None:
    """
    Find out whether a run has models: RL Zoo's ``record_training`` says of a video of none that it was saved.

    :param folder: of an algorithm's runs
    :param env_id: id of the environment
    :param exp_id: number of the run; 0 is the newest, -1 means no run folder
    :raises ValueError: if the run has none; RL Zoo says itself that the folder of a run is missing
    """
    name = EnvironmentName(env_id)
    number = exp_id or newest_run_id(str(folder), name)
    run = folder / f"{name}_{number}" if number > 0 else folder
    models = (run / f"{name}.zip", run / "best_model.zip", *run.glob("rl_model_*"))
    if run.is_dir() and not any(path.is_file() for path in models):
        raise ValueError(f"No model found for {folder.name} on {env_id}, path: {run}")


def check_env_id(env_id: str, trust: bool | Collection[str]) -> None:
    """
    Check the id of an environment that a run folder names, since Gymnasium imports the module in front of a colon.

    :param env_id: the id
    :param trust: as for ``RecurrentDQN.load``
    :raises UnsafePickleError: if there is a module, and it is not trusted
    """
    module, colon, _ = env_id.rpartition(":")
    if colon and trust is not True and module not in trusted_names(trust):
        raise UnsafePickleError(module, f"The environment {env_id} in args.yml")


def _load_arrays(path: str) -> Any:
    _check_results(path)
    with contextlib.suppress(zipfile.BadZipFile), open(path, "rb") as file:
        check_archive(file, path)
    return np.load(path)
