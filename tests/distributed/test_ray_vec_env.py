"""RayVecEnv against SB3's DummyVecEnv, which does the same in one process."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

ray = pytest.importorskip("ray")

from sb3_attn.distributed import RayVecEnv

PIXELS = spaces.Box(0, 255, (3, 40, 40), np.uint8)
VECTOR = spaces.Box(-1, 1, (2,), np.float32)
SPACES = {
    "box": VECTOR,
    "discrete": spaces.Discrete(5),
    "dict": spaces.Dict(pixels=PIXELS, vector=VECTOR),
    "tuple": spaces.Tuple((PIXELS, VECTOR)),
    "large": spaces.Box(0, 255, (200, 200, 3), np.uint8),  # Ray sends it through shared memory
}


class Random(gym.Env):
    """Episodes of random length whose observations, rewards and infos are random too."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, space: str = "box", index: int = 0) -> None:
        self.observation_space, self.index, self.render_mode = deepcopy(SPACES[space]), index, "rgb_array"
        self.unsendable = threading.Lock()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample(), {"options": options, "mark": self.np_random.random(2)}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action *= 0.5  # environments may write to it
        terminated, truncated = self.np_random.random(2) < 0.1
        info = {"mark": self.np_random.random(2), "action": action}
        return self.observation_space.sample(), float(action.sum()), bool(terminated), bool(truncated), info

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.index, np.uint8)

    def process(self) -> int:
        return os.getpid()

    def scaled(self, array: np.ndarray, name: float = 1.0) -> np.ndarray:
        array[0] = 5  # arguments may be written to, too
        return array * name + self.index


class Faulty(Random):
    def __init__(self, index: int, faulty: str = "") -> None:
        super().__init__(index=index)
        if faulty == "init":
            raise ValueError("no licence")

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.index == 2:
            raise ZeroDivisionError("the simulator failed")
        return super().step(action)

    def close(self) -> None:
        raise RuntimeError("already closed")


def env_fns(space: str = "box", n_envs: int = 5) -> list[Callable[[], gym.Env]]:
    return [partial(Random, space, index) for index in range(n_envs)]


@contextmanager
def opened(fns: list[Callable[[], gym.Env]], envs_per_actor: int = 2) -> Iterator[RayVecEnv]:
    env = RayVecEnv(fns, envs_per_actor, cpus_per_actor=0.1)
    try:
        yield env
    finally:
        env.close()


@pytest.fixture(scope="module")
def env(cluster: None) -> Iterator[RayVecEnv]:
    with opened(env_fns()) as env:
        yield env


def assert_equal(ours: Any, theirs: Any) -> None:
    """Equal in value and type, and writeable."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_equal(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_equal(our, their)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype and ours.flags.writeable
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert type(ours) is type(theirs) and ours == theirs


def assert_same_course(ours: VecEnv, theirs: VecEnv, steps: int) -> int:
    """Take the same steps in both; returns how many episodes ended."""
    n_ends = 0
    for env in (ours, theirs):
        env.seed(7)
        env.set_options([{"level": index} for index in range(env.num_envs)])
    assert_equal(ours.reset(), theirs.reset())
    assert_equal(ours.reset_infos, theirs.reset_infos)
    ours.action_space.seed(0)
    for _ in range(steps):
        actions = np.stack([ours.action_space.sample() for _ in range(ours.num_envs)])
        result, expected = ours.step(actions.copy()), theirs.step(actions.copy())
        assert_equal(result, expected)
        assert_equal(ours.reset_infos, theirs.reset_infos)
        n_ends += expected[2].sum()
    assert_equal(ours.reset(), theirs.reset())  # neither seeds nor options any more
    assert_equal(ours.reset_infos, theirs.reset_infos)
    return n_ends


@pytest.mark.ray
@pytest.mark.parametrize(("space", "envs_per_actor"), [("box", 1), ("box", 9), *((space, 2) for space in SPACES)])
def test_actors_return_what_a_dummy_vec_env_returns(space: str, envs_per_actor: int, cluster: None) -> None:
    with opened(env_fns(space), envs_per_actor) as env:
        assert assert_same_course(env, DummyVecEnv(env_fns(space)), steps=60) > 20


@pytest.mark.ray
def test_truncations_are_reported_as_in_one_process(cluster: None) -> None:
    fns = [partial(gym.make, "CartPole-v1", max_episode_steps=12) for _ in range(3)]
    with opened(fns) as env:
        assert assert_same_course(env, DummyVecEnv(fns), steps=200) > 20
        env.seed(0)
        env.reset()
        infos = [info for step in range(30) for info in env.step(np.full(3, step % 2))[3]]
    assert any(info["TimeLimit.truncated"] and "terminal_observation" in info for info in infos)


@pytest.mark.ray
@pytest.mark.parametrize("indices", [None, 3, -1, [4, 0, 3], range(1, 4), []])
def test_attributes_and_methods_in_the_order_of_the_indices(indices: Any, env: RayVecEnv) -> None:
    ours, theirs = env, DummyVecEnv(env_fns())
    for vec_env in (ours, theirs):
        vec_env.set_attr("mark", np.arange(2), indices)
    assert_equal(ours.get_attr("mark", indices), theirs.get_attr("mark", indices))
    assert_equal(ours.get_attr("index", indices), theirs.get_attr("index", indices))
    arguments = dict(name=2.0, indices=indices)  # a name that our own methods use too
    expected = theirs.env_method("scaled", np.ones(2), **arguments)
    assert_equal(ours.env_method("scaled", np.ones(2), **arguments), expected)
    assert ours.env_is_wrapped(Monitor, indices) == theirs.env_is_wrapped(Monitor, indices)


@pytest.mark.ray
def test_attributes_that_are_missing_or_cannot_be_sent(env: RayVecEnv) -> None:
    assert env.has_attr("unsendable") and env.has_attr("index") and not env.has_attr("missing")
    with pytest.raises(AttributeError, match=r"missing.*raised in the actor of environments \[0, 1\]"):
        env.get_attr("missing")
    with pytest.raises(RuntimeError, match=r"lock.*raised in the actor of environments \[2, 3\]"):
        env.get_attr("unsendable", [2])
    with pytest.raises(IndexError):
        env.get_attr("index", [5])


@pytest.mark.ray
def test_env_is_wrapped_finds_wrappers_in_actors(cluster: None) -> None:
    with opened([Random, lambda: Monitor(Random())], envs_per_actor=1) as env:
        assert env.env_is_wrapped(Monitor) == [False, True]


@pytest.mark.ray
def test_images_are_those_of_the_environments(env: RayVecEnv) -> None:
    assert env.render_mode == "rgb_array"
    assert_equal(list(env.get_images()), [np.full((4, 4, 3), index, np.uint8) for index in range(5)])
    assert_equal(env.render(), DummyVecEnv(env_fns()).render())
    with opened([partial(gym.make, "CartPole-v1")]) as blind, pytest.warns(UserWarning, match="render mode is None"):
        assert blind.get_images() == [None]


@pytest.mark.ray
def test_actors_compute_on_one_thread(cluster: None) -> None:
    def threads() -> gym.Env:
        env = Random()
        env.threads = os.environ["OMP_NUM_THREADS"]
        return env

    with opened([threads]) as env:
        assert env.get_attr("threads") == ["1"]


@pytest.mark.ray
def test_an_error_names_environments_and_cause(cluster: None) -> None:
    fns = [partial(Faulty, index) for index in range(4)]
    with opened(fns) as env:
        env.reset()
        with pytest.raises(RuntimeError, match=r"ZeroDivisionError\('the simulator failed'\).*environments \[2, 3\]"):
            env.step(np.zeros((4, 2), np.float32))
        env.reset()  # the actor is still there
    with pytest.raises(RuntimeError, match=r"ValueError\('no licence'\) was raised in the actor of environments \[4\]"):
        RayVecEnv([*fns, partial(Faulty, 4, "init")], 2, cpus_per_actor=0.1)


@pytest.mark.ray
def test_the_death_of_an_actor_is_reported_and_close_still_works(cluster: None) -> None:
    with opened(env_fns(n_envs=4)) as env:
        env.reset()
        (process,) = env.env_method("process", indices=2)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"(?s)actor of environments \[2, 3\] died .*close this RayVecEnv"):
            env.step(np.zeros((4, 2), np.float32))
        env.close()
        env.close()


@pytest.mark.ray
def test_closing_in_the_middle_of_a_step_and_twice(cluster: None) -> None:
    with opened(env_fns()) as env:
        env.reset()
        env.step_async(np.zeros((5, 2), np.float32))
    with pytest.raises(RuntimeError, match="died"):
        env.reset()
    assert ray.is_initialized(), "the cluster was there before"


@pytest.mark.ray
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_an_algorithm_trains_on_it(algorithm: type, cluster: None) -> None:
    arguments = dict(cpus_per_actor=0.1, envs_per_actor=2)
    env = make_vec_env("CartPole-v1", n_envs=4, seed=1, vec_env_cls=RayVecEnv, vec_env_kwargs=arguments)
    reference = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    kwargs = dict(n_steps=32, batch_size=64) if algorithm is PPO else dict(learning_starts=50, train_freq=4)
    weights = []
    for vec_env in (env, reference):
        model = algorithm("MlpPolicy", VecNormalize(vec_env), seed=3, device="cpu", **kwargs).learn(256)
        weights.append([parameter.detach().numpy() for parameter in model.policy.parameters()])
        vec_env.close()
    assert_equal(*weights)


@pytest.mark.ray
def test_more_actors_than_cpus_are_refused_at_once(cluster: None) -> None:
    with pytest.raises(ValueError, match=r"1000 actors with cpus_per_actor=1 need 1000 CPUs, and the Ray cluster at .* has"):
        RayVecEnv(env_fns(n_envs=1000))


@pytest.mark.ray
def test_without_a_cluster_one_is_started_and_ended(tmp_path: Path) -> None:
    # In a process of its own, since here there is one
    script = tmp_path / "script.py"
    script.write_text(
        "import gymnasium, ray\n"
        "from sb3_attn.distributed import RayVecEnv\n"
        "env = RayVecEnv([lambda: gymnasium.make('CartPole-v1')] * 2, envs_per_actor=2)\n"
        "assert env.reset().shape == (2, 4)\n"
        "env.close()\n"
        "assert not ray.is_initialized()\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, timeout=300)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"env_fns=\[\] has no environment; give"):
        RayVecEnv([])
    with pytest.raises(ValueError, match="envs_per_actor=0 must be positive; give"):
        RayVecEnv(env_fns(), envs_per_actor=0)
    with pytest.raises(ValueError, match="cpus_per_actor=-1 must not be negative; give"):
        RayVecEnv(env_fns(), cpus_per_actor=-1)


def test_an_environment_that_cannot_be_sent_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"env_fns\[1\] cannot be sent to an actor \(.*lock.*\); create"):
        RayVecEnv([Random, lambda: Random(index=lock)])
