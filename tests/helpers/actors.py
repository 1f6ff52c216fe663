"""Actors of R2D2, and the plain loops over environments, network and returns that they are compared with."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th

from sb3_attn import R2D2
from sb3_attn.r2d2.actor import Actor, copy_parameters
from sb3_attn.r2d2.trajectory import Trajectory
from tests.helpers.environments import Walk


def make_actor(model: R2D2, index: int = 0, **kwargs: Any) -> Actor:
    """An actor of a model, with the model's parameters."""
    spec, env = model.actor_spec(), None
    if model.n_actors == 0:
        env = model.env
        env.seed(spec.random_streams(index)[0])
    actor = Actor(spec, index, env=env, **kwargs)
    actor.load(copy_parameters(model.q_net, 0))
    return actor


def as_dict(observation: Any) -> dict[str, Any]:
    return observation if isinstance(observation, dict) else {"observation": observation}


class Step(NamedTuple):
    """A step of one environment, as the environment itself returned it."""

    obs: Any
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_obs: Any
    is_first: bool


def follow(env: gym.Env, seed: int, actions: Any) -> list[Step]:
    """A plain loop over one environment."""
    steps = []
    obs, _ = env.reset(seed=seed)
    is_first = True
    for action in actions:
        next_obs, reward, terminated, truncated, _ = env.step(action)
        steps.append(Step(obs, int(action), float(reward), terminated, truncated, next_obs, is_first))
        is_first = terminated or truncated
        obs = env.reset()[0] if is_first else next_obs
    return steps


def follow_actor(actor: Actor, trajectories: list[Trajectory], make_env: Callable[[], gym.Env] = Walk) -> list[list[Step]]:
    """The steps of the environments of an actor, if it took the actions that it reports; for each environment."""
    seed = int(np.random.default_rng([*actor.spec.seed, actor.index]).integers(2**31))
    actions = np.concatenate([trajectory.actions for trajectory in trajectories])
    return [follow(make_env(), seed + k, actions[:, k]) for k in range(actions.shape[1])]


class Thought(NamedTuple):
    """The network's state and values of one step."""

    state: tuple[np.ndarray, ...]
    q_value: float
    next_value: float


def think(model: R2D2, steps: list[Step]) -> list[Thought]:
    """The network, step by step through one environment."""
    net, thoughts, state = model.q_net, [], None
    net.set_training_mode(False)

    def forward(obs: Any, state: Any) -> tuple[np.ndarray, Any]:
        batch = (
            {key: np.asarray(value)[None] for key, value in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]
        )
        with th.no_grad():
            q_values, state = net(net.obs_to_tensor(batch)[0], state)
        return q_values[0].numpy(), state

    for step in steps:
        state = net.initial_state(1) if step.is_first else state
        q_values, next_state = forward(step.obs, state)
        next_value = forward(step.next_obs, next_state)[0].max()
        thoughts.append(Thought(tuple(f.detach().numpy()[0] for f in state), q_values[step.action], next_value))
        state = next_state
    return thoughts


def h(x: float) -> float:
    return math.copysign(math.sqrt(abs(x) + 1) - 1, x) + 1e-3 * x


def h_inverse(x: float) -> float:
    root = (math.sqrt(1 + 4e-3 * (abs(x) + 1 + 1e-3)) - 1) / 2e-3
    return math.copysign(root**2 - 1, x)


def slow_td_errors(
    q_values: Any,
    rewards: Any,
    discounts: Any,
    next_values: Any,
    starts: Any,
    n_steps: int = 1,
    td_lambda: float | None = None,
    trace_tolerance: float | None = None,
    value_rescaling: bool = False,
) -> np.ndarray:
    """The definition, one environment, one step and one reward at a time."""
    length, n_envs = np.shape(rewards)
    errors = np.zeros((length, n_envs))
    values = np.vectorize(h_inverse)(next_values) if value_rescaling else np.asarray(next_values, float)

    def n_step_return(t: int, k: int, n: int, end: int) -> float:
        total, factor = 0.0, 1.0
        for i in range(t, min(t + n, end)):
            total += factor * rewards[i, k]
            factor *= discounts[i, k]
        return total + factor * values[min(t + n, end) - 1, k]

    for k in range(n_envs):
        for t in range(length):
            end = next((i for i in range(t + 1, length) if starts[i, k]), length)
            if td_lambda is not None and trace_tolerance is not None:
                greedy = np.asarray(next_values)[:, k]
                smallest = greedy - trace_tolerance * np.abs(greedy)
                end = next((i for i in range(t + 1, end) if q_values[i, k] < smallest[i - 1]), end)
            if td_lambda is None:
                target = n_step_return(t, k, n_steps, end)
            else:
                left = end - t
                target = sum((1 - td_lambda) * td_lambda ** (n - 1) * n_step_return(t, k, n, end) for n in range(1, left))
                target += td_lambda ** (left - 1) * n_step_return(t, k, left, end)
            errors[t, k] = abs((h(target) if value_rescaling else target) - q_values[t, k])
    return errors
