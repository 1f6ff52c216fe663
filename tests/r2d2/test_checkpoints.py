"""Checkpoints of R2D2: a run that is resumed equals the one that went on, bit for bit."""

import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_attn import R2D2, SaveCheckpoints
from sb3_attn.r2d2.actors import LocalActors
from sb3_attn.recurrent_dqn.checkpoints import checkpoints
from sb3_attn.recurrent_dqn.stopping import SIGNALS
from tests.helpers.environments import POLICIES, MaskedStatefulWalk, StatefulWalk, Walk, walks
from tests.helpers.models import make_r2d2
from tests.recurrent_dqn.test_checkpoints import assert_equal, everything

KINDS: dict[str, dict[str, Any]] = {
    "uniform": dict(prioritized_replay=False),
    "prioritized": {},
    "without a seed": dict(seed=None),
    "one schedule of epsilon": dict(per_env_epsilons=False, samples_per_insert=None),
    "returns scaled": dict(value_rescaling=False, reward_scaling=True, samples_per_insert=0.5),
}
COUNTERS = ("n_windows_inserted", "n_windows_sampled", "n_steps_since_start", "_episode_num")


def all_of(model: R2D2) -> dict[str, np.ndarray]:
    """All numbers that learning depends on, and those of the episodes in the logs."""
    episodes = [[info["r"], info["l"]] for info in model.ep_info_buffer]
    counters = [getattr(model, name) for name in COUNTERS]
    return everything(model) | {"counters": np.array(counters), "episodes": np.array(episodes)}


#: Environments that have get_state() and set_state(), so that their episodes go on, and others
ENVS = {"stateful": StatefulWalk, "masked": MaskedStatefulWalk, "walk": Walk}


def make_env(kind: str = "walk", normalized: bool = False, space: str = "vector") -> VecEnv:
    env = DummyVecEnv([partial(ENVS[kind], space)] * 2)
    return VecNormalize(env, norm_obs_keys=["a"] if space == "dict" else None) if normalized else env


def load(folder: Path, *args: Any, **kwargs: Any) -> R2D2:
    """Into environments that are elsewhere in their random streams, with other random generators."""
    np.random.rand(7), random.random(), th.rand(3)
    env = make_env(*args, **kwargs)
    env.seed(9)
    return R2D2.load_checkpoint(folder, env, device="cpu")


def go_on(model: R2D2, n_steps: int, folder: Path, save_freq: int = 40) -> R2D2:
    return model.learn(n_steps, SaveCheckpoints(folder, save_freq, keep_last=9), reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("kind", "n_actors", "env"),
    [
        *((kind, 2, "walk") for kind in KINDS),
        *((kind, 0, "walk") for kind in ("uniform", "without a seed")),
        *((kind, 2, "stateful") for kind in ("prioritized", "without a seed", "returns scaled")),
        *((kind, 0, "stateful") for kind in ("uniform", "without a seed")),
        *(("prioritized", n_actors, "masked") for n_actors in (0, 2)),
    ],
)
def test_a_resumed_run_equals_the_one_that_went_on(kind: str, n_actors: int, env: str, tmp_path: Path) -> None:
    """With trajectories of 10 steps, of which the actors' parameters last for 1 or 3; also one that is resumed twice."""
    kwargs = dict(actor_update_interval=30) | KINDS[kind]
    model = make_r2d2(make_env(env), n_actors=n_actors, **kwargs)
    model.learn(160, SaveCheckpoints(tmp_path, save_freq=40, keep_last=9))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_40", "checkpoint_80", "checkpoint_120"]
    assert all((path / "episodes.json").exists() == (env != "walk") for path in checkpoints(tmp_path))
    assert model.step_ledger.n_steps_inserted == 160 and model.step_ledger.n_restarts == 0
    expected = all_of(model)

    resumed = go_on(load(tmp_path / "checkpoint_80", env), 80, tmp_path / "again")
    assert resumed.step_ledger.n_steps_inserted == 80
    assert_equal(all_of(resumed), expected)
    resumed.replay_buffer.check_valid()
    again = load(tmp_path / "again" / "checkpoint_120", env)
    assert_equal(all_of(again.learn(40, reset_num_timesteps=False)), expected)


@pytest.mark.parametrize(("env", "space"), [("walk", "vector"), ("stateful", "vector"), ("stateful", "dict")])
def test_with_running_statistics(env: str, space: str, tmp_path: Path) -> None:
    model = make_r2d2(make_env(env, True, space), POLICIES[space]).learn(120, SaveCheckpoints(tmp_path, save_freq=60))
    expected = all_of(model)
    resumed = go_on(load(tmp_path / "checkpoint_60", env, True, space), 60, tmp_path / "again", 60)
    assert_equal(all_of(resumed), expected)
    assert model.get_vec_normalize_env().ret_rms.var == resumed.get_vec_normalize_env().ret_rms.var


@pytest.mark.parametrize("save_freq", [10, 40])
@pytest.mark.parametrize("n_actors", [0, 2])
def test_a_run_with_checkpoints_is_the_one_without(n_actors: int, save_freq: int, tmp_path: Path) -> None:
    """If actors get the newest parameters for each trajectory. At step 10 the second actor has not begun."""
    expected = all_of(make_r2d2(make_env("stateful"), n_actors=n_actors).learn(70))
    model = make_r2d2(make_env("stateful"), n_actors=n_actors)
    assert_equal(all_of(model.learn(70, SaveCheckpoints(tmp_path, save_freq, keep_last=9))), expected)
    resumed = load(tmp_path / f"checkpoint_{save_freq}", "stateful")
    assert_equal(all_of(resumed.learn(70 - save_freq, reset_num_timesteps=False)), expected)


@pytest.mark.parametrize("env", ["walk", "stateful"])
def test_each_actor_has_its_turn_however_often_checkpoints_are_written(env: str, tmp_path: Path) -> None:
    model = make_r2d2(make_env(env), n_actors=3).learn(90, SaveCheckpoints(tmp_path, save_freq=10))
    assert model.replay_buffer.pos.tolist() == [15] * 6
    expected = all_of(model)
    assert_equal(all_of(go_on(load(tmp_path / "checkpoint_70", env), 20, tmp_path / "again", 10)), expected)


@pytest.mark.parametrize(
    ("n_actors", "env", "seed"), [(0, "walk", 0), (0, "stateful", None), (2, "walk", 0), (2, "stateful", 0)]
)
def test_outside_of_learning(n_actors: int, env: str, seed: int | None, tmp_path: Path) -> None:
    """There the environments of actors are closed."""
    model = make_r2d2(make_env(env), n_actors=n_actors, seed=seed).learn(60)
    path = model.save_checkpoint(tmp_path)
    assert (path / "episodes.json").exists() == (n_actors == 0 and env == "stateful")
    expected = all_of(model.learn(60, reset_num_timesteps=False))
    if (path / "episodes.json").exists():
        path = load(path, env).save_checkpoint(tmp_path / "again")
    assert_equal(all_of(load(path, env).learn(60, reset_num_timesteps=False)), expected)


@pytest.mark.parametrize("n_actors", [0, 2])
@pytest.mark.parametrize("how", ["reset_num_timesteps", "set_env", "load_replay_buffer"])
def test_episodes_that_do_not_go_on(how: str, n_actors: int, tmp_path: Path) -> None:
    model = make_r2d2(make_env("stateful"), n_actors=n_actors).learn(70, SaveCheckpoints(tmp_path, save_freq=60))
    resumed = load(tmp_path, "stateful")
    if how == "set_env":
        resumed.set_env(make_env("stateful"))
    elif how == "load_replay_buffer":
        model.save_replay_buffer(tmp_path / "replay")
        resumed.load_replay_buffer(tmp_path / "replay")
    buffer, first = resumed.replay_buffer, resumed.replay_buffer.pos.copy()
    resumed.learn(40, reset_num_timesteps=how == "reset_num_timesteps")
    assert not buffer.episode_steps[first, np.arange(buffer.n_envs)].any()
    buffer.check_valid()


def test_all_begin_new_episodes_if_one_environment_does_not_take_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_r2d2(make_env("stateful"), n_actors=2).learn(70, SaveCheckpoints(tmp_path, save_freq=60))
    resumed, set_state, calls = load(tmp_path, "stateful"), StatefulWalk.set_state, iter(range(4))
    buffer, first = resumed.replay_buffer, resumed.replay_buffer.pos.copy()
    monkeypatch.setattr(StatefulWalk, "set_state", lambda self, state: set_state(self, state) if next(calls) < 3 else None)
    with pytest.warns(UserWarning, match=r"of environment 1 \(StatefulWalk\) does not restore .*: all begin new episodes"):
        resumed.learn(40, reset_num_timesteps=False)
    assert not buffer.episode_steps[first, np.arange(buffer.n_envs)].any()


@pytest.mark.parametrize("n_actors", [0, 2])
def test_other_environments_are_refused(n_actors: int, tmp_path: Path) -> None:
    make_r2d2(make_env("stateful"), n_actors=n_actors).learn(70, SaveCheckpoints(tmp_path, save_freq=60))
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(StatefulWalk(), 6)] * 2)
    refused = r"states of \[\[.*'StatefulWalk'\], .*, but env has .*'TimeLimit', .*; give env"
    if n_actors == 0:
        with pytest.raises(ValueError, match=refused):
            R2D2.load_checkpoint(tmp_path, env, device="cpu")
        return
    model = R2D2.load_checkpoint(tmp_path, env, device="cpu")
    for _ in range(2):  # not only once
        with pytest.raises(ValueError, match=refused):
            model.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("n_actors", [0, 2])
def test_a_checkpoint_of_what_was_just_loaded_is_the_same(n_actors: int, tmp_path: Path) -> None:
    make_r2d2(make_env("stateful"), n_actors=n_actors).learn(70, SaveCheckpoints(tmp_path / "first", save_freq=60))
    (first,) = checkpoints(tmp_path / "first")
    second = load(first, "stateful").save_checkpoint(tmp_path / "second")
    assert (second / "episodes.json").read_text() == (first / "episodes.json").read_text()


class LeaveOut(BaseCallback):
    """Restores one part of the actors right after the checkpoint at step 60."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def _on_rollout_start(self) -> None:
        actors = self.model._collection.actors
        assert isinstance(actors, LocalActors)
        if self.model.num_timesteps != 60:
            return
        if self.part == "streams":
            actors.actors[0].rng = np.random.default_rng(0)
        elif self.part == "environments":
            actors.actors[0].env.seed(0)
        elif self.part == "turn":
            actors._next = 1
        elif self.part == "schedule":
            actors._schedule._n_steps[0] = 0
        else:
            setattr(self.model, self.part, 1)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("part", ["streams", "environments", "turn", "schedule", "n_windows_inserted", "n_windows_sampled"])
def test_every_part_matters(part: str, tmp_path: Path) -> None:
    model = make_r2d2(walks(2), n_actors=2, actor_update_interval=30)
    model.learn(120, [SaveCheckpoints(tmp_path, save_freq=60), LeaveOut(part)])
    resumed = load(tmp_path / "checkpoint_60")
    resumed.learn(60, SaveCheckpoints(tmp_path / "again", save_freq=60), reset_num_timesteps=False)
    found, expected = everything(resumed), everything(model)
    assert any(not np.array_equal(found[name], expected[name]) for name in expected if name.startswith("policy"))


@pytest.mark.parametrize(
    ("number", "n_actors", "env"), [*zip(SIGNALS, (0, 1, 2), ("stateful", "walk", "stateful"), strict=True)]
)
def test_an_interrupted_run_resumes_where_it_was(number: signal.Signals, n_actors: int, env: str, tmp_path: Path) -> None:
    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 54:
                signal.raise_signal(number)
            return True

    with pytest.raises(KeyboardInterrupt):
        make_r2d2(make_env(env), n_actors=n_actors).learn(200, [Interrupt(), SaveCheckpoints(tmp_path, save_freq=1000)])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_60"]
    assert (tmp_path / "checkpoint_60" / "episodes.json").exists() == (env == "stateful")
    resumed = load(tmp_path, env)
    assert resumed.learn(140, reset_num_timesteps=False).num_timesteps == 200
    assert resumed.step_ledger.n_steps_inserted == 140
    resumed.replay_buffer.check_valid()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConnectionError])
def test_no_episode_goes_on_from_the_middle_of_a_trajectory(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning is ended by an environment that fails, or by Ctrl-C that also ends a process which the environment needs."""
    n_steps = iter(range(100))

    def step(self: StatefulWalk, action: Any) -> Any:
        if next(n_steps) == 47:
            if error is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            raise ConnectionError
        return Walk.step(self, action)

    model = make_r2d2(make_env("stateful")).learn(20)
    monkeypatch.setattr(StatefulWalk, "step", step)
    with pytest.raises(error):
        go_on(model, 100, tmp_path, 1000)
    monkeypatch.undo()
    path = tmp_path / "checkpoint_60" if error is KeyboardInterrupt else model.save_checkpoint(tmp_path)
    assert path.exists() and not (path / "episodes.json").exists()
    load(path, "stateful").learn(20, reset_num_timesteps=False).replay_buffer.check_valid()


def test_a_plain_zip_keeps_no_seed_of_a_checkpoint(tmp_path: Path) -> None:
    """Loaded twice with other seeds, it explores differently."""
    model = make_r2d2(walks(2)).learn(60, SaveCheckpoints(tmp_path, save_freq=20))
    model.save(tmp_path / "model")
    first, second = (R2D2.load(tmp_path / "model", walks(2), device="cpu", seed=seed) for seed in (1, 2))
    assert first.actor_spec().seed != second.actor_spec().seed
