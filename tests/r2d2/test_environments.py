"""The ``env`` argument, and copies of environments."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

import sb3_attn.envs  # noqa: F401  registers the tasks
from sb3_attn.r2d2.environments import PickledEnv, env_fns_of, to_vec_env
from tests.helpers.actors import make_actor
from tests.helpers.environments import Walk
from tests.helpers.models import assert_same, make_r2d2, parameters


@pytest.mark.parametrize(
    ("env", "n_envs", "expected"),
    [
        ("CartPole-v1", None, 8),
        ("CartPole-v1", 3, 3),
        (Walk, None, 8),
        (partial(Walk, longest=4), 2, 2),
        (Walk(), 3, 3),
        (Monitor(Walk()), 2, 2),
        (DummyVecEnv([Walk] * 2), None, 2),
        (DummyVecEnv([Walk] * 2), 2, 2),
    ],
    ids=lambda value: str(value).partition(" object at")[0],  # every process has other addresses
)
def test_the_number_of_environments(env: Any, n_envs: int | None, expected: int) -> None:
    assert to_vec_env(env, n_envs).num_envs == expected


def test_environments_are_used_as_they_are() -> None:
    env, vec = Walk(), DummyVecEnv([Walk])
    assert to_vec_env(env, None) is env and to_vec_env(env, 1) is env
    assert to_vec_env(vec, None) is vec
    assert to_vec_env(None, None) is None and to_vec_env(None, 3) is None


def test_a_number_that_contradicts_the_environments_is_refused() -> None:
    with pytest.raises(ValueError, match="envs_per_actor=3, but env has 2 environments; make both the same"):
        make_r2d2(DummyVecEnv([Walk] * 2), envs_per_actor=3)


def test_an_id_works_in_processes_that_have_not_registered_it() -> None:
    gym.register("R2D2Toys/Walk-v0", Walk, kwargs=dict(longest=5), max_episode_steps=3)
    try:
        factory = cloudpickle.dumps(env_fns_of(to_vec_env("R2D2Toys/Walk-v0", 2))[0])
    finally:
        del gym.registry["R2D2Toys/Walk-v0"]
    env = cloudpickle.loads(factory)()
    assert env.unwrapped.longest == 5 and env.spec.max_episode_steps == 3


def test_an_id_may_name_the_module_that_registers_it() -> None:
    assert getattr(to_vec_env("sb3_attn.envs:MemoryChain-v0", 2), "num_envs", None) == 2


def test_environments_of_a_factory_are_monitored() -> None:
    env = to_vec_env(Walk, 2)
    assert all(isinstance(e, Monitor) for e in env.envs)
    assert env_fns_of(env) == [Walk] * env.num_envs


@pytest.mark.parametrize("n_actors", [0, 2])
@pytest.mark.parametrize(
    "env",
    ["CartPole-v1", Walk, partial(Walk, longest=4), Walk(), DummyVecEnv([Walk] * 2)],
    ids=lambda env: type(env).__name__,
)
def test_r2d2_accepts_every_kind_of_env(env: Any, n_actors: int) -> None:
    n_envs = None if isinstance(env, gym.Env | DummyVecEnv) else 2
    model = make_r2d2(env, n_actors=n_actors, envs_per_actor=n_envs, learning_starts=4).learn(40)
    assert model._n_updates > 0 and model.replay_buffer.n_envs == model.n_envs * max(n_actors, 1)


# ---------------------------------------------------------------- copies


def test_a_copy_is_independent_of_the_original() -> None:
    env = Walk()
    env.reset(seed=1)
    copies = [PickledEnv(env)(), PickledEnv(env)()]
    course = [env.step(1)[0] for _ in range(2)]
    for copy in copies:
        assert copy is not env
        np.testing.assert_array_equal([copy.step(1)[0] for _ in range(2)], course)
    assert env.steps == 2


def test_a_factory_makes_many_copies_from_one_pickle() -> None:
    env = Walk()
    factory = PickledEnv(env)
    env.longest = 99
    first, second = factory(), factory()
    assert first is not second and first.longest == second.longest == 8


class Doubled(gym.RewardWrapper):
    def reward(self, reward: Any) -> float:
        return 2 * float(reward)


@pytest.mark.parametrize("wrapper", [None, Doubled])
def test_a_copy_of_a_monitor_has_no_file(wrapper: Any, tmp_path: Path) -> None:
    """Environments as RL Zoo creates them; the original keeps its file."""
    vec = make_vec_env(Walk, 2, seed=0, monitor_dir=str(tmp_path), wrapper_class=wrapper)
    copy = env_fns_of(vec)[0]()
    monitor = copy.env if wrapper else copy
    assert isinstance(copy, Doubled) == bool(wrapper)
    assert isinstance(monitor, Monitor) and monitor.results_writer is None
    assert vec.envs[0].get_wrapper_attr("results_writer") is not None
    vec.close()


@pytest.mark.parametrize("n_actors", [0, 1, 2])
def test_the_files_of_monitors_have_all_episodes_of_all_actors(n_actors: int, tmp_path: Path) -> None:
    """Each episode is in the file of the environment that the actor's is a copy of."""
    vec = make_vec_env(Walk, 2, seed=0, monitor_dir=str(tmp_path))
    model = make_r2d2(vec, n_actors=n_actors).learn(80)
    vec.close()
    env_indices = range(model.n_replay_envs)
    ends = [model.replay_buffer.dones[: model.replay_buffer.pos[env_index], env_index] for env_index in env_indices]
    episodes = sorted((info["l"], info["r"]) for info in model.ep_info_buffer)
    written = []
    for k in range(2):
        rows = (tmp_path / f"{k}.monitor.csv").read_text().splitlines()[2:]
        assert len(rows) == sum(int(ends[env_index].sum()) for env_index in env_indices if env_index % 2 == k)
        written += [(int(row.split(",")[1]), float(row.split(",")[0])) for row in rows]
    assert sorted(written) == episodes and len(episodes) > 5


def test_an_environment_that_is_monitored_is_not_monitored_twice(tmp_path: Path) -> None:
    model = make_r2d2(make_vec_env(Walk, 2), n_actors=1)
    monitored = make_actor(model).env.envs[0].env
    assert isinstance(monitored, Monitor) and not isinstance(monitored.env, Monitor)
    bare = make_actor(make_r2d2(DummyVecEnv([Walk]), n_actors=1)).env.envs[0].env
    assert isinstance(bare, Monitor) and isinstance(bare.env, Walk)


def test_environments_that_differ_stay_different_in_the_actors() -> None:
    model = make_r2d2(DummyVecEnv([partial(Walk, longest=3), partial(Walk, longest=50)]), n_actors=1)
    assert make_actor(model).env.get_attr("longest") == [3, 50]


@pytest.mark.parametrize("as_factory", [True, False])
@pytest.mark.parametrize("n_actors", [0, 1])
def test_a_monitor_inside_a_wrapper_is_the_one_that_counts(n_actors: int, as_factory: bool) -> None:
    env = (lambda: Doubled(Monitor(Walk()))) if as_factory else make_vec_env(Walk, 1, wrapper_class=Doubled)
    model = make_r2d2(env, envs_per_actor=1, n_actors=n_actors).learn(40)
    end = int(np.flatnonzero(model.replay_buffer.dones[:, 0])[0])
    assert model.ep_info_buffer is not None
    assert model.ep_info_buffer[0]["r"] == pytest.approx(model.replay_buffer.rewards[: end + 1, 0].sum() / 2, abs=1e-4)


def test_the_learners_environments_are_not_touched_by_actors() -> None:
    vec = DummyVecEnv([Walk] * 2)
    model = make_r2d2(vec, n_actors=2)
    vec.reset()
    before = [env.np_random.bit_generator.state for env in vec.envs]
    make_actor(model).collect(30)
    assert [env.np_random.bit_generator.state for env in vec.envs] == before
    assert [env.steps for env in vec.envs] == [0, 0]


# ---------------------------------------------------------------- the learner's own


def test_environments_that_the_user_has_seeded_are_not_seeded_again() -> None:
    models = []
    for _ in range(2):
        set_random_seed(3)  # NumPy's and PyTorch's global state
        models.append(make_r2d2(make_vec_env(Walk, 2, seed=7), seed=None).learn(60))
    first, second = (model.replay_buffer for model in models)
    np.testing.assert_array_equal(first.observations, second.observations)
    np.testing.assert_array_equal(first.actions, second.actions)
    assert_same(parameters(models[0]), parameters(models[1]))
    expected = make_vec_env(Walk, 2, seed=7).reset()
    np.testing.assert_array_equal(first.observations[0], expected)


def test_the_options_of_the_first_reset_are_used() -> None:
    class Optional(Walk):
        def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
            result = super().reset(seed=seed)
            self.length = (options or {}).get("length", 3)
            return result

    env = DummyVecEnv([Optional])
    env.set_options({"length": 11})
    model = make_r2d2(env).learn(40)
    assert np.flatnonzero(model.replay_buffer.dones[:40, 0])[:2].tolist() == [10, 13]


def test_environments_that_may_not_be_reset_early() -> None:
    env = DummyVecEnv([lambda: Monitor(Walk(), allow_early_resets=False)] * 2)
    model = make_r2d2(env).learn(60)
    assert model.learn(60, reset_num_timesteps=False).num_timesteps == 120
    assert model.replay_buffer.pos.sum() == 120


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: VecNormalize(VecTransposeImage(env), norm_obs=False),
        partial(VecFrameStack, n_stack=2),
        lambda env: VecTransposeImage(VecFrameStack(env, 2, "last")),
    ],
    ids=["VecNormalize", "VecFrameStack", "VecFrameStack below VecTransposeImage"],
)
def test_wrappers_around_all_environments_are_for_the_learner_alone(wrap: Any) -> None:
    env = wrap(DummyVecEnv([partial(Walk, "image")]))
    name = type(env.venv if isinstance(env, VecTransposeImage) else env).__name__
    with pytest.raises(ValueError, match=f"env is a {name}, which belongs to this process, so actors cannot make their own"):
        make_r2d2(env, "CnnPolicy", n_actors=1)
    make_r2d2(env, "CnnPolicy", n_actors=0)


def test_subprocess_environments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"env is a SubprocVecEnv, .*; pass an id, a factory, or a DummyVecEnv"):
        env_fns_of(SubprocVecEnv.__new__(SubprocVecEnv))  # no processes need to be started for that


class Holding(Walk):
    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.thing = thing


def things(folder: Path) -> dict[str, Any]:
    return {"lock": threading.Lock(), "file": (folder / "log").open("w"), "generator": (x for x in "a")}


@pytest.mark.parametrize("name", ["lock", "file", "generator"])
@pytest.mark.parametrize("as_factory", [True, False])
def test_an_environment_that_cannot_be_sent_is_refused_with_the_reason(name: str, as_factory: bool, tmp_path: Path) -> None:
    held = things(tmp_path)
    env = partial(Holding, held[name]) if as_factory else DummyVecEnv([lambda: Holding(held[name])])
    try:
        with pytest.raises(
            ValueError, match=r"cannot be sent to actors: .*Error\(.*; pass an id, or a factory that opens files"
        ):
            make_r2d2(env, n_actors=1)
        make_r2d2(env, n_actors=0)  # the learner needs no copies
    finally:
        held["file"].close()


def test_an_environment_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env=.*Holding.* cannot be sent to actors: TypeError"):
        to_vec_env(Holding(threading.Lock()), 2)
