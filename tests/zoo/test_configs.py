import contextlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("rl_zoo3")

import gymnasium as gym
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, get_class_by_name
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_attn
from sb3_attn.memory import GTrXLCore
from sb3_attn.zoo import register, zoo_config_path

register()

ALGORITHMS = ("rdqn", "dqn", "r2d2", "maskable_dqn")
CONFIGS: dict[str, dict[str, Any]] = {algo: yaml.safe_load(zoo_config_path(algo).read_text()) for algo in ALGORITHMS}
ENTRIES = [(algo, key) for algo, config in CONFIGS.items() for key in config]

#: The environment to try an entry with, where the key is not its id
ENV_IDS = {"default": "CartPole-v1", "atari": "BreakoutNoFrameskip-v4"}

#: Small enough for a test: everything else is as shipped
SMALL = {"learning_starts": 200, "batch_size": 2, "buffer_size": 1000}
BY_FREQUENCY = {"n_envs": 2, "train_freq": 25, "gradient_steps": 1}
SMALLER = {
    "rdqn": BY_FREQUENCY,
    "dqn": BY_FREQUENCY,
    "maskable_dqn": BY_FREQUENCY,
    "r2d2": {"n_envs": 2},
    "r2d2 with actors": {"n_envs": 1, "n_actors": 2},
}

REQUIRED = {"CartPoleNoVel-v1", "LunarLanderNoVel-v3", "popgym-RepeatFirstEasy-v0", "MemoryChain-v0", "TMaze-v0"}


def is_installed(key: str) -> bool:
    """True if the optional package that an entry's environment comes from is installed."""
    packages = {"popgym": "popgym", "MiniGrid": "minigrid", "Perceptual": "neurogym", "DelayMatch": "neurogym"}
    return all(importlib.util.find_spec(name) for prefix, name in packages.items() if key.startswith(prefix))


def test_required_entries_are_there() -> None:
    assert REQUIRED | {"AssociativeRecall-v0", "atari"} <= set(CONFIGS["rdqn"])
    assert {"VisualSearch-v0", "popgym-RepeatPreviousEasy-v0", "atari"} <= set(CONFIGS["dqn"])
    r2d2 = REQUIRED - {"LunarLanderNoVel-v3"} | {"default", "AssociativeRecall-v0", "atari"}
    assert r2d2 <= set(CONFIGS["r2d2"])


@pytest.mark.parametrize(("algo", "key"), ENTRIES)
def test_entries_are_plain_mappings(algo: str, key: str) -> None:
    entry = CONFIGS[algo][key]
    # RL Zoo evaluates strings in these two, and the file that it saves for `enjoy` cannot hold a class
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        assert isinstance(entry.get(name, {}), dict)
    assert "replay_buffer_class" not in entry
    assert "env_kwargs" not in entry, "the zoo's evaluation environments would not get them"


# Box2D crashes the interpreter if its deprecation warnings are errors
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*render_modes")  # NeuroGym's tasks do not say that they have none
@pytest.mark.parametrize(("variant", "key"), [*ENTRIES, *(("r2d2 with actors", key) for key in ("default", "TMaze-v0"))])
def test_every_entry_trains(variant: str, key: str, tmp_path) -> None:
    algo = variant.partition(" ")[0]
    if not is_installed(key):
        pytest.skip("an optional package is not installed")
    train(algo, ENV_IDS.get(key, key), str(zoo_config_path(algo)), SMALL | SMALLER[variant], tmp_path)


#: Names of earlier versions: of arguments, of a core, and of a policy
FORMER_ARGUMENTS = {"rdqn": {"bootstrap_n": 3, "epsilon_ladder": True}, "r2d2": {"bootstrap_n": 3, "weights_period": 80}}
FORMER_CORE = {"policy": "MlpPolicy", "td_lambda": None, "policy_kwargs": {"core": "gated_transformer"}}
FORMER_POLICY = {"policy": "sb3_attn.NTMMlpPolicy", "policy_kwargs": {"features_extractor_kwargs": {"n_stack": 1}}}


def train_own(algo: str, entry: dict[str, Any], folder: Path) -> BaseAlgorithm:
    config = folder / "own.yml"
    config.write_text(yaml.safe_dump({"MemoryChain-v0": {"n_timesteps": 1000, **entry}}))
    return train(algo, "MemoryChain-v0", str(config), SMALL | SMALLER[algo], folder)


@pytest.mark.parametrize("algo", FORMER_ARGUMENTS)
def test_former_names_of_arguments_and_cores_train(algo: str, tmp_path) -> None:
    former = FORMER_ARGUMENTS[algo]
    with contextlib.ExitStack() as warned:
        for name in former:
            warned.enter_context(pytest.warns(FutureWarning, match=f"{name} is now called"))
        model = train_own(algo, former | FORMER_CORE, tmp_path)
    assert model.n_steps == 3 and model.per_env_epsilons
    assert type(model.policy.q_net.core) is GTrXLCore


def test_settings_of_r2d2_are_an_entry_like_others(tmp_path) -> None:
    model = train_own("r2d2", {"policy": "MlpPolicy", "settings": "small", "gamma": 0.9}, tmp_path)
    assert (model.gamma, model.td_lambda, model.samples_per_insert) == (0.9, 0.95, None)


def test_a_former_name_of_a_policy_trains(tmp_path) -> None:
    assert type(train_own("dqn", FORMER_POLICY, tmp_path).policy) is sb3_attn.NTMPolicy


def train(algo: str, env_id: str, config: str, hyperparams: dict[str, Any], folder: Path) -> BaseAlgorithm:
    manager = ExperimentManager(
        args=None,  # type: ignore[arg-type]
        algo=algo,
        env_id=env_id,
        log_folder=str(folder),
        n_timesteps=300,  # of each of two environments more than a window
        eval_freq=-1,
        hyperparams=hyperparams,
        config=config,
        device="cpu",
        verbose=0,
        seed=0,
        log_interval=-1,
    )
    manager._save_config = lambda hyperparams: None  # type: ignore[method-assign]  # needs the command line's arguments
    results = manager.setup_experiment()
    assert results is not None
    model = results[0]
    assert type(model) is ALGOS[algo]
    manager.learn(model)
    assert model.num_timesteps >= 300
    assert model._n_updates > 0
    return model


@pytest.mark.parametrize("name", [name for name in sb3_attn.__all__ if name.endswith("Policy")])
def test_the_zoo_finds_policies_by_name_and_by_sb3s_three_names(name: str) -> None:
    policy = get_class_by_name(f"sb3_attn.{name}")
    for kind in ("Mlp", "Cnn", "MultiInput"):
        assert get_class_by_name(f"sb3_attn.{name.removesuffix('Policy')}{kind}Policy") is policy


def test_entries_fit_the_zoo_ids() -> None:
    importlib.import_module("rl_zoo3.import_envs")
    for key in {key for _, key in ENTRIES} - set(ENV_IDS):
        assert key in gym.registry or not is_installed(key), f"{key} is not a registered environment"
