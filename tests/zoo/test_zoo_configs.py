import importlib
import importlib.util
from typing import Any

import pytest
import yaml

pytest.importorskip("rl_zoo3")

import gymnasium as gym
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS

from sb3_attn.zoo import register, zoo_config_path

register()

ALGORITHMS = ("rdqn", "dqn", "r2d2")
CONFIGS: dict[str, dict[str, Any]] = {algo: yaml.safe_load(zoo_config_path(algo).read_text()) for algo in ALGORITHMS}
ENTRIES = [(algo, key) for algo, config in CONFIGS.items() for key in config]

#: The environment to try an entry with, where the key is not its id
ENV_IDS = {"default": "CartPole-v1", "atari": "BreakoutNoFrameskip-v4"}

#: Small enough for a test: everything else is as shipped
SMALL = {"learning_starts": 150, "batch_size": 2, "buffer_size": 1000}
BY_FREQUENCY = {"n_envs": 2, "train_freq": 5, "gradient_steps": 1}
SMALLER = {
    "rdqn": BY_FREQUENCY,
    "dqn": BY_FREQUENCY,
    "r2d2": {"n_envs": 2},
    "r2d2 with actors": {"n_envs": 1, "n_actors": 2},
}

REQUIRED = {"CartPoleNoVel-v1", "LunarLanderNoVel-v3", "popgym-RepeatFirstEasy-v0", "MemoryChain-v0", "TMaze-v0"}


def is_installed(key: str) -> bool:
    """Whether the optional package behind an entry's environment is there."""
    packages = {"popgym": "popgym", "MiniGridRGB": "minigrid"}
    return all(importlib.util.find_spec(name) for prefix, name in packages.items() if key.startswith(prefix))


def test_required_entries_are_there() -> None:
    assert REQUIRED | {"AssociativeRecall-v0", "atari"} <= set(CONFIGS["rdqn"])
    assert {"VisualSearch-v0", "popgym-RepeatPreviousEasy-v0", "atari"} <= set(CONFIGS["dqn"])
    r2d2 = REQUIRED - {"LunarLanderNoVel-v3"} | {"default", "AssociativeRecall-v0", "atari"}
    assert r2d2 <= set(CONFIGS["r2d2"])


@pytest.mark.parametrize(("algo", "key"), ENTRIES)
def test_entries_are_plain_mappings(algo: str, key: str) -> None:
    entry = CONFIGS[algo][key]
    # The zoo evaluates strings in these two; a class would not survive the file it saves for `enjoy`.
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        assert isinstance(entry.get(name, {}), dict)
    assert "replay_buffer_class" not in entry
    assert "env_kwargs" not in entry, "the zoo's evaluation environments would not get them"


# Box2D's module crashes the interpreter where its deprecation warnings are errors
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
@pytest.mark.parametrize(("variant", "key"), [*ENTRIES, *(("r2d2 with actors", key) for key in CONFIGS["r2d2"])])
def test_every_entry_trains(variant: str, key: str, tmp_path) -> None:
    algo = variant.partition(" ")[0]
    if not is_installed(key):
        pytest.skip("an optional package is not installed")
    env_id = ENV_IDS.get(key, key)
    manager = ExperimentManager(
        args=None,  # type: ignore[arg-type]
        algo=algo,
        env_id=env_id,
        log_folder=str(tmp_path),
        n_timesteps=220,
        eval_freq=-1,
        hyperparams=SMALL | SMALLER[variant],
        config=str(zoo_config_path(algo)),
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
    assert model.num_timesteps >= 220
    assert model._n_updates > 0


def test_entries_fit_the_zoo_ids() -> None:
    importlib.import_module("rl_zoo3.import_envs")
    for key in {key for _, key in ENTRIES} - set(ENV_IDS):
        assert key in gym.registry or not is_installed(key), f"{key} is no registered environment"
