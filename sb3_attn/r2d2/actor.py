"""Acting with a copy of the policy."""

import uuid
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from sb3_attn.common.core_state import CoreState
from sb3_attn.common.exploration import ape_x_epsilons
from sb3_attn.r2d2.environments import EnvFn, monitored
from sb3_attn.r2d2.restarting import FAILURE, RestartingEnv
from sb3_attn.r2d2.spec import ActorSpec
from sb3_attn.r2d2.td_errors import acting_td_errors
from sb3_attn.r2d2.trajectory import StepRecord, Trajectory
from sb3_attn.recurrent_dqn import RecurrentQNetwork
from sb3_attn.replay.core_states import is_window_start
from sb3_attn.replay.sequence_buffer import SINGLE_KEY, as_dict

#: What of an info goes to the learner when an episode ends
INFO_KEYS = ("episode", "is_success")


class Weights(NamedTuple):
    """
    The parameters of a Q-network.

    :param version: the learner's number of updates
    :param arrays: its ``state_dict`` as numpy arrays
    """

    version: int
    arrays: dict[str, np.ndarray]


class Actor:
    """
    Steps K environments with its own copy of the policy and hands over what happened.

    Its random numbers are its own, so what it does depends on its number, the seed and the weights it is given, and
    not on the process it runs in.

    :param spec: all that it has to know
    :param index: its number
    :param env: the environments to step, if they are there already
    :param rebuilt: it takes the place of one that died, whose random streams must not come again
    :param device: where the network runs
    :param current_env: ``[1]``, always holds the number of the environment that is being stepped; for a post-mortem
    """

    def __init__(
        self,
        spec: ActorSpec,
        index: int,
        env: VecEnv | None = None,
        rebuilt: bool = False,
        device: th.device | str = "cpu",
        current_env: np.ndarray | None = None,
    ) -> None:
        self.spec = spec
        self.index = index
        self.life = uuid.uuid4().hex
        self.version = -1
        self.n_sent = 0
        self.env = self._make_envs(current_env) if env is None else env
        self._vec_normalize = unwrap_vec_normalize(self.env)
        n_envs = self.env.num_envs
        self.epsilons = ape_x_epsilons(spec.n_actors * n_envs)[index * n_envs : (index + 1) * n_envs]
        self.rng = np.random.default_rng(None if rebuilt or spec.seed is None else [*spec.seed, index])
        with th.random.fork_rng(devices=[]):  # weights to be replaced must not cost the learner random numbers
            self.q_net: RecurrentQNetwork = spec.policy_class(**spec.policy_kwargs, lr_schedule=lambda _: 0.0).q_net.to(device)
        self.q_net.set_training_mode(False)
        self._device = device
        self._obs: Any = None

    def _make_envs(self, current_env: np.ndarray | None) -> VecEnv:
        def restarting(k: int, make_env: EnvFn) -> gym.Env:
            name, make_monitored = f"environment {k} of actor {self.index}", partial(monitored, make_env)
            return RestartingEnv(make_monitored, name, self.spec.max_env_restarts, on_use=partial(note, k))

        def note(k: int) -> None:
            if current_env is not None:
                current_env[0] = k

        envs = DummyVecEnv([partial(restarting, k, make_env) for k, make_env in enumerate(self.spec.env_fns)])
        return BaseAlgorithm._wrap_env(envs, monitor_wrapper=False)

    def load(self, weights: Weights) -> None:
        """
        Act with these weights from now on.

        :param weights: of the learner
        """
        self.q_net.load_state_dict({name: th.tensor(array) for name, array in weights.arrays.items()})
        self.version = weights.version

    def collect(self, n_steps: int) -> Trajectory:
        """
        Go on for some steps.

        The Q-values of the observation at hand were made when it came, so weights that are loaded between two calls act
        from the second step on.

        :param n_steps: number of steps T of each environment
        :return: what happened
        """
        if self._obs is None:
            self._begin()
        steps = StepRecord(n_steps, self._stored_obs())
        for t in range(n_steps):
            self._step(steps, t)
        self.n_sent += steps.rewards.size
        return Trajectory(
            actor=self.index,
            life=self.life,
            n_sent=self.n_sent,
            version=self.version,
            observations=steps.observations,
            next_observations=self._stored_obs(),
            final_observations={key: np.array(arrays) for key, arrays in steps.final_observations.items()},
            actions=steps.actions,
            rewards=steps.rewards,
            dones=steps.dones,
            timeouts=steps.timeouts,
            episode_starts=steps.episode_starts,
            valid=steps.valid,
            td_errors=self._td_errors(steps) if self.spec.with_td_errors else None,
            state_mask=steps.state_mask,
            core_states=tuple(np.concatenate(fields) for fields in zip(*steps.core_states, strict=True)),
            infos=steps.infos,
        )

    def _step(self, steps: StepRecord, t: int) -> None:
        """Step t of a trajectory."""
        n_envs = self.env.num_envs
        for key, array in self._stored_obs().items():
            steps.observations[key][t] = array
        steps.episode_starts[t] = self._episode_steps == 0
        if self.spec.stored_state:
            due = is_window_start(self._episode_steps, self.spec.burn_in_length, self.spec.sequence_period)
            if due.any():
                steps.state_mask[t] = due
                steps.core_states.append([field.cpu().numpy()[due] for field in self._state])

        explore = self.rng.random(n_envs) < self.epsilons
        random_actions = self.rng.integers(self.q_net.action_space.n, size=n_envs)
        actions = np.where(explore, random_actions, self._q_values.argmax(axis=1))
        steps.actions[t] = actions
        steps.q_values[t] = self._q_values[np.arange(n_envs), actions]

        self._obs, rewards, dones, infos = self.env.step(actions)
        steps.rewards[t] = rewards if self._vec_normalize is None else self._vec_normalize.get_original_reward()
        steps.dones[t] = dones
        final_values = np.zeros(n_envs, np.float32)
        if dones.any():
            steps.valid[t] = [FAILURE not in info for info in infos]
            steps.timeouts[t] = [info.get("TimeLimit.truncated", False) for info in infos] & steps.valid[t]
            for k in np.flatnonzero(dones & steps.valid[t]):
                steps.infos[t, int(k)] = {key: infos[k][key] for key in INFO_KEYS if key in infos[k]}
            if steps.timeouts[t].any():
                final_values = self._final_values(steps, t, infos)
        self._advance(dones)
        steps.next_values[t] = np.where(dones, final_values, self._q_values.max(axis=1))

    def close(self) -> None:
        """Close the environments, if they are its own."""
        if self.spec.env_fns:
            self.env.close()

    def _begin(self) -> None:
        self.env.seed(int(self.rng.integers(2**31)))
        self._obs = self.env.reset()
        n_envs = self.env.num_envs
        self._episode_steps = np.full(n_envs, -1)
        self._next_state: CoreState = self.q_net.initial_state(n_envs)
        self._advance(np.ones(n_envs, bool))

    def _advance(self, dones: np.ndarray) -> None:
        """Make state and Q-values those of the observation at hand."""
        self._episode_steps = np.where(dones, 0, self._episode_steps + 1)
        self._state = self._next_state
        with th.no_grad():
            if dones.any():
                self._state = self.q_net.reset_rows(self._state, th.as_tensor(dones, device=self._device))
            self._q_values, self._next_state = self._look(self._obs, self._state)

    def _look(self, obs: Any, state: CoreState) -> tuple[np.ndarray, CoreState]:
        tensor, _ = self.q_net.obs_to_tensor(obs)
        q_values, next_state = self.q_net(tensor, state)
        return q_values.cpu().numpy(), next_state

    def _final_values(self, steps: StepRecord, t: int, infos: list[dict[str, Any]]) -> np.ndarray:
        """Values of the last observations of truncated episodes, which are noted down; ``[K]``, valid in their rows."""
        obs = {key: array.copy() for key, array in as_dict(self._obs).items()}
        for k in np.flatnonzero(steps.timeouts[t]):
            final = infos[k]["terminal_observation"]
            for key, array in as_dict(final).items():
                obs[key][k] = array
            if self._vec_normalize is not None:
                final = self._vec_normalize.unnormalize_obs(final)
            for key, array in as_dict(final).items():
                steps.final_observations[key].append(array)
        is_dict = isinstance(self.env.observation_space, spaces.Dict)
        with th.no_grad():
            return self._look(obs if is_dict else obs[SINGLE_KEY], self._next_state)[0].max(axis=1)

    def _stored_obs(self) -> dict[str, np.ndarray]:
        """The observation at hand as the replay keeps it: before VecNormalize."""
        return as_dict(self._obs if self._vec_normalize is None else self._vec_normalize.get_original_obs())

    def _td_errors(self, steps: StepRecord) -> np.ndarray:
        discounts = self.spec.gamma * (1 - (steps.dones & ~steps.timeouts)).astype(np.float32)
        starts = steps.episode_starts | ~steps.valid
        # The learner's rewards: the replay keeps them as they were, and normalizes those that are drawn
        rewards = steps.rewards if self._vec_normalize is None else self._vec_normalize.normalize_reward(steps.rewards)
        values = steps.q_values, rewards, discounts, steps.next_values
        return acting_td_errors(*values, starts, **self.spec.return_kwargs)
