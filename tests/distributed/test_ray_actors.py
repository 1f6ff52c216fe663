"""R2D2 with its actors on Ray."""

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

ray = pytest.importorskip("ray")

from sb3_attn import R2D2, SaveCheckpoints
from sb3_attn.distributed.codec import pack, unpack
from sb3_attn.distributed.ray_actors import RemoteActor
from sb3_attn.r2d2.actor import Actor, copy_parameters
from sb3_attn.replay.observation_store import MASKS_KEY
from tests.helpers.models import assert_same, make_r2d2_on_ray, parameters


class Counting(gym.Env):
    """Episodes of 10 steps that observe their step; some fail, and files count how many have."""

    observation_space = spaces.Box(0, 10, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, failure: str = "", folder: str = "", limit: int = 0, ballast: Any = None) -> None:
        self.failure, self.folder, self.limit, self.ballast = failure, folder, limit, ballast
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        if self.n_steps == 5 and self.failure and self._may_fail():
            if self.failure == "raise":
                raise OSError("the simulator is gone")
            if self.failure == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
        return np.full(1, self.n_steps, np.float32), 1.0, self.n_steps == 10, False, {}

    def close(self) -> None:
        if self.failure == "":
            Path(self.folder, "closed").touch()

    def _may_fail(self) -> bool:
        failures = len(list(Path(self.folder).iterdir()))
        if failures < self.limit:
            Path(self.folder, f"failure-{failures}").touch()
        return failures < self.limit


class KillActor(BaseCallback):
    """Kills the process of an actor, and ends learning some time after its return."""

    killed, returned_at = False, None

    def _on_step(self) -> bool:
        assert isinstance(self.model, R2D2)
        if not self.killed and len(self.model.step_ledger.n_steps_sent) == 2:  # both have answered
            self.killed = True
            ray.kill(self.model._collection.actors.handles[0].remote, no_restart=False)  # type: ignore[attr-defined]
        if self.returned_at is None and self.model.step_ledger.n_restarts:
            self.returned_at = self.num_timesteps
        return self.returned_at is None or self.num_timesteps < self.returned_at + 2000


@pytest.mark.parametrize("per_env_epsilons", [True, pytest.param(False, marks=pytest.mark.ray)])
def test_the_learner_is_the_same_bit_for_bit_as_in_one_process(cluster: None, per_env_epsilons: bool) -> None:
    arguments = dict(per_env_epsilons=per_env_epsilons, actor_update_interval=20)
    expected = make_r2d2_on_ray(backend="sync", **arguments).learn(600)
    model = make_r2d2_on_ray(backend_kwargs=dict(deterministic=True, cpus_per_actor=0.5), **arguments).learn(600)
    assert model._n_updates == expected._n_updates > 5
    assert_same(parameters(model), parameters(expected))


@pytest.mark.ray
def test_actors_work_ahead_of_the_learner(cluster: None) -> None:
    model = make_r2d2_on_ray(n_actors=2, backend_kwargs=dict(cpus_per_actor=0.5), samples_per_insert=2).learn(2000)
    assert model.step_ledger.n_steps_inserted >= 2000
    assert sum(model.step_ledger.n_steps_rejected.values()) <= 2 * 2 * 2 * 10  # actors x calls x environments x steps
    assert model.n_windows_sampled == pytest.approx(2 * model.n_windows_inserted, rel=0.1)


@pytest.mark.ray
def test_actors_take_valid_actions_and_send_masks(cluster: None) -> None:
    model = make_r2d2_on_ray("CardOrder-v0").learn(600)
    replay = model.replay_buffer
    for env_index, n_steps in enumerate(replay.pos):
        masks = replay._observations.rings[MASKS_KEY][:n_steps, env_index]
        assert np.take_along_axis(masks, replay.actions[:n_steps, env_index], axis=-1).all()
        assert (~masks).any()


@pytest.mark.ray
def test_an_actor_that_is_killed_is_replaced(cluster: None) -> None:
    model = make_r2d2_on_ray(backend_kwargs=dict(cpus_per_actor=0.5), samples_per_insert=1)
    model.learn(10**6, callback=KillActor())
    assert model.step_ledger.n_restarts == 1
    assert model.num_timesteps < 10**6
    model.replay_buffer.check_valid()


@pytest.mark.ray
def test_a_process_that_dies_on_its_own_is_replaced(cluster: None, tmp_path: Path) -> None:
    env = partial(Counting, "die", str(tmp_path), 1, ballast=np.random.rand(50_000))  # too large to be sent in the call
    model = make_r2d2_on_ray(env, n_actors=1, backend_kwargs=dict(cpus_per_actor=0.5)).learn(400)
    assert Path(tmp_path, "failure-0").exists()
    model.replay_buffer.check_valid()


@pytest.mark.ray
def test_a_process_that_always_dies_ends_learning(cluster: None, tmp_path: Path) -> None:
    env = partial(Counting, "die", str(tmp_path), 100)
    model = make_r2d2_on_ray(env, n_actors=1, max_env_restarts=1, backend_kwargs=dict(cpus_per_actor=0.5))
    with pytest.raises(RuntimeError, match="actor 0 has died 3 times without an answer"):
        model.learn(400)


@pytest.mark.ray
def test_environments_are_closed_at_the_end(cluster: None, tmp_path: Path) -> None:
    make_r2d2_on_ray(partial(Counting, folder=str(tmp_path)), n_actors=1, backend_kwargs=dict(cpus_per_actor=0.5)).learn(100)
    assert Path(tmp_path, "closed").exists()


@pytest.mark.ray
def test_environments_that_raise_are_recreated(cluster: None, tmp_path: Path) -> None:
    env = partial(Counting, "raise", str(tmp_path), 3)
    model = make_r2d2_on_ray(env, n_actors=1, backend_kwargs=dict(cpus_per_actor=0.5)).learn(400)
    assert model.step_ledger.n_steps_rejected["the environment failed"] == 3
    assert model.step_ledger.n_restarts == 0


@pytest.mark.ray
def test_an_environment_that_raises_too_often_is_named(cluster: None, tmp_path: Path) -> None:
    env = partial(Counting, "raise", str(tmp_path), 100)
    model = make_r2d2_on_ray(env, n_actors=1, max_env_restarts=2, backend_kwargs=dict(cpus_per_actor=0.5))
    with pytest.raises(RuntimeError, match=r"actor 0 failed.*environment \d of actor 0 has failed.*the simulator is gone"):
        model.learn(400)


@pytest.mark.ray
def test_an_environment_that_hangs_is_ended(cluster: None, tmp_path: Path) -> None:
    env = partial(Counting, "hang", str(tmp_path), 1)
    model = make_r2d2_on_ray(env, n_actors=1, backend_kwargs=dict(cpus_per_actor=0.5, env_timeout=20.0)).learn(400)
    assert Path(tmp_path, "failure-0").exists()
    assert model.step_ledger.n_steps_inserted >= 400


@pytest.mark.ray
def test_an_environment_that_hangs_too_often_is_named(cluster: None, tmp_path: Path) -> None:
    env = partial(Counting, "hang", str(tmp_path), 100)
    model = make_r2d2_on_ray(env, n_actors=1, max_env_restarts=0, backend_kwargs=dict(cpus_per_actor=0.5, env_timeout=20.0))
    with pytest.raises(RuntimeError, match=r"(?s)environment \d of actor 0 has hung 1 times.*in step"):
        model.learn(400)


@pytest.mark.ray
def test_a_restarted_actor_does_not_act_as_before() -> None:
    spec = make_r2d2_on_ray(backend="sync", n_actors=1).actor_spec()
    first, again, restarted = Actor(spec, 0), Actor(spec, 0), Actor(spec, 0, is_restart=True)
    for actor in (again, restarted):
        actor.q_net.load_state_dict(first.q_net.state_dict())
    actions = [actor.collect(50).actions for actor in (first, again, restarted)]
    assert np.array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


def test_a_process_whose_first_call_is_a_later_one_is_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_r2d2_on_ray(backend="sync", n_actors=1).actor_spec()
    weights = copy_parameters(Actor(spec, 0).q_net, 0)
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    actions = []
    for n_calls_before in (0, 0, 2):
        actor = RemoteActor([cloudpickle.dumps(spec)], 0, f"sb3_attn-test-{os.getpid()}", env_timeout=100.0)  # type: ignore[list-item]
        actions.append(unpack(actor.collect(50, [weights], n_calls_before)).actions)  # type: ignore[list-item]
        actor.close()
    assert np.array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


@pytest.mark.ray
def test_more_actors_than_cpus_are_refused(cluster: None) -> None:
    with pytest.raises(ValueError, match="n_actors=1000 with cpus_per_actor=1 need 1000 CPUs"):
        make_r2d2_on_ray(n_actors=1000, envs_per_actor=1).learn(100)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(cpus=1), r"backend_kwargs has \['cpus'\]; backend='ray' takes"),
        (dict(calls_in_flight=0), "calls_in_flight=0; it must be positive"),
        (dict(env_timeout=-1.0), "env_timeout=-1.0; it must be positive"),
    ],
)
def test_bad_options_are_refused_in_the_constructor(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_r2d2_on_ray(backend_kwargs=kwargs)


@pytest.mark.ray
def test_evaluation_checkpoints_and_zips_work_on_ray(cluster: None, tmp_path: Path) -> None:
    model = make_r2d2_on_ray(backend_kwargs=dict(cpus_per_actor=0.5))
    evaluation = EvalCallback(make_vec_env("MemoryChain-v0"), eval_freq=200, n_eval_episodes=2, verbose=0)
    model.learn(1000, callback=[evaluation, CheckpointCallback(200, str(tmp_path))])
    assert evaluation.last_mean_reward > -np.inf
    assert model.num_timesteps >= 1000
    loaded = R2D2.load(next(tmp_path.glob("*.zip")), env=make_vec_env("MemoryChain-v0", 2))
    assert (loaded.n_actors, loaded.backend) == (2, "ray")
    loaded.learn(400)


@pytest.mark.ray
def test_a_checkpoint_can_be_resumed(cluster: None, tmp_path: Path) -> None:
    model = make_r2d2_on_ray(backend_kwargs=dict(cpus_per_actor=0.5))
    model.learn(600, SaveCheckpoints(tmp_path, save_freq=200))
    assert model.step_ledger.n_restarts == 0
    resumed = R2D2.load_checkpoint(tmp_path, make_vec_env("MemoryChain-v0", 2), device="cpu")
    n_before = resumed.num_timesteps
    assert 400 <= n_before <= 600
    resumed.learn(1000 - n_before, reset_num_timesteps=False)
    assert resumed.num_timesteps >= 1000
    resumed.replay_buffer.check_valid()


def test_packing_preserves_trajectories_and_shrinks_frames() -> None:
    spec = make_r2d2_on_ray(backend="sync", n_actors=1).actor_spec()
    trajectory = Actor(spec, 0).collect(20)
    back = unpack(pack(trajectory))
    for name, value in vars(trajectory).items():
        np.testing.assert_equal(getattr(back, name), value)
    frames = np.zeros((20, 2, 84, 84), np.uint8)
    frames[:, :, 40:44, 40:44] = 255
    trajectory.observations = {"observation": frames}
    assert len(pack(trajectory)) < frames.nbytes / 10


@pytest.mark.ray
def test_images_arrive_unchanged(cluster: None) -> None:
    model = make_r2d2_on_ray(
        "VisualSearch-v0", n_actors=1, policy="CnnPolicy", backend_kwargs=dict(cpus_per_actor=0.5, deterministic=True)
    )
    expected = make_r2d2_on_ray("VisualSearch-v0", n_actors=1, policy="CnnPolicy", backend="sync")
    for each in (model, expected):
        each.learn(200)
    assert np.array_equal(model.replay_buffer.observations, expected.replay_buffer.observations)
