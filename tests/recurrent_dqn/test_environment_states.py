"""Checkpoints of environments that can give and take their state: a run with checkpoints is the one without, bit for bit."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_attn import MaskableDQN, RecurrentDQN, SaveCheckpoints
from sb3_attn.envs import PreviousActionReward
from sb3_attn.recurrent_dqn.checkpoints import checkpoints
from sb3_attn.recurrent_dqn.environment_states import environment_states, set_environment_states
from tests.helpers.environments import MaskedStatefulWalk, StatefulWalk, Walk
from tests.helpers.models import ALGORITHMS, make_rdqn
from tests.recurrent_dqn.test_checkpoints import KINDS, assert_equal, everything


def make_one(kind: str = "vector", cls: type[Walk] = StatefulWalk) -> gym.Env:
    return Monitor(TimeLimit(PreviousActionReward(cls(kind)), 6))


def make_env(kind: str = "vector", seed: int = 0, normalized: bool = True, cls: type[Walk] = StatefulWalk) -> VecEnv:
    env = DummyVecEnv([partial(make_one, kind, cls)] * 2)
    env.seed(seed)
    return VecNormalize(env, norm_obs_keys=["a"] if kind == "dict" else None) if normalized else env


def all_of(model: RecurrentDQN) -> dict[str, np.ndarray]:
    """All numbers that learning depends on, and those of the episodes in the logs."""
    values = vars(model.diagnostics.episode_values)
    episodes = [[info["r"], info["l"]] for info in model.ep_info_buffer]
    return (
        everything(model)
        | {"values": np.array([values[name] for name in sorted(values) if name.startswith("_")])}
        | {"episodes": np.array(episodes)}
    )


def load(folder: Path, env: VecEnv, cls: type[RecurrentDQN] = RecurrentDQN) -> RecurrentDQN:
    return cls.load_checkpoint(folder, env, device="cpu")


CASES = [("lstm", True), ("prioritized", False), ("key-value", False), ("whole episodes", False), ("dict", True)]


@pytest.mark.parametrize(("kind", "normalized"), CASES)
def test_a_run_with_checkpoints_is_the_one_without(kind: str, normalized: bool, tmp_path: Path) -> None:
    space = "dict" if kind == "dict" else "vector"
    undisturbed = make_rdqn(make_env(space, normalized=normalized), **KINDS[kind]).learn(200)
    expected = all_of(undisturbed)
    model = make_rdqn(make_env(space, normalized=normalized), **KINDS[kind])
    model.learn(200, SaveCheckpoints(tmp_path, save_freq=60, keep_last=9))
    assert_equal(all_of(model), expected)

    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_64", "checkpoint_120", "checkpoint_184"]
    np.random.rand(7)
    resumed = load(tmp_path / "checkpoint_120", make_env(space, seed=5, normalized=normalized))
    resumed.learn(80, reset_num_timesteps=False)
    assert_equal(all_of(resumed), expected)
    resumed.replay_buffer.check_valid()
    if normalized:
        assert undisturbed.get_vec_normalize_env().ret_rms.var == resumed.get_vec_normalize_env().ret_rms.var


@pytest.mark.parametrize("task", ["MemoryChain-v0", "RememberedSearch-v0"])
def test_episodes_of_our_tasks_go_on(task: str, tmp_path: Path) -> None:
    """As ``gym.make`` makes them: with its wrappers, in which they are made by RecurrentDQN."""
    expected = all_of(make_rdqn(task).learn(90))
    make_rdqn(task).learn(90, SaveCheckpoints(tmp_path, save_freq=50))
    resumed = load(tmp_path, gym.make(task))
    assert (resumed.num_timesteps, resumed._last_episode_starts) == (52, [False])
    assert_equal(all_of(resumed.learn(38, reset_num_timesteps=False)), expected)


def test_action_masks_are_those_of_the_states(tmp_path: Path) -> None:
    make = partial(MaskableDQN, "MlpPolicy", learning_starts=20, train_freq=4, buffer_size=200, seed=0, device="cpu")
    env = partial(make_env, normalized=False, cls=MaskedStatefulWalk)
    expected = everything(make(env()).learn(120))
    make(env()).learn(120, SaveCheckpoints(tmp_path, save_freq=60))
    resumed = MaskableDQN.load_checkpoint(tmp_path, env(seed=5), device="cpu")
    assert resumed.num_timesteps == 64
    assert_equal(everything(resumed.learn(56, reset_num_timesteps=False)), expected)


# ---------------------------------------------------------------- every part


def _set(path: str, value: Any) -> Callable[[RecurrentDQN], None]:
    def leave_out(model: RecurrentDQN) -> None:
        *parts, name = path.split(".")
        part: Any = model
        for each in parts:
            part = part[int(each)] if each.isdigit() else getattr(part, each)
        setattr(part, name, value)

    return leave_out


LEFT_OUT: dict[str, Callable[[RecurrentDQN], Any]] = {
    "environment": _set("env.unwrapped.envs.0.unwrapped.length", 2),
    "its generator": lambda model: model.env.unwrapped.envs[0].unwrapped.np_random.random(),
    "time limit": _set("env.unwrapped.envs.1.env._elapsed_steps", 0),
    "last observations": _set("_last_obs", None),
    "episode starts": lambda model: np.logical_not(model._last_episode_starts, out=model._last_episode_starts),
    "core state": _set("_core_state", None),
    "returns of open episodes": lambda model: model.return_scale.reset(2),
    "VecNormalize's returns": _set("env.returns", np.zeros(2)),
    "action space": lambda model: model.action_space.seed(0),
    "numpy": lambda model: np.random.rand(),
    "replay": lambda model: model.replay_buffer.reset(),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("run")
    model = make_rdqn(make_env()).learn(184, SaveCheckpoints(folder, save_freq=60))
    return folder / "checkpoint_120", everything(model)


@pytest.mark.parametrize("part", ["nothing", *LEFT_OUT])
def test_every_part_matters(part: str, run: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, expected = run
    resumed = load(path, make_env(seed=5))
    LEFT_OUT.get(part, lambda model: None)(resumed)
    found = everything(resumed.learn(64, reset_num_timesteps=False))
    is_same = all(np.array_equal(found[name], expected[name]) for name in found if name.startswith("policy"))
    assert is_same == (part == "nothing")


# ---------------------------------------------------------------- what cannot go on


class Unknown(gym.Wrapper):
    """It may carry anything."""


OTHERS: dict[str, Callable[[], VecEnv]] = {
    "no methods": partial(make_env, cls=Walk),
    "an unknown wrapper": lambda: DummyVecEnv([lambda: Unknown(StatefulWalk())]),
    "an unknown wrapper of all": lambda: VecFrameStack(make_env(normalized=False), 2),
    "one of them without": lambda: DummyVecEnv([StatefulWalk, Walk]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_others_begin_new_episodes(kind: str, tmp_path: Path) -> None:
    model = make_rdqn(OTHERS[kind]()).learn(60)
    path = model.save_checkpoint(tmp_path)
    assert not (path / "episodes.json").exists() and model._last_episode_starts.all()


def test_after_half_a_step_new_episodes_begin(tmp_path: Path) -> None:
    """The environments have done the step at which a callback ended training, and the replay does not have it."""
    model = make_rdqn(make_env())
    model.learn(100, ConvertCallback(lambda *_: model.num_timesteps < 58))
    path = model.save_checkpoint(tmp_path)
    assert not (path / "episodes.json").exists()
    model.learn(40, reset_num_timesteps=False)
    found = load(path, make_env(seed=5)).learn(40, reset_num_timesteps=False)
    assert_equal(everything(found), everything(model))


def test_other_environments_are_refused(tmp_path: Path) -> None:
    path = make_rdqn(DummyVecEnv([lambda: Monitor(TimeLimit(StatefulWalk(), 6))] * 2)).learn(60).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"states of \[\['Monitor', 'TimeLimit', 'StatefulWalk'\], .*, but env has .*; give"):
        load(path, DummyVecEnv([lambda: Monitor(StatefulWalk())] * 2))


# Not TimeLimit itself, which RL Zoo may have replaced by the time that this is imported
GYMNASIUMS = next(kind for kind in TimeLimit.__mro__ if kind.__module__ == "gymnasium.wrappers.common")
RL_ZOOS = type("PatchedTimeLimit", (GYMNASIUMS,), {"__module__": "rl_zoo3.gym_patches"})
OWN = type("TimeLimit", (GYMNASIUMS,), {})


def limited(limit: Callable[..., gym.Env]) -> VecEnv:
    return DummyVecEnv([lambda: limit(StatefulWalk(), 6)] * 2)


@pytest.mark.parametrize(("limit", "other"), [(GYMNASIUMS, RL_ZOOS), (RL_ZOOS, GYMNASIUMS)])
def test_the_time_limit_may_be_gymnasiums_or_rl_zoos(limit: type, other: type) -> None:
    states = environment_states(make_rdqn(limited(limit)).learn(61).env)
    assert states is not None and [name for name, _ in states[0]] == ["TimeLimit", "StatefulWalk"]
    assert set_environment_states(env := limited(other), states)
    assert environment_states(env) == states


def test_a_wrapper_that_is_only_called_so_is_not_known() -> None:
    assert environment_states(limited(OWN)) is None


def unrelated(self: StatefulWalk, positions: Any, velocities: Any) -> None:
    """As MuJoCo's ``set_state``."""


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("cls", "set_state", "sentence"),
    [
        (
            Walk,
            StatefulWalk.set_state,
            r"states of \[\[.*'StatefulWalk'\], .*, but env has none that can be set: all begin new",
        ),
        (StatefulWalk, lambda self, state: None, r"of environment 0 \(StatefulWalk\) does not restore what .* returned: all"),
        (StatefulWalk, unrelated, r"returned \(TypeError: unrelated\(\) missing 1 required .*\): all begin new episodes"),
    ],
)
def test_a_state_that_is_not_taken_begins_new_episodes(
    cls: type[Walk], set_state: Any, sentence: str, algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ALGORITHMS[algorithm](DummyVecEnv([StatefulWalk] * 2)).learn(70, SaveCheckpoints(tmp_path, save_freq=60))
    first = load(tmp_path, DummyVecEnv([StatefulWalk] * 2), type(model)).replay_buffer.pos
    monkeypatch.setattr(StatefulWalk, "set_state", set_state)
    found = []
    for _ in range(2):
        with pytest.warns(UserWarning, match=sentence):
            resumed = load(tmp_path, DummyVecEnv([cls] * 2), type(model)).learn(40, reset_num_timesteps=False)
        found.append(everything(resumed))
        assert not resumed.replay_buffer.episode_steps[first, np.arange(len(first))].any()
    assert_equal(*found)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("name", "what"), [("set_state", "does not restore .*; make"), ("get_state", "raised TypeError: .*; make")]
)
def test_methods_that_are_unrelated_end_training_at_its_start(
    name: str, what: str, algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StatefulWalk, name, unrelated)
    model = ALGORITHMS[algorithm](make_env(normalized=False))
    with pytest.raises(ValueError, match=rf"{name}\(\) of environment 0 \(StatefulWalk\) {what}"):
        model.learn(60, SaveCheckpoints(tmp_path, save_freq=1000))
    assert model.num_timesteps == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ["get_state", "set_state"])
def test_what_fails_later_costs_only_the_episodes(
    name: str, algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the checkpoint on Ctrl-C is written."""
    model = ALGORITHMS[algorithm](make_env(normalized=False))
    last = 56 if algorithm == "RecurrentDQN" else 60

    def interrupt(*_: Any) -> bool:
        if model.num_timesteps == 30:
            monkeypatch.setattr(StatefulWalk, name, unrelated if name == "set_state" else lambda self: {1, 2})
        return model.num_timesteps != 54 or signal.raise_signal(signal.SIGINT) is None

    sentence = f"all environments begin new episodes at step (40|{last}): .et_state"
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match=sentence):
        model.learn(100, [ConvertCallback(interrupt), SaveCheckpoints(tmp_path, save_freq=40)])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_40", f"checkpoint_{last}"]
    for path in checkpoints(tmp_path):
        assert not (path / "episodes.json").exists()
        load(path, make_env(seed=5, normalized=False), type(model)).learn(8, reset_num_timesteps=False)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_state_that_is_not_plain_data_ends_training_at_its_start(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StatefulWalk, "get_state", lambda self: {"rng": self.np_random})
    model = ALGORITHMS[algorithm](make_env(normalized=False))
    with pytest.raises(ValueError, match=r"get_state\(\) of environment 0 \(StatefulWalk\) has a Generator, but a checkpoint"):
        model.learn(60, SaveCheckpoints(tmp_path, save_freq=1000))
    assert model.num_timesteps == 0
