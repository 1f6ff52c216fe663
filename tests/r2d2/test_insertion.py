"""Inserted trajectories leave the replay as if each step had been added where it happened."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_attn import R2D2
from sb3_attn.r2d2 import environments
from sb3_attn.r2d2.actor import Actor
from sb3_attn.r2d2.trajectory import Trajectory, insert_trajectory
from sb3_attn.replay import SequenceReplayBuffer
from tests.helpers.actors import Step, as_dict, follow_actor, make_actor, think
from tests.helpers.environments import POLICIES, Walk
from tests.helpers.models import make_r2d2

PARTS = (
    "actions",
    "rewards",
    "dones",
    "timeouts",
    "episode_steps",
    "window_lengths",
    "window_ids",
    "pos",
    "full",
    "open_lengths",
)


def assert_same_buffers(first: SequenceReplayBuffer, second: SequenceReplayBuffer) -> None:
    first.check_valid()
    for name in PARTS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for key, ring in first._observations.rings.items():
        np.testing.assert_array_equal(ring, second._observations.rings[key], err_msg=key)
        is_open = first.open_lengths > 0  # what follows a terminal step has no value and may be anything
        newest = (buffer._observations.newest_next[key][is_open] for buffer in (first, second))
        np.testing.assert_array_equal(*newest, err_msg=f"next {key}")
    assert first._observations.finals.keys() == second._observations.finals.keys()
    for place, finals in first._observations.finals.items():
        for key, array in finals.items():
            np.testing.assert_array_equal(array, second._observations.finals[place][key])
    assert first.n_windows == second.n_windows > 0
    leaves = np.arange(first._tree.capacity)
    np.testing.assert_allclose(first._tree[leaves], second._tree[leaves], rtol=1e-5)


def assert_same_states(first: SequenceReplayBuffer, second: SequenceReplayBuffer) -> int:
    """Compare the states from which windows start; returns their number."""
    positions, env_indices = np.nonzero(first.window_lengths)
    has_past = first.episode_steps[positions, env_indices] > first.burn_in_length
    positions, env_indices = positions[has_past] - first.burn_in_length, env_indices[has_past]
    states = [buffer._core_states.get(positions % buffer.buffer_size, env_indices) for buffer in (first, second)]
    for field, other in zip(*states, strict=True):
        np.testing.assert_allclose(field, other, atol=1e-6)
    return len(positions)


def stored(array: Any, kind: str) -> np.ndarray:
    return np.asarray(array).transpose(2, 0, 1) if kind == "image" else np.asarray(array)


def add_by_hand(
    model: R2D2,
    buffer: SequenceReplayBuffer,
    env_indices: np.ndarray,
    courses: list[list[Step]],
    errors: Any,
    kind: str,
    t: int,
) -> None:
    """One step of all environments of an actor, as RecurrentDQN stores it."""
    now = [steps[t] for steps in courses]

    def batch(name: str) -> Any:
        dicts = [as_dict(getattr(step, name)) for step in now]
        arrays = {key: np.stack([stored(d[key], kind) for d in dicts]) for key in dicts[0]}
        return arrays.get("observation", arrays)

    states = [think(model, steps[: t + 1])[t].state for steps in courses]
    extra = {} if errors is None else dict(td_errors=errors)
    buffer.add(
        batch("obs"),
        batch("next_obs"),
        np.array([[step.action] for step in now]),
        np.array([step.reward for step in now]),
        np.array([step.terminated or step.truncated for step in now]),
        [{"TimeLimit.truncated": step.truncated} for step in now],
        core_state=tuple(np.stack(field) for field in zip(*states, strict=True)),
        episode_starts=np.array([step.is_first for step in now]),
        env_indices=env_indices,
        **extra,
    )


@pytest.mark.parametrize("prioritized", [True, False])
@pytest.mark.parametrize("kind", POLICIES)
def test_the_replay_is_that_of_a_step_by_step_loop(kind: str, prioritized: bool) -> None:
    env = partial(Walk, kind, longest=12)
    arguments = dict(n_actors=2, envs_per_actor=2, prioritized_replay=prioritized, buffer_size=64)
    model, reference = (make_r2d2(env, POLICIES[kind], **arguments) for _ in range(2))
    actors = [make_actor(model, index) for index in range(2)]
    order = (0, 1, 1, 0, 0, 1) if kind == "vector" else (0, 1, 1)
    sent: list[list[Trajectory]] = [[], []]
    for index in order:
        sent[index].append(actors[index].collect(6))
        result = insert_trajectory(model.replay_buffer, sent[index][-1])
        assert result.n_steps_inserted == 12 and not result.n_steps_rejected
    courses = [follow_actor(actor, trajectories, env) for actor, trajectories in zip(actors, sent, strict=True)]
    done = [0, 0]
    for index in order:
        env_indices = np.array([0, 1]) + 2 * index
        for t in range(done[index], done[index] + 6):
            errors = sent[index][t // 6].td_errors[t % 6] if prioritized else None
            add_by_hand(reference, reference.replay_buffer, env_indices, courses[index], errors, kind, t)
        done[index] += 6
    assert_same_buffers(model.replay_buffer, reference.replay_buffer)
    assert kind != "vector" or model.replay_buffer.full.all()
    assert assert_same_states(model.replay_buffer, reference.replay_buffer) > 0


def test_the_result_counts_the_windows_that_have_become_available() -> None:
    model = make_r2d2(n_actors=1)
    actor, total = make_actor(model), 0
    for _ in range(5):
        total += insert_trajectory(model.replay_buffer, actor.collect(7)).n_windows_inserted
        assert total == model.replay_buffer.n_windows == model.replay_buffer.n_windows_added
    assert total > 10


def test_each_actor_has_its_own_part_of_the_replay() -> None:
    model = make_r2d2(n_actors=3, envs_per_actor=2)
    for index, n_steps in ((2, 5), (0, 3)):
        insert_trajectory(model.replay_buffer, make_actor(model, index).collect(n_steps))
    assert model.replay_buffer.pos.tolist() == [3, 3, 0, 0, 5, 5]


def test_windows_go_on_from_one_trajectory_to_the_next() -> None:
    model = make_r2d2(partial(Walk, longest=200), n_actors=1, envs_per_actor=1, trace_length=30, sequence_period=30)
    actor = make_actor(model)
    results = [insert_trajectory(model.replay_buffer, actor.collect(10)) for _ in range(20)]
    assert (model.replay_buffer.window_lengths == 30).any()
    assert sum(result.n_windows_inserted for result in results) == model.replay_buffer.n_windows_added


# ---------------------------------------------------------------- failures


class Fragile(Walk):
    """Long episodes; raises when the number of steps that all copies have made is one of these."""

    failures: frozenset[int] = frozenset()
    n_steps = 0

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        self.length = 50
        return result

    def step(self, action: Any) -> Any:
        Fragile.n_steps += 1
        if Fragile.n_steps in Fragile.failures:
            raise OSError("out of order")
        return super().step(action)


def fragile(monkeypatch: pytest.MonkeyPatch, *failures: int, **kwargs: Any) -> tuple[R2D2, Actor]:
    monkeypatch.setattr(environments.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Fragile, "failures", frozenset(failures))
    monkeypatch.setattr(Fragile, "n_steps", 0)
    model = make_r2d2(Fragile, n_actors=1, **kwargs)
    return model, make_actor(model)


def test_steps_on_which_an_environment_failed_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two environments step in turn, so step 8 is the fourth of the second one."""
    model, actor = fragile(monkeypatch, 8, envs_per_actor=2)
    trajectory = actor.collect(6)
    result = insert_trajectory(model.replay_buffer, trajectory)
    assert np.argwhere(~trajectory.valid).tolist() == [[3, 1]]
    assert (result.n_steps_inserted, dict(result.n_steps_rejected)) == (11, {"the environment failed": 1})
    assert model.replay_buffer.pos.tolist() == [6, 5]
    assert not trajectory.timeouts[3, 1] and (3, 1) not in trajectory.infos


@pytest.mark.parametrize("prioritized", [True, False])
def test_no_window_spans_a_failure(prioritized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures at a trajectory's start, twice in a row, at its end and in its middle."""
    model, actor = fragile(monkeypatch, 8, 9, 18, 31, prioritized_replay=prioritized, envs_per_actor=1)
    buffer = model.replay_buffer
    n_inserted = sum(insert_trajectory(buffer, actor.collect(1 if i < 10 else 8)).n_steps_inserted for i in range(14))
    assert n_inserted == buffer.pos[0] == 38
    buffer.check_valid()
    assert np.flatnonzero(buffer.episode_steps[:38, 0] == 0).tolist() == [0, 7, 15, 27]
    for seam in (7, 15, 27):
        assert buffer.timeouts[seam - 1, 0]
        for position in np.flatnonzero(buffer.window_lengths[:38, 0]):
            assert not position < seam < position + buffer.window_lengths[position, 0]


def test_the_steps_before_a_failure_bootstrap_from_the_last_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, actor = fragile(monkeypatch, 5, envs_per_actor=1)
    trajectory = actor.collect(12)
    insert_trajectory(model.replay_buffer, trajectory)
    buffer = model.replay_buffer
    assert buffer.timeouts[3, 0] and not trajectory.timeouts[4, 0]
    np.testing.assert_array_equal(
        buffer._observations.finals[3, 0]["observation"], trajectory.observations["observation"][4, 0]
    )
    np.testing.assert_array_equal(buffer.observations[4, 0], trajectory.observations["observation"][5, 0])
    assert buffer.episode_steps[4, 0] == 0


def test_the_errors_of_a_failure_reach_no_other_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Returns end before it, with the value of the observation at which it happened."""
    model, actor = fragile(monkeypatch, 5, envs_per_actor=1, n_steps=20, value_rescaling=False)
    trajectory = actor.collect(5)
    observations, rewards = trajectory.observations["observation"][:, 0], trajectory.rewards[:, 0]
    state, q_values = model.q_net.initial_state(1), []
    with th.no_grad():
        for obs in observations:
            values, state = model.q_net(th.as_tensor(obs)[None], state)
            q_values.append(values[0].numpy())
    for t in range(4):
        target = sum(model.gamma**i * rewards[t + i] for i in range(4 - t)) + model.gamma ** (4 - t) * q_values[4].max()
        error = abs(target - q_values[t][trajectory.actions[t, 0]])
        assert trajectory.td_errors[t, 0] == pytest.approx(error, abs=1e-4)
