"""An environment that can be followed by hand, a small R2D2 and slow oracles, which the tests of R2D2 share."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_attn import R2D2
from sb3_attn.r2d2.actor import Actor, copy_parameters
from sb3_attn.r2d2.trajectory import Trajectory

SPACES = {
    "vector": spaces.Box(-50.0, 50.0, (3,), np.float32),
    "dict": spaces.Dict({"a": spaces.Box(-50.0, 50.0, (2,), np.float32), "b": spaces.Discrete(4)}),
    "discrete": spaces.Discrete(6),
    "image": spaces.Box(0, 255, (36, 40, 3), np.uint8),
}
POLICIES = {"vector": "MlpPolicy", "dict": "MultiInputPolicy", "discrete": "MlpPolicy", "image": "CnnPolicy"}


class Walk(gym.Env[Any, Any]):
    """
    All that happens follows from the seed and the actions; half of the episodes are truncated.

    :param kind: which observations
    :param longest: number of steps of the longest episode; the others have at least 2
    :param n_actions: number of actions
    """

    def __init__(self, kind: str = "vector", longest: int = 8, n_actions: int = 3) -> None:
        self.observation_space = SPACES[kind]
        self.action_space = spaces.Discrete(n_actions)
        self.kind, self.longest = kind, longest

    def _observe(self) -> Any:
        numbers = self.np_random.normal(size=3) + self.last_action
        if self.kind == "dict":
            return {"a": numbers[:2].astype(np.float32), "b": int(self.np_random.integers(4))}
        if self.kind == "discrete":
            return int(self.np_random.integers(6))
        if self.kind == "image":
            return self.np_random.integers(256, size=(36, 40, 3), dtype=np.uint8)
        return numbers.astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps, self.last_action = 0, 0
        self.length = int(self.np_random.integers(2, self.longest + 1))
        self.truncates = bool(self.np_random.random() < 0.5)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        self.last_action = int(action)
        reward = float(self.np_random.normal()) + self.last_action
        done = self.steps == self.length
        return self._observe(), reward, done and not self.truncates, done and self.truncates, {}


SMALL_POLICY = dict(core_kwargs=dict(hidden_size=6), encoder_arch=[6], net_arch=[6])


def make(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> R2D2:
    """A small model of two environments for each actor, which learns after 20 steps."""
    if env is None:
        env = Walk
        kwargs = {"envs_per_actor": 2} | kwargs
    policy_kwargs = SMALL_POLICY | kwargs.pop("policy_kwargs", {})
    defaults: dict[str, Any] = dict(
        learning_rate=1e-2,
        buffer_size=400,
        learning_starts=20,
        batch_size=4,
        target_update_interval=10,
        n_steps=2,
        trace_length=3,
        burn_in_length=2,
        sequence_period=2,
        rollout_length=5,
        actor_update_interval=10,
        seed=0,
        device="cpu",
    )
    return R2D2(policy, env, **(defaults | kwargs), policy_kwargs=policy_kwargs)


def make_actor(model: R2D2, index: int = 0, **kwargs: Any) -> Actor:
    """An actor of a model, with the model's parameters."""
    spec, env = model.actor_spec(), None
    if model.n_actors == 0:
        env = model.env
        env.seed(spec.random_streams(index)[0])
    actor = Actor(spec, index, env=env, **kwargs)
    actor.load(copy_parameters(model.q_net, 0))
    return actor


def prefer(model: R2D2, action: int) -> None:
    """Let a model without dueling find one action the best, whatever it sees."""
    with th.no_grad():
        for parameter in model.q_net.parameters():
            parameter.zero_()
        model.q_net.q_net[-1].bias[action] = 1.0


def rows(observation: Any, k: int) -> dict[str, np.ndarray]:
    """The observation of environment k, as a Dict."""
    return {key: np.asarray(array)[k] for key, array in as_dict(observation).items()}


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
            if td_lambda is None:
                target = n_step_return(t, k, n_steps, end)
            else:
                left = end - t
                target = sum((1 - td_lambda) * td_lambda ** (n - 1) * n_step_return(t, k, n, end) for n in range(1, left))
                target += td_lambda ** (left - 1) * n_step_return(t, k, left, end)
            errors[t, k] = abs((h(target) if value_rescaling else target) - q_values[t, k])
    return errors
