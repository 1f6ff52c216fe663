"""Actors: environments, and a copy of the Q-network that acts in them."""

import uuid
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from sb3_attn.common.action_masks import leave_valid
from sb3_attn.common.core_state import CoreState, state_from_arrays
from sb3_attn.common.exploration import ape_x_epsilons
from sb3_attn.common.plain_data import from_json, to_json
from sb3_attn.envs import FinalActionMasks
from sb3_attn.r2d2.environments import FAILURE, EnvFn, RestartingEnv, monitored
from sb3_attn.r2d2.trajectory import Trajectory, acting_td_errors
from sb3_attn.recurrent_dqn import RecurrentDQNPolicy, RecurrentQNetwork
from sb3_attn.recurrent_dqn.diagnostics import EpisodeValues
from sb3_attn.recurrent_dqn.environment_states import environment_states, set_environment_states
from sb3_attn.recurrent_dqn.masking import current_masks, following_masks, keep_final_masks
from sb3_attn.recurrent_dqn.step_checks import WAS_RESET, ResetWatch, check_step, missing_final_observations
from sb3_attn.replay.core_states import is_window_start
from sb3_attn.replay.observation_store import SINGLE_KEY, as_dict, with_masks

#: Keys of an info that the learner receives when an episode ends
INFO_KEYS = ("episode", "is_success")

#: What an actor carries from step to step, besides its environments
CARRIED = ("_obs", "_episode_steps", "_state", "_next_state", "_q_values", "_action_masks", "_episode_values", "rng")


class Parameters(NamedTuple):
    """
    Parameters of a Q-network, and how much to explore with them.

    :param version: the learner's number of updates when they were copied
    :param arrays: the ``state_dict`` as numpy arrays
    :param epsilon: the probability of a random action in all environments; ``None`` means that each has its own
    """

    version: int
    arrays: dict[str, np.ndarray]
    epsilon: float | None = None


def copy_parameters(q_net: RecurrentQNetwork, version: int, epsilon: float | None = None) -> Parameters:
    """
    Copy the parameters of a Q-network.

    :param q_net: the learner's network
    :param version: the learner's number of updates
    :param epsilon: see :class:`Parameters`
    :return: a copy, which later updates leave as it is
    """
    return Parameters(version, {name: tensor.cpu().numpy().copy() for name, tensor in q_net.state_dict().items()}, epsilon)


class ActorSpec(NamedTuple):
    """
    All that an actor needs to know; can be pickled.

    :param env_fns: create the environments of an actor; empty if the actor steps the learner's environments
    :param n_actors: number of actors, over whose environments the epsilons are spread
    :param policy_class: class of the policy
    :param policy_kwargs: its arguments, including the spaces
    :param seed: seeds the random streams of all actors
    :param gamma: the discount factor
    :param return_kwargs: the kind of return, as for ``acting_td_errors``
    :param with_td_errors: whether the replay is prioritized
    :param burn_in_length: as in the replay buffer
    :param sequence_period: as in the replay buffer
    :param stored_state: as in the replay buffer
    :param handle_timeout_termination: as in the replay buffer
    :param max_env_restarts: number of failures of an environment that are tolerated
    :param use_masking: whether the environments tell which actions are valid
    """

    env_fns: list[EnvFn]
    n_actors: int
    policy_class: type[RecurrentDQNPolicy]
    policy_kwargs: dict[str, Any]
    seed: tuple[int, ...]
    gamma: float
    return_kwargs: dict[str, Any]
    with_td_errors: bool
    burn_in_length: int
    sequence_period: int
    stored_state: bool
    handle_timeout_termination: bool
    max_env_restarts: int
    use_masking: bool

    def random_streams(self, index: int, is_restart: bool = False) -> tuple[int, np.random.Generator]:
        """
        The random numbers of an actor.

        :param index: number of the actor
        :param is_restart: whether it replaces a crashed actor, whose random stream must not be replayed
        :return: the seed of its environments, and the generator of its exploration
        """
        rng = np.random.default_rng(None if is_restart else [*self.seed, index])
        return int(rng.integers(2**31)), rng


class Actor:
    """
    Steps K environments with its own copy of the Q-network.

    It has its own random streams, so its steps depend on its number, the seed and the parameters it is given, and not on
    the process it runs in.

    :param spec: all that it needs to know
    :param index: number of the actor
    :param env: environments to step; ``None`` means that it creates its own
    :param first_obs: returns the first observations of ``env``, if others reset that
    :param previous: an actor of ``env``, whose episodes this one goes on with
    :param is_restart: whether it replaces a crashed actor
    :param device: device of the network
    :param current_env: ``[1]``, always holds the number of the environment that is being stepped, for a post-mortem
    """

    def __init__(
        self,
        spec: ActorSpec,
        index: int,
        env: VecEnv | None = None,
        first_obs: Callable[[], Any] | None = None,
        previous: "Actor | None" = None,
        is_restart: bool = False,
        device: th.device | str = "cpu",
        current_env: np.ndarray | None = None,
    ) -> None:
        self.spec = spec
        self.index = index
        self.incarnation = uuid.uuid4().hex
        self.version = -1
        self.n_sent = 0
        env_seed, self.rng = spec.random_streams(index, is_restart)
        if env is None:
            env = self._make_envs(current_env)
            env.seed(env_seed)
        self.env = env
        if spec.use_masking:
            keep_final_masks(env)
        self._first_obs = first_obs or env.reset
        self._vec_normalize = unwrap_vec_normalize(env)
        n_envs = env.num_envs
        self.epsilons = ape_x_epsilons(spec.n_actors * n_envs)[index * n_envs : (index + 1) * n_envs]
        with th.random.fork_rng(devices=[]):  # initial parameters, soon replaced, must not cost the learner random numbers
            self.q_net: RecurrentQNetwork = spec.policy_class(**spec.policy_kwargs, lr_schedule=lambda _: 0.0).q_net.to(device)
        self.q_net.set_training_mode(False)
        self._device = device
        self._episode_values = EpisodeValues(n_envs, spec.gamma, spec.return_kwargs["value_rescaling"])
        self._obs: Any = None
        self._action_masks: np.ndarray | None = None
        self._reset_watch = ResetWatch(env)
        if previous is not None:
            vars(self).update({name: getattr(previous, name) for name in (*CARRIED, "_reset_watch")})

    def _make_envs(self, current_env: np.ndarray | None) -> VecEnv:
        def restarting(k: int, env_fn: EnvFn) -> gym.Env:
            name, make = f"environment {k} of actor {self.index}", partial(monitored, env_fn)
            if self.spec.use_masking:  # in the wrapper that catches failures, as a broken environment may have no masks
                make = partial(_with_final_masks, make)
            return RestartingEnv(make, name, self.spec.max_env_restarts, on_use=partial(note, k))

        def note(k: int) -> None:
            if current_env is not None:
                current_env[0] = k

        envs = DummyVecEnv([partial(restarting, k, env_fn) for k, env_fn in enumerate(self.spec.env_fns)])
        return BaseAlgorithm._wrap_env(envs, monitor_wrapper=False)

    @property
    def obs(self) -> Any:
        """The current observations; ``None`` before the first step."""
        return self._obs

    @property
    def was_reset(self) -> bool:
        """Whether someone else has reset the environments since the current observations."""
        return self._obs is not None and self._reset_watch.noticed

    def load(self, parameters: Parameters) -> None:
        """
        Act with these parameters, and explore with their epsilon, from now on.

        :param parameters: of the learner
        """
        self.q_net.load_state_dict({name: th.tensor(array) for name, array in parameters.arrays.items()})
        self.version = parameters.version
        if parameters.epsilon is not None:
            self.epsilons = np.full(self.env.num_envs, parameters.epsilon)

    def begin_episodes(self, seed: tuple[int, ...]) -> None:
        """
        Begin new episodes at the next step, as a new actor would.

        :param seed: seeds the random streams of all actors
        """
        self.spec = self.spec._replace(seed=seed)
        env_seed, self.rng = self.spec.random_streams(self.index)
        self.env.seed(env_seed)
        self._first_obs = self.env.reset
        self._obs = None

    def running_episodes(self) -> dict[str, Any] | None:
        """
        Tell what the running episodes go on from.

        :return: values of JSON; ``None`` if the environments cannot give their states
        :raises ValueError: if a state is not plain data, or ``set_state`` does not take it
        """
        if self._obs is None:  # the first episodes will begin when it is this actor's turn
            return {"seed": to_json(self.spec.seed, "seed")}
        if (environments := environment_states(self.env)) is None:
            return None
        carried = {name: getattr(self, name) for name in CARRIED} | {
            "_state": [field.cpu().numpy() for field in self._state],
            "_next_state": [field.cpu().numpy() for field in self._next_state],
            "_q_values": self._q_values.numpy(),
            "_episode_values": vars(self._episode_values),
            "rng": self.rng.bit_generator.state,
        }
        if self._vec_normalize is not None:
            carried["original_obs"] = self._vec_normalize.get_original_obs()
        for name in {"_obs", "original_obs"} & carried.keys():
            if isinstance(carried[name], dict):  # SB3's are ordered ones
                carried[name] = dict(carried[name])
        return {"environments": environments, "actor": to_json(carried, f"actor {self.index}")}

    def resume(self, episodes: dict[str, Any]) -> bool:
        """
        Go on with the episodes of another actor.

        :param episodes: from its ``running_episodes``
        :return: whether the environments are in the states of the other's; if not, which a warning tells, new episodes have
            to begin
        :raises ValueError: if the environments are others
        """
        if "seed" in episodes:
            self.begin_episodes(from_json(episodes["seed"]))
            return True
        if not set_environment_states(self.env, episodes["environments"]):
            return False
        carried = from_json(episodes["actor"])
        for name in ("_state", "_next_state"):
            carried[name] = state_from_arrays(carried[name], self.q_net.initial_state(self.env.num_envs))
        carried["_q_values"] = th.from_numpy(carried["_q_values"])
        vars(self._episode_values).update(carried.pop("_episode_values"))
        self.rng.bit_generator.state = carried.pop("rng")
        if self._vec_normalize is not None:
            self._vec_normalize.old_obs = carried.pop("original_obs")
        vars(self).update(carried)
        self._reset_watch = ResetWatch(self.env)
        return True

    def collect(self, rollout_length: int) -> Trajectory:
        """
        Continue for some steps.

        Q-values of the current observation were computed when it arrived, so new parameters take effect from the second
        step.

        :param rollout_length: number of steps T of each environment
        :return: the trajectory
        """
        if self.was_reset:
            warnings.warn(WAS_RESET, stacklevel=2)
            self._first_obs, self._obs = self.env.reset, None
        if self._obs is None:
            self._begin()
        action_shape = self.q_net.components.action_shape
        trajectory = Trajectory(
            self.index, self.incarnation, self.n_sent, self.version, rollout_length, self._stored_obs(), action_shape
        )
        q_values, next_values = np.empty((2, *trajectory.rewards.shape), np.float32)
        for t in range(rollout_length):
            q_values[t], next_values[t] = self._step(trajectory, t)
        trajectory.next_observations = self._stored_obs()
        if self.spec.with_td_errors:
            trajectory.td_errors = self._td_errors(trajectory, q_values, next_values)
        self.n_sent = trajectory.n_sent
        return trajectory

    def _step(self, trajectory: Trajectory, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Record step t; returns Q of the actions taken and max_a Q of the observations they led to, ``[K]`` both."""
        n_envs = self.env.num_envs
        for key, array in self._stored_obs().items():
            trajectory.observations[key][t] = array
        trajectory.episode_starts[t] = self._episode_steps == 0
        if self.spec.stored_state:
            mask = is_window_start(self._episode_steps, self.spec.burn_in_length, self.spec.sequence_period)
            if mask.any():
                trajectory.state_mask[t] = mask
                trajectory.core_states.append(tuple(field.cpu().numpy()[mask] for field in self._state))

        components = self.q_net.components
        largest_q_values, actions = (tensor.numpy() for tensor in components.best(self._q_values))
        explore = self.rng.random(n_envs) < self.epsilons
        if self._action_masks is None:
            nvec = np.reshape(components.nvec, components.action_shape)
            random_actions = self.rng.integers(nvec, size=actions.shape)
        else:  # each action draws a number; the valid one with the largest is taken
            numbers = th.from_numpy(self.rng.random((n_envs, sum(components.sizes))))
            random_actions = components.best(components.mask(numbers, th.from_numpy(self._action_masks)))[1].numpy()
        actions[explore] = random_actions[explore]
        trajectory.actions[t] = actions
        q_values = components.take(self._q_values.unsqueeze(-2), th.from_numpy(actions)).squeeze(-1).numpy()

        self._obs, rewards, dones, infos = self.env.step(actions.astype(self.env.action_space.dtype, copy=False))
        dones = dones.astype(bool, copy=False)  # a SubprocVecEnv returns what its environments do
        n_steps = trajectory.n_sent - trajectory.n_env_steps + (t + 1) * n_envs
        check_step(self.env, self._obs, rewards, dones, infos, f"{n_steps} of actor {self.index}")
        trajectory.rewards[t] = rewards if self._vec_normalize is None else self._vec_normalize.get_original_reward()
        trajectory.dones[t] = dones
        final_values, ended, timeouts = np.zeros(n_envs, np.float32), dones, np.zeros(n_envs, bool)
        if dones.any():
            succeeded = np.array([FAILURE not in info for info in infos])
            ended = dones & succeeded
            if self.spec.handle_timeout_termination:
                timeouts = ended & [info.get("TimeLimit.truncated", False) for info in infos]
            trajectory.unknown_finals[t] = missing_final_observations(timeouts, infos, self.spec.use_masking)
            trajectory.valid[t] = succeeded & ~trajectory.unknown_finals[t]
            trajectory.timeouts[t] = timeouts & trajectory.valid[t]
            for k in np.flatnonzero(ended):
                trajectory.infos[t, int(k)] = {key: infos[k][key] for key in INFO_KEYS if key in infos[k]}
            if trajectory.timeouts[t].any():
                final_values = self._final_values(trajectory, t, infos)
        first_values, returns = self._episode_values.update(largest_q_values, rewards, timeouts, trajectory.episode_starts[t])
        for k in np.flatnonzero(ended):
            trajectory.episode_values.append((float(first_values[k]), float(returns[k])))
        self._advance(dones)
        return q_values, np.where(dones, final_values, components.best(self._q_values)[0].numpy())

    def close(self) -> None:
        """Close the environments, unless they are the learner's."""
        if self.spec.env_fns:
            self.env.close()

    def _begin(self) -> None:
        self._obs, n_envs = self._first_obs(), self.env.num_envs
        self._reset_watch = ResetWatch(self.env)
        self._episode_steps = np.full(n_envs, -1)
        self._next_state: CoreState = self.q_net.initial_state(n_envs)
        self._advance(np.ones(n_envs, bool))

    def _advance(self, dones: np.ndarray) -> None:
        """Compute state and Q-values of the current observation."""
        self._episode_steps = np.where(dones, 0, self._episode_steps + 1)
        self._state = self._next_state
        if self.spec.use_masking:
            self._action_masks = current_masks(self.env, self.q_net.components.nvec, f"of actor {self.index}")
        with th.no_grad():
            if dones.any():
                self._state = self.q_net.reset_rows(self._state, th.as_tensor(dones, device=self._device))
            self._q_values, self._next_state = self._forward(self._obs, self._state, self._action_masks)

    def _forward(self, obs: Any, state: CoreState, action_masks: np.ndarray | None) -> tuple[th.Tensor, CoreState]:
        tensor, _ = self.q_net.obs_to_tensor(obs)
        q_values, next_state = self.q_net(tensor, state)
        masks = None if action_masks is None else th.as_tensor(action_masks)
        return self.q_net.components.mask(q_values.cpu(), masks), next_state

    def _final_values(self, trajectory: Trajectory, t: int, infos: list[dict[str, Any]]) -> np.ndarray:
        """Record the final observations of truncated episodes; returns their values, ``[K]``, valid in these rows."""
        obs = {key: array.copy() for key, array in as_dict(self._obs).items()}
        if (masks := self._action_masks) is not None:
            nvec = self.q_net.components.nvec
            masks = leave_valid(following_masks(masks, trajectory.timeouts[t], infos, nvec), nvec)
        for k in np.flatnonzero(trajectory.timeouts[t]):
            final = infos[k]["terminal_observation"]
            for key, array in as_dict(final).items():
                obs[key][k] = array
            if self._vec_normalize is not None:
                final = self._vec_normalize.unnormalize_obs(final)
            final = with_masks(final, None if masks is None else masks[k])
            trajectory.final_observations.append({key: np.array(array) for key, array in as_dict(final).items()})
        is_dict = isinstance(self.env.observation_space, spaces.Dict)
        with th.no_grad():
            q_values, _ = self._forward(obs if is_dict else obs[SINGLE_KEY], self._next_state, masks)
        return self.q_net.components.best(q_values)[0].numpy()

    def _stored_obs(self) -> dict[str, np.ndarray]:
        """The current observation as the replay stores it, before VecNormalize."""
        obs = self._obs if self._vec_normalize is None else self._vec_normalize.get_original_obs()
        return as_dict(with_masks(obs, self._action_masks))

    def _td_errors(self, trajectory: Trajectory, q_values: np.ndarray, next_values: np.ndarray) -> np.ndarray:
        discounts = self.spec.gamma * (1 - (trajectory.dones & ~trajectory.timeouts)).astype(np.float32)
        starts = trajectory.episode_starts | ~trajectory.valid
        rewards = trajectory.rewards
        if self._vec_normalize is not None:  # the learner trains on normalized rewards, and the replay stores original ones
            rewards = self._vec_normalize.normalize_reward(rewards)
        return acting_td_errors(q_values, rewards, discounts, next_values, starts, **self.spec.return_kwargs)


def _with_final_masks(make: EnvFn) -> gym.Env:
    env = make()
    return env if is_wrapped(env, FinalActionMasks) else FinalActionMasks(env)
