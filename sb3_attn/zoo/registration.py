"""Registration of our algorithms and environments with RL Zoo."""

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

import sb3_attn
from sb3_attn.r2d2 import R2D2
from sb3_attn.recurrent_dqn import MaskableDQN, RecurrentDQN
from sb3_attn.recurrent_dqn.arguments import fitting_policy
from sb3_attn.zoo.sampling import convert_r2d2_params, convert_rdqn_params, sample_r2d2_params, sample_rdqn_params


class ZooAlgorithm(NamedTuple):
    """
    An algorithm as RL Zoo needs it.

    :param model_class: the algorithm
    :param sampler: ``(trial, n_actions, n_envs, additional_args) -> constructor arguments``: samples the hyperparameters of
        one Optuna trial; ``None`` means RL Zoo's of DQN
    :param converter: ``trial.params -> constructor arguments``: gives the same dictionary from a stored trial; ``None`` means
        RL Zoo's of DQN
    """

    model_class: type[BaseAlgorithm]
    sampler: Callable[..., dict[str, Any]] | None = None
    converter: Callable[[dict[str, Any]], dict[str, Any]] | None = None


#: Our algorithms, by the names that ``--algo`` takes
ALGORITHMS = {
    "rdqn": ZooAlgorithm(RecurrentDQN, sample_rdqn_params, convert_rdqn_params),
    "r2d2": ZooAlgorithm(R2D2, sample_r2d2_params, convert_r2d2_params),
    "maskable_dqn": ZooAlgorithm(MaskableDQN),
}

#: Optional packages that register environments when they are imported, beside those that RL Zoo imports
ENVIRONMENT_PACKAGES = ("popgym", "neurogym")


def register() -> None:
    """
    Add our algorithms and environments to RL Zoo in this process. Calling it again changes nothing.

    RL Zoo's modules share three dictionaries, and its programs read the choices of ``--algo`` from them when they run, so
    the dictionaries are updated in place, never replaced. A process that runs one of RL Zoo's programs has to call this
    first: the ``sb3-attn`` command does, and a ``custom_envs.py`` can (see the guide). A package of environments that is
    installed but cannot be imported gives a warning.

    :raises ModuleNotFoundError: if RL Zoo is not installed
    """
    try:
        from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
        from rl_zoo3.utils import ALGOS
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"register() needs {error.name}, which is not installed; pip install 'sb3_attn[zoo]'.", name=error.name
        ) from error

    for name, algorithm in ALGORITHMS.items():
        ALGOS[name] = algorithm.model_class
        HYPERPARAMS_SAMPLER[name] = algorithm.sampler or HYPERPARAMS_SAMPLER["dqn"]
        HYPERPARAMS_CONVERTER[name] = algorithm.converter or HYPERPARAMS_CONVERTER["dqn"]  # type: ignore[assignment]
    importlib.import_module("sb3_attn.envs")
    for package in ENVIRONMENT_PACKAGES:
        _import_if_installed(package)


def _import_if_installed(package: str) -> None:
    try:
        importlib.import_module(package)
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == package):
            warnings.warn(
                f"{package} cannot be imported ({error!r}), so its environments are missing; repair it or remove it.",
                stacklevel=3,
            )


def zoo_config_path(algo: str) -> Path:
    """
    Find the hyperparameters that are shipped for an algorithm.

    :param algo: ``"dqn"``, for attention in stock DQN, or a key of ``ALGORITHMS``
    :return: the path of ``zoo_configs/<algo>.yml``, inside the installed package or, in an editable checkout, at the top of
        the repository
    :raises FileNotFoundError: if none is shipped
    """
    package = Path(sb3_attn.__file__).parent
    for folder in (package, package.parent):
        path = folder / "zoo_configs" / f"{algo}.yml"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"There is no zoo_configs/{algo}.yml beside or inside {package}: algo={algo!r} has to be one of "
        f"{['dqn', *sorted(ALGORITHMS)]}; if it is, the installation is incomplete: reinstall sb3_attn."
    )


@contextlib.contextmanager
def fitting_policies() -> Iterator[None]:
    """Give an environment without an entry in our files the policy that fits its observations, while RL Zoo trains."""
    from rl_zoo3.exp_manager import ExperimentManager

    original = ExperimentManager._preprocess_action_noise  # gets the environments, just before the model is made

    def preprocess(
        manager: Any, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        policy = fitting_policy(env.observation_space)
        if policy != hyperparams.get("policy") and _has_default_policy(manager):
            hyperparams["policy"] = saved_hyperparams["policy"] = policy
            print(f"Using {policy}, which fits the observations")
        return original(manager, hyperparams, saved_hyperparams, env)

    ExperimentManager._preprocess_action_noise = preprocess  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ExperimentManager._preprocess_action_noise = original  # type: ignore[method-assign]


def _has_default_policy(manager: Any) -> bool:
    """Whether the policy comes from the default entry of one of our files, rather than from the user."""
    import yaml

    if manager.algo not in ALGORITHMS or manager.config != str(zoo_config_path(manager.algo)):
        return False
    has_entry = manager._is_atari or manager.env_name.gym_id in yaml.safe_load(Path(manager.config).read_text())
    return not has_entry and not manager.continue_training and "policy" not in (manager.custom_hyperparams or {})


def default_config(algo: str, env_id: str) -> Path | None:
    """
    Choose the file of hyperparameters for a user who gives none.

    :param algo: the value of ``--algo``
    :param env_id: the value of ``--env``
    :return: our file for our algorithms, and for RL Zoo's own algorithms if it has an entry for the environment; otherwise
        ``None``, with which RL Zoo takes a file of its own
    """
    if algo in ALGORITHMS:
        return zoo_config_path(algo)
    try:
        path = zoo_config_path(algo)
    except FileNotFoundError:
        return None
    import yaml
    from rl_zoo3.exp_manager import ExperimentManager

    entries = yaml.safe_load(path.read_text())
    is_atari = env_id in gym.registry and ExperimentManager.is_atari(env_id)
    return path if env_id in entries or ("atari" in entries and is_atari) else None
