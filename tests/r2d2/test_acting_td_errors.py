"""The TD errors that actors send, against the definition in three loops."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attn.r2d2.trajectory import acting_td_errors
from tests.helpers.actors import follow_actor, make_actor, slow_td_errors, think
from tests.helpers.environments import walks
from tests.helpers.models import make_r2d2

RETURNS: list[dict[str, Any]] = [
    dict(n_steps=1),
    dict(n_steps=3),
    dict(n_steps=50),
    dict(td_lambda=0.0),
    dict(td_lambda=0.7),
    dict(td_lambda=1.0),
    dict(n_steps=5, value_rescaling=True),
    dict(td_lambda=0.7, value_rescaling=True),
    dict(td_lambda=0.7, trace_tolerance=0.5),
    dict(td_lambda=1.0, trace_tolerance=0.0),
    dict(td_lambda=0.7, trace_tolerance=0.5, value_rescaling=True),
    dict(n_steps=3, trace_tolerance=0.5),
]


def made_up(n_steps: int, n_envs: int, seed: int, p_end: float = 0.25) -> tuple[np.ndarray, ...]:
    """Values, rewards, discounts, next values and starts; some episodes terminate, others are cut off."""
    rng = np.random.default_rng(seed)
    q_values, rewards, next_values = rng.normal(size=(3, n_steps, n_envs)).astype(np.float32) * 5
    ends = rng.random((n_steps, n_envs)) < p_end
    discounts = np.where(ends & (rng.random((n_steps, n_envs)) < 0.5), 0.0, 0.9).astype(np.float32)
    starts = np.concatenate((rng.random((1, n_envs)) < 0.5, ends[:-1]))
    return q_values, rewards, discounts, next_values, starts


def test_the_oracle_of_td_errors_by_hand() -> None:
    """Two steps by hand: 1 + 0.5 (2 + 0.5 * 3) - 1.5 and 2 + 0.5 * 3 - 2.5."""
    column = np.array
    errors = slow_td_errors(
        column([[1.5], [2.5]]), column([[1.0], [2.0]]), column([[0.5], [0.5]]), column([[9.0], [3.0]]), column([[1], [0]]), 2
    )
    np.testing.assert_allclose(errors, [[1.25], [1.0]])


@pytest.mark.parametrize("returns", RETURNS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (12, 1), (17, 3)], ids=str)
def test_errors_equal_their_definition(shape: tuple[int, int], returns: dict[str, Any]) -> None:
    for seed in range(4):
        args = made_up(*shape, seed=seed)
        errors = acting_td_errors(*args, **returns)
        assert errors.shape == shape and errors.dtype == np.float32
        np.testing.assert_allclose(errors, slow_td_errors(*args, **returns), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("p_end", [0.0, 1.0])
def test_errors_where_no_step_or_every_step_ends_an_episode(p_end: float) -> None:
    args = made_up(9, 2, seed=0, p_end=p_end)
    errors = acting_td_errors(*args, n_steps=4)
    np.testing.assert_allclose(errors, slow_td_errors(*args, n_steps=4), rtol=1e-5, atol=1e-5)


def test_errors_of_environments_do_not_mix() -> None:
    """The last step of one does not continue in the first step of the next, although that starts no episode."""
    args = made_up(6, 3, seed=1, p_end=0.0)
    args[-1][:] = False
    together = acting_td_errors(*args, td_lambda=0.9)
    for k in range(3):
        alone = acting_td_errors(*[array[:, k : k + 1].copy() for array in args], td_lambda=0.9)
        np.testing.assert_array_equal(together[:, k : k + 1], alone)


def test_the_arguments_of_acting_td_errors_are_not_changed() -> None:
    args = made_up(6, 3, seed=2)
    copies = [array.copy() for array in args]
    acting_td_errors(*args, n_steps=3, value_rescaling=True)
    for array, copy in zip(args, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("returns", [dict(value_rescaling=False), dict(n_steps=1, td_lambda=0.6), dict(n_steps=3)], ids=str)
def test_an_actor_computes_errors_from_the_values_it_acted_on(returns: dict[str, Any]) -> None:
    """Oracle: the network, the environments and the returns, all step by step."""
    model = make_r2d2(n_actors=2, envs_per_actor=3, **returns)
    actor = make_actor(model, index=1)
    trajectories = [actor.collect(11) for _ in range(2)]
    courses = follow_actor(actor, trajectories)
    thoughts = [think(model, steps) for steps in courses]
    for i, trajectory in enumerate(trajectories):
        cut = slice(11 * i, 11 * (i + 1))

        def table(per_step: Any, cut: slice = cut) -> np.ndarray:
            columns = zip(courses, thoughts, strict=True)
            return np.array([list(map(per_step, steps[cut], mind[cut])) for steps, mind in columns]).T

        expected = slow_td_errors(
            table(lambda step, thought: thought.q_value),
            table(lambda step, thought: step.reward),
            table(lambda step, thought: 0.0 if step.terminated else model.gamma),
            table(lambda step, thought: thought.next_value),
            table(lambda step, thought: step.is_first).astype(bool),
            **model.return_kwargs,
        )
        assert trajectory.timeouts.any() and (trajectory.dones & ~trajectory.timeouts).any()
        np.testing.assert_allclose(trajectory.td_errors, expected, rtol=1e-3, atol=1e-4)


def test_uniform_replay_needs_no_errors() -> None:
    assert make_actor(make_r2d2(n_actors=1, prioritized_replay=False)).collect(4).td_errors is None


def test_acting_errors_are_those_of_normalized_rewards() -> None:
    env = VecNormalize(walks(2), norm_obs=False, norm_reward=True)
    env.ret_rms.var = np.array(1e4)
    env.training = False
    model = make_r2d2(env, n_steps=1, value_rescaling=False)
    actor = make_actor(model)
    with th.no_grad():
        for parameter in actor.q_net.parameters():
            parameter.zero_()
    trajectory = actor.collect(10)
    np.testing.assert_allclose(trajectory.td_errors, np.abs(env.normalize_reward(trajectory.rewards)), rtol=1e-3)
