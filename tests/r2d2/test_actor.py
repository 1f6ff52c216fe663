"""The steps that an actor takes and sends, against plain loops."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn.common.exploration import ape_x_epsilons
from sb3_attn.r2d2.actor import CARRIED, Actor, copy_parameters
from sb3_attn.r2d2.trajectory import Trajectory
from tests.helpers.actors import as_dict, follow_actor, make_actor, think
from tests.helpers.environments import POLICIES, MaskedStatefulWalk, Walk, counters
from tests.helpers.models import make_r2d2, prefer

BARE = dict(policy_kwargs=dict(dueling=False))


def stored(kind: str, observation: Any) -> dict[str, np.ndarray]:
    """An observation as the replay and the network have it, with the channels of images first."""
    arrays = {key: np.asarray(value) for key, value in as_dict(observation).items()}
    return {key: array.transpose(2, 0, 1) if kind == "image" else array for key, array in arrays.items()}


def assert_same_arrays(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


@pytest.mark.parametrize("kind", POLICIES)
def test_steps_are_those_of_a_plain_loop(kind: str) -> None:
    env = partial(Walk, kind)
    actor = make_actor(make_r2d2(env, POLICIES[kind], n_actors=2, envs_per_actor=3), index=1)
    trajectories = [actor.collect(7) for _ in range(2)]
    courses = follow_actor(actor, trajectories, env)
    for i, trajectory in enumerate(trajectories):
        finals = []
        for t in range(7):
            for k, steps in enumerate(courses):
                step = steps[7 * i + t]
                observations = {key: array[t, k] for key, array in trajectory.observations.items()}
                assert_same_arrays(observations, stored(kind, step.obs))
                assert trajectory.rewards[t, k] == np.float32(step.reward)
                assert trajectory.dones[t, k] == (step.terminated or step.truncated)
                assert trajectory.timeouts[t, k] == step.truncated
                assert trajectory.episode_starts[t, k] == step.is_first
                if step.truncated:
                    finals.append(stored(kind, step.next_obs))
        assert len(finals) == len(trajectory.final_observations) > 0
        for observations, final in zip(trajectory.final_observations, finals, strict=True):
            assert_same_arrays(observations, final)
        assert trajectory.valid.all()
    assert_same_arrays(trajectories[0].next_observations, {k: a[0] for k, a in trajectories[1].observations.items()})


def test_the_steps_of_a_trajectory_are_those_of_a_vec_env() -> None:
    """Observations after each step, and the Monitor's info where episodes ended."""
    actor = make_actor(make_r2d2(n_actors=1))
    first, second = actor.collect(9), actor.collect(9)
    courses = follow_actor(actor, [first, second])
    for t, (new_obs, rewards, dones, infos) in enumerate(first.steps(is_dict=False)):
        np.testing.assert_array_equal(new_obs, [steps[t + 1].obs for steps in courses])
        np.testing.assert_array_equal(rewards, first.rewards[t])
        for k, info in enumerate(infos):
            assert ("episode" in info) == dones[k]
            if dones[k]:
                length = 1 + next(i for i in range(t + 1) if courses[k][t - i].is_first)
                assert info["episode"]["l"] == length
                total = sum(step.reward for step in courses[k][t + 1 - length : t + 1])
                assert info["episode"]["r"] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("n_actors", [0, 2])
@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_the_states_before_the_steps_are_kept_where_windows_start(core: str, n_actors: int) -> None:
    env = DummyVecEnv([Walk] * 2) if n_actors == 0 else None
    model = make_r2d2(env, n_actors=n_actors, burn_in_length=1, sequence_period=3, policy_kwargs=dict(core=core))
    actor = make_actor(model)
    trajectories = [actor.collect(8) for _ in range(3)]
    courses = follow_actor(actor, trajectories)
    thoughts = [think(model, steps) for steps in courses]
    for i, trajectory in enumerate(trajectories):
        expected = []
        for t in range(8):
            for k in range(2):
                step = 8 * i + t
                position = next(j for j in range(step + 1) if courses[k][step - j].is_first)
                assert trajectory.state_mask[t, k] == (position in (2, 5))
                if trajectory.state_mask[t, k]:
                    expected.append(thoughts[k][step].state)
        assert expected
        assert len(trajectory.core_states) == trajectory.state_mask.any(axis=1).sum()
        fields = (np.concatenate(arrays) for arrays in zip(*trajectory.core_states, strict=True))
        for field, states in zip(fields, zip(*expected, strict=True), strict=True):
            np.testing.assert_allclose(field, states, atol=1e-6)


def test_no_states_are_sent_that_are_not_stored() -> None:
    trajectory = make_actor(make_r2d2(n_actors=1, stored_state=False)).collect(8)
    assert trajectory.core_states == [] and not trajectory.state_mask.any()


def test_greedy_actions_are_those_of_the_network_with_its_memory() -> None:
    model = make_r2d2(n_actors=1, envs_per_actor=3)
    actor = make_actor(model)
    actor.epsilons = np.zeros(3)
    trajectory = actor.collect(20)
    for k, steps in enumerate(follow_actor(actor, [trajectory])):
        state = None
        for t, step in enumerate(steps):
            action, state = model.policy.predict(step.obs[None], None if step.is_first else state, deterministic=True)
            assert trajectory.actions[t, k] == action[0]


@pytest.mark.parametrize(("n_actors", "n_envs"), [(0, 3), (1, 1), (3, 2)])
def test_the_epsilons_are_spread_over_the_environments_of_all_actors(n_actors: int, n_envs: int) -> None:
    env = DummyVecEnv([Walk] * n_envs) if n_actors == 0 else None
    model = make_r2d2(env, n_actors=n_actors, envs_per_actor=n_envs)
    actors = [make_actor(model, index) for index in range(max(n_actors, 1))]
    np.testing.assert_array_equal(np.concatenate([actor.epsilons for actor in actors]), ape_x_epsilons(len(actors) * n_envs))


def test_each_environment_explores_as_often_as_its_epsilon_says() -> None:
    model = make_r2d2(partial(Walk, n_actions=50), n_actors=2, envs_per_actor=2, **BARE)
    prefer(model, 7)
    trajectories = [make_actor(model, index).collect(1000) for index in range(2)]
    rates = np.concatenate([(trajectory.actions != 7).mean(axis=0) for trajectory in trajectories])
    np.testing.assert_allclose(rates, ape_x_epsilons(4) * 49 / 50, atol=0.05)
    assert len(np.unique(trajectories[0].actions)) == 50


def assert_same_trajectories(first: Trajectory, second: Trajectory) -> None:
    for name in ("actions", "rewards", "dones", "episode_starts", "td_errors"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert_same_arrays(first.observations, second.observations)


def test_actors_neither_use_nor_change_the_global_random_state() -> None:
    model = make_r2d2(n_actors=1)
    trajectories = []
    for seed in range(2):
        np.random.seed(seed)
        th.manual_seed(seed)
        before = np.random.get_state()[1].copy(), np.random.get_state()[2], th.get_rng_state()
        trajectories.append(make_actor(model).collect(30))
        after = np.random.get_state()[1], np.random.get_state()[2], th.get_rng_state()
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old, new)
    assert_same_trajectories(*trajectories)


def test_actors_have_different_random_streams() -> None:
    model = make_r2d2(n_actors=2, **BARE)
    prefer(model, 0)
    actors = [make_actor(model, index) for index in range(2)]
    for actor in actors:
        actor.epsilons = np.full(2, 0.5)
    first, second = (actor.collect(30) for actor in actors)
    assert not np.array_equal(first.rewards, second.rewards)
    assert not np.array_equal(first.actions, second.actions)
    assert not np.array_equal(first.actions[:, 0], first.actions[:, 1])
    assert first.incarnation != second.incarnation and (first.actor, second.actor) == (0, 1)


@pytest.mark.parametrize("how", ["restarted", "without a seed"])
def test_random_streams_that_are_never_replayed(how: str) -> None:
    model = make_r2d2(n_actors=1, seed=0 if how == "restarted" else None)
    rewards = [make_actor(model, is_restart=how == "restarted").collect(30).rewards for _ in range(2)]
    if how == "restarted":
        rewards.append(make_actor(model).collect(30).rewards)
    for i, array in enumerate(rewards):
        assert not any(np.array_equal(array, other) for other in rewards[:i])


def test_new_parameters_take_effect_from_the_second_step() -> None:
    model = make_r2d2(n_actors=1, **BARE)
    prefer(model, 1)
    actor = make_actor(model)
    actor.epsilons = np.zeros(2)
    assert (actor.collect(5).actions == 1).all()
    prefer(model, 2)
    assert (actor.collect(5).actions == 1).all()  # it has a copy of its own
    actor.load(copy_parameters(model.q_net, version=17))
    trajectory = actor.collect(5)
    assert trajectory.version == 17
    assert (trajectory.actions[0] == 1).all() and (trajectory.actions[1:] == 2).all()


def all_of(trajectory: Trajectory) -> dict[str, Any]:
    episodes = {step: (info["episode"]["r"], info["episode"]["l"]) for step, info in trajectory.infos.items()}
    return vars(trajectory) | {"infos": episodes} | dict.fromkeys(("actor", "incarnation", "n_sent"))


@pytest.mark.parametrize("part", ["nothing", *CARRIED, "env"])
def test_an_actor_goes_on_with_the_episodes_of_another(part: str) -> None:
    """Unless it has one part of a third one instead."""
    model = make_r2d2(MaskedStatefulWalk, n_actors=3, envs_per_actor=2, sequence_period=1)
    actor, resumed, third = actors = [make_actor(model, index) for index in range(3)]
    for each in actors:
        each.epsilons = np.full(2, 0.5)
    actor.collect(10), third.collect(10)
    while third._episode_steps.all():  # at the first step of an episode its number matters most
        third.collect(1)
    assert resumed.resume(json.loads(json.dumps(actor.running_episodes())))
    if part != "nothing":
        setattr(resumed, part, getattr(third, part))
    expected, found = all_of(actor.collect(20)), all_of(resumed.collect(20))
    assert same(expected, found) == (part == "nothing")


def same(first: Any, second: Any) -> bool:
    try:
        np.testing.assert_equal(first, second)
    except AssertionError:
        return False
    return True


def test_an_actor_counts_the_steps_it_sends() -> None:
    actor = make_actor(make_r2d2(n_actors=1, envs_per_actor=3))
    trajectories = [actor.collect(n) for n in (4, 1, 6)]
    assert [trajectory.n_env_steps for trajectory in trajectories] == [12, 3, 18]
    assert [trajectory.n_sent for trajectory in trajectories] == [12, 15, 33]


def test_only_infos_that_the_learner_reads_are_sent() -> None:
    class Chatty(Walk):
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return *rest, info | {"is_success": True, "large": np.zeros(10**5)}

    infos = make_actor(make_r2d2(Chatty, envs_per_actor=2, n_actors=1)).collect(30).infos
    assert {key for info in infos.values() for key in info} == {"episode", "is_success"}


def test_the_size_of_a_trajectory_counts_all_arrays() -> None:
    """By hand: T = 10, K = 2, an LSTM of 6."""
    trajectory = make_actor(make_r2d2(n_actors=1)).collect(10)
    n_finals, n_states = len(trajectory.final_observations), int(trajectory.state_mask.sum())
    assert n_finals > 0 and n_states > 0
    observations = (20 + 2 + n_finals) * 3 * 4
    steps = 20 * (8 + 4 + 4 + 6)  # actions, rewards, errors, six masks
    assert trajectory.n_bytes == observations + steps + n_states * 2 * 6 * 4


def test_vec_normalize_acts_on_normalized_and_sends_original_observations() -> None:
    env = VecNormalize(DummyVecEnv([Walk] * 2))
    model = make_r2d2(env)
    seen = []
    actor = make_actor(model)
    original = actor._forward
    actor._forward = lambda obs, *rest: seen.append(np.array(obs)) or original(obs, *rest)  # type: ignore[method-assign]
    trajectory = actor.collect(25)
    courses = follow_actor(actor, [trajectory])
    finals = [step.next_obs for steps in zip(*courses, strict=True) for step in steps if step.truncated]
    for t, steps in enumerate(zip(*courses, strict=True)):
        np.testing.assert_array_equal(trajectory.observations["observation"][t], [step.obs for step in steps])
        np.testing.assert_array_equal(trajectory.rewards[t], np.float32([step.reward for step in steps]))
    assert len(finals) > 2
    reported = [final["observation"] for final in trajectory.final_observations]
    np.testing.assert_allclose(reported, finals, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen[-1], env.normalize_obs(trajectory.next_observations["observation"]), atol=1e-6)
    assert not np.allclose(seen[-1], trajectory.next_observations["observation"], atol=0.05)


@pytest.mark.parametrize("handled", [True, False])
def test_truncations_count_as_terminations_where_the_replay_takes_them_so(handled: bool) -> None:
    env = counters(2, length=5, truncates=True)
    model = make_r2d2(env, replay_buffer_kwargs=dict(handle_timeout_termination=handled))
    trajectory = make_actor(model).collect(10)
    assert trajectory.dones[4].all() and (trajectory.timeouts == (trajectory.dones & handled)).all()


def test_the_learners_environments_are_left_open() -> None:
    model = make_r2d2(DummyVecEnv([Walk] * 2))
    closed = []
    model.env.close = lambda: closed.append("the learner's")  # type: ignore[method-assign]
    make_actor(model).close()
    own = make_actor(make_r2d2(n_actors=1))
    own.env.close = lambda: closed.append("its own")  # type: ignore[method-assign]
    own.close()
    assert closed == ["its own"]


def test_a_spec_can_be_sent() -> None:
    import cloudpickle

    model = make_r2d2(n_actors=1)
    spec = model.actor_spec()
    actors = [Actor(each, 0) for each in (spec, cloudpickle.loads(cloudpickle.dumps(spec)))]
    for actor in actors:
        actor.load(copy_parameters(model.q_net, 0))
    assert_same_trajectories(*[actor.collect(20) for actor in actors])
