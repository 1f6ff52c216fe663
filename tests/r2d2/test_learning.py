"""R2D2.learn(): how often it updates, from which windows, and reproducibly."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn import R2D2
from sb3_attn.common.exploration import ape_x_epsilons
from sb3_attn.r2d2.actor import Actor
from sb3_attn.r2d2.collection import Collection
from sb3_attn.r2d2.trajectory import Trajectory
from tests.helpers.environments import Walk, walks
from tests.helpers.models import assert_same, make_r2d2, parameters, prefer


def watch(model: R2D2, monkeypatch: pytest.MonkeyPatch) -> list[Trajectory]:
    """The trajectories that arrive from now on."""
    seen: list[Trajectory] = []
    insert = Collection.insert
    monkeypatch.setattr(Collection, "insert", lambda self, t, *args: seen.append(t) or insert(self, t, *args))
    return seen


# ---------------------------------------------------------------- random numbers


def test_the_learners_own_environments_are_one_actor() -> None:
    """Bit for bit: the environments' random numbers follow from the seeds, and all else is the same code."""
    alone, actor = (make_r2d2(Walk, envs_per_actor=3, n_actors=n).learn(150) for n in (0, 1))
    assert alone._n_updates > 20
    assert_same(parameters(alone), parameters(actor))
    np.testing.assert_array_equal(alone.replay_buffer.observations, actor.replay_buffer.observations)


def test_existing_environments_of_the_learner_are_one_actor() -> None:
    alone, actor = (make_r2d2(DummyVecEnv([Walk] * 2), n_actors=n).learn(100) for n in (0, 1))
    assert_same(parameters(alone), parameters(actor))


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_a_second_learn_has_new_random_numbers(reset_num_timesteps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_r2d2(n_actors=1, learning_starts=10**6)
    seen = watch(model, monkeypatch)
    model.learn(10).learn(10, reset_num_timesteps=reset_num_timesteps)
    assert len(seen) == 2
    assert not np.array_equal(seen[0].rewards, seen[1].rewards)
    assert not np.array_equal(seen[0].observations["observation"][0], seen[1].observations["observation"][0])
    assert seen[0].incarnation != seen[1].incarnation


def test_a_thread_can_learn() -> None:
    """In a thread Python cannot set signal handlers."""
    plain = make_r2d2(n_actors=1).learn(60)
    threaded = make_r2d2(n_actors=1)
    thread = threading.Thread(target=threaded.learn, args=(60,))
    thread.start()
    thread.join()
    assert threaded.num_timesteps == 60
    assert_same(parameters(threaded), parameters(plain))


# ---------------------------------------------------------------- how often


@pytest.mark.parametrize("n_actors", [0, 3])
@pytest.mark.parametrize("samples_per_insert", [0.5, 8])
def test_samples_per_insert_holds(samples_per_insert: float, n_actors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from outside: the windows sampled, and those added since learning started."""
    batch_size = int(4 * samples_per_insert)
    arguments = dict(samples_per_insert=samples_per_insert, batch_size=batch_size, learning_starts=100, buffer_size=3000)
    model = make_r2d2(n_actors=n_actors, **arguments)
    buffer, drawn, registered = model.replay_buffer, [], {}
    sample = buffer.sample
    monkeypatch.setattr(buffer, "sample", lambda n, **kwargs: drawn.append((model.num_timesteps, n)) or sample(n, **kwargs))

    class Note(BaseCallback):
        def _on_rollout_end(self) -> None:
            registered[self.num_timesteps] = buffer.n_windows_added

        def _on_step(self) -> bool:
            return True

    model.learn(700, Note())
    assert min(step for step, _ in drawn) > 100 and {n for _, n in drawn} == {batch_size}
    n_inserted = buffer.n_windows_added - registered[100]
    assert sum(n for _, n in drawn) == pytest.approx(samples_per_insert * n_inserted, rel=0.02)
    assert (model.n_windows_inserted, model.n_windows_sampled) == (n_inserted, batch_size * len(drawn))
    assert model._n_updates == len(drawn)


@pytest.mark.parametrize("lengths", [dict(), dict(trace_length=None, burn_in_length=0, sequence_period=None)], ids=str)
@pytest.mark.parametrize("n_actors", [0, 3])
def test_without_a_ratio_there_is_one_update_per_ten_steps(n_actors: int, lengths: dict[str, Any]) -> None:
    """As with RecurrentDQN's default. The trajectory with which learning starts counts in full."""
    model = make_r2d2(n_actors=n_actors, samples_per_insert=None, learning_starts=100, **lengths).learn(700)
    assert model._n_updates == (700 - 100) // 10
    model.learn(300, reset_num_timesteps=False)
    assert model._n_updates == (1000 - 100) // 10


def test_learning_waits_for_the_first_window() -> None:
    env = partial(Walk, longest=100)
    model = make_r2d2(env, envs_per_actor=1, n_actors=1, trace_length=20, sequence_period=20, learning_starts=0, seed=3)
    for _ in range(12):
        model.learn(5, reset_num_timesteps=False)  # each begins new episodes: windows of 5 steps, once it is left
    assert model.n_windows_inserted > 0 and model._n_updates > 0


def test_only_windows_that_were_drawn_count() -> None:
    model = make_r2d2(
        partial(Walk, longest=200),
        envs_per_actor=1,
        n_actors=1,
        trace_length=8,
        burn_in_length=0,
        sequence_period=None,
        buffer_size=8,
        rollout_length=12,
        learning_starts=0,
        target_update_interval=1,
    )
    model.learn(72)
    assert model.n_windows_sampled == model._n_updates * model.batch_size


@pytest.mark.parametrize("interval", [1, 7, 10])
@pytest.mark.parametrize("samples_per_insert", [1, 8])
def test_the_target_network_is_copied_every_so_many_updates(
    samples_per_insert: float, interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within one call of train() that has several of them to do."""
    arguments = dict(samples_per_insert=samples_per_insert, target_update_interval=interval, envs_per_actor=1)
    model = make_r2d2(**arguments)
    optimizer, step = model.policy.optimizer, model.policy.optimizer.step
    online, used = [parameters(model)["q_net.q_net.0.weight"]], []

    def note(*args: Any, **kwargs: Any) -> None:
        used.append(model.q_net_target.q_net[0].weight.clone())
        step(*args, **kwargs)
        online.append(model.q_net.q_net[0].weight.detach().clone())

    monkeypatch.setattr(optimizer, "step", note)
    model.learn(120 if samples_per_insert > 1 else 350)
    assert len(used) == model._n_updates > 2 * interval
    for i, target in enumerate(used):
        assert th.equal(target, online[i // interval * interval]), i


def test_soft_updates_of_the_target_network() -> None:
    model = make_r2d2(tau=0.25, target_update_interval=5, learning_starts=10**6).learn(20)
    before = parameters(model)
    model.n_windows_inserted = 5  # samples_per_insert=4 and batch_size=4, so 5 updates are due
    model.train(1, batch_size=4)
    after = parameters(model)
    assert model._n_updates == 5
    expected = 0.75 * before["q_net_target.q_net.0.weight"] + 0.25 * after["q_net.q_net.0.weight"]
    th.testing.assert_close(after["q_net_target.q_net.0.weight"], expected)


@pytest.mark.parametrize(("interval", "n_trajectories"), [(1, 1), (11, 2), (20, 2), (21, 3), (1000, 10**6)])
@pytest.mark.parametrize("n_actors", [0, 2])
def test_actors_are_updated_no_sooner_than_allowed(
    n_actors: int, interval: int, n_trajectories: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trajectory has 10 steps; ``n_trajectories`` is the number of them that are made with the same parameters."""
    model = make_r2d2(n_actors=n_actors, actor_update_interval=interval, learning_starts=0)
    seen = watch(model, monkeypatch)
    n_updates = []  # when each trajectory was requested
    insert = Collection.insert
    monkeypatch.setattr(Collection, "insert", lambda *args: n_updates.append(model._n_updates) or insert(*args))
    model.learn(100)
    for index in range(max(n_actors, 1)):
        own = [i for i, trajectory in enumerate(seen) if trajectory.actor == index]
        for j, i in enumerate(own):
            assert seen[i].version == n_updates[own[j - j % n_trajectories]]
    assert n_updates[-1] > 10


def test_copied_parameters_do_not_change() -> None:
    model = make_r2d2(n_actors=1).learn(40)
    latest_parameters = model._collection.actors.latest_parameters
    given = latest_parameters()
    assert given.version == model._n_updates > 0 and latest_parameters() is given
    before = {name: array.copy() for name, array in given.arrays.items()}
    model.learn(20, reset_num_timesteps=False)
    assert all(np.array_equal(array, before[name]) for name, array in given.arrays.items())
    newer = model._collection.actors.latest_parameters()
    assert newer.version == model._n_updates > given.version
    assert all(np.array_equal(array, model.q_net.state_dict()[name]) for name, array in newer.arrays.items())


def test_parameters_that_the_user_sets_between_two_calls_of_learn_are_used() -> None:
    model = make_r2d2(n_actors=1, learning_starts=10**6, actor_update_interval=1, policy_kwargs=dict(dueling=False))
    prefer(model, 1)
    model.learn(10)
    prefer(model, 2)
    model.learn(100, reset_num_timesteps=False)
    assert (model.replay_buffer.actions[5:, 1] == 2).mean() > 0.1


class SetParameters(BaseCallback):
    """Sets these parameters after so many steps."""

    def __init__(self, n_steps: int, parameters: dict[str, Any]) -> None:
        super().__init__()
        self.n_steps, self.parameters = n_steps, parameters

    def _on_step(self) -> bool:
        if self.num_timesteps == self.n_steps:
            self.model.set_parameters(self.parameters)
        return True


@pytest.mark.parametrize("n_actors", [0, 2])
def test_actors_get_the_parameters_that_a_callback_sets(n_actors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without an update, after which they would get new ones anyway. A trajectory has 10 steps."""
    loaded, load = [], Actor.load
    monkeypatch.setattr(Actor, "load", lambda self, given: loaded.append(given.arrays["q_net.0.weight"]) or load(self, given))
    model, other = (make_r2d2(n_actors=n_actors, learning_starts=10**6, seed=seed) for seed in range(2))
    before, after = (each.q_net.state_dict()["q_net.0.weight"].numpy().copy() for each in (model, other))
    model.learn(60, SetParameters(30, other.get_parameters()))
    np.testing.assert_array_equal(loaded, [before] * 3 + [after] * 3)


@pytest.mark.parametrize("n_actors", [0, 2])
def test_predict_explores_as_the_greediest_environment(n_actors: int) -> None:
    model = make_r2d2(n_actors=n_actors).learn(60)
    assert model.exploration_rate == model.exploration_schedule(1.0) == ape_x_epsilons(model.n_replay_envs)[-1]


FALLING = dict(per_env_epsilons=False, exploration_fraction=0.5, exploration_initial_eps=0.9, exploration_final_eps=0.1)


def watch_epsilons(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The epsilons with which trajectories begin from now on."""
    seen: list[np.ndarray] = []
    collect = Actor.collect
    monkeypatch.setattr(Actor, "collect", lambda self, n_steps: seen.append(self.epsilons) or collect(self, n_steps))
    return seen


@pytest.mark.parametrize("learning_starts", [0, 10**6], ids=["new parameters", "the same parameters"])
@pytest.mark.parametrize("n_actors", [0, 2])
def test_actors_explore_as_the_schedule_says(n_actors: int, learning_starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 steps, 10 in a trajectory: from 0.9 to 0.1 within the first 100. A second ``learn()`` begins at 0.9 again."""
    model = make_r2d2(n_actors=n_actors, learning_starts=learning_starts, **FALLING)
    seen = watch_epsilons(monkeypatch)
    expected = [max(0.9 - 0.08 * i, 0.1) for i in range(20)]
    for _ in range(2):
        seen.clear()
        model.learn(200)
        np.testing.assert_allclose(seen, np.repeat(expected, 2).reshape(20, 2))
        assert model.exploration_rate == pytest.approx(0.1)


def test_epsilons_fall_on_when_learning_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_r2d2(**FALLING).learn(100)
    seen = watch_epsilons(monkeypatch)
    model.learn(300, reset_num_timesteps=False)
    assert seen[0] == pytest.approx([0.9 - 0.8 * 0.25 / 0.5] * 2)  # a quarter of 400 steps


def test_epsilons_reach_actors_together_with_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch_epsilons(monkeypatch)
    make_r2d2(n_actors=1, actor_update_interval=11, **FALLING).learn(60)
    np.testing.assert_array_equal(seen[::2], seen[1::2])
    assert seen[0][0] > seen[2][0] > seen[4][0]


def test_a_common_epsilon_is_that_of_every_environment() -> None:
    arguments = dict(per_env_epsilons=False, exploration_initial_eps=0.3, exploration_final_eps=0.3, learning_starts=10**6)
    sizes = dict(n_actors=2, envs_per_actor=2, buffer_size=4000)
    model = make_r2d2(partial(Walk, n_actions=50), policy_kwargs=dict(dueling=False), **arguments, **sizes)
    prefer(model, 7)
    model.learn(4000)
    np.testing.assert_allclose((model.replay_buffer.actions != 7).mean(axis=0), 0.3 * 49 / 50, atol=0.05)


def test_actors_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_r2d2(n_actors=3, rollout_length=2)
    seen = watch(model, monkeypatch)
    model.learn(28)
    assert [trajectory.actor for trajectory in seen] == [0, 1, 2, 0, 1, 2, 0]
    assert all(trajectory.rewards.shape == (2, 2) for trajectory in seen)
    assert model.num_timesteps == 28


def test_the_last_trajectory_may_go_beyond_the_last_step() -> None:
    assert make_r2d2(n_actors=2).learn(41).num_timesteps == 50


@pytest.mark.parametrize("samples_per_insert", [4.0, None])
def test_another_ratio_after_loading_is_that_of_what_comes(samples_per_insert: float | None, tmp_path: Path) -> None:
    arguments = dict(samples_per_insert=1.0, batch_size=4, learning_starts=0)
    model = make_r2d2(walks(2), **arguments).learn(400)
    model.save(tmp_path / "model")
    loaded = R2D2.load(tmp_path / "model", env=walks(2), device="cpu", samples_per_insert=samples_per_insert)
    n_updates, n_windows = loaded._n_updates, loaded.n_windows_inserted
    loaded.learn(200, reset_num_timesteps=False)
    due = 20 if samples_per_insert is None else (loaded.n_windows_inserted - n_windows) * samples_per_insert / 4
    assert loaded._n_updates - n_updates == pytest.approx(due, abs=2)
