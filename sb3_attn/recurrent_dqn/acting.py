"""Acting with a memory, and storing what happened."""

import warnings
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_attn.common.exploration import ape_x_epsilons
from sb3_attn.recurrent_dqn.checkpoints import Checkpoints
from sb3_attn.recurrent_dqn.masking import current_masks, following_masks, is_masked, keep_final_masks, replace_randomly
from sb3_attn.recurrent_dqn.nan_checks import check_finite
from sb3_attn.recurrent_dqn.policies import RecurrentDQNPolicy
from sb3_attn.recurrent_dqn.step_checks import WAS_RESET, ResetWatch, check_observations, missing_final_observations
from sb3_attn.replay import SequenceReplayBuffer
from sb3_attn.replay.observation_store import with_masks
from sb3_attn.replay.sequence_buffer import take_rows


class Acting(Checkpoints):
    """Base of ``RecurrentDQN``: its steps in the environments, and ``predict``."""

    policy: RecurrentDQNPolicy
    per_env_epsilons: bool
    exploration_rate: float
    #: max_a Q of the current observations, as acting computed them, ``[n_envs]``
    _step_values: np.ndarray | None = None
    #: Which actions are valid at the current observations, ``[n_envs, M]``; ``None`` without masks
    _action_masks: np.ndarray | None = None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        # If a callback ended the last `learn()` between a step of the environments and its storage, `_last_obs` is one step
        # behind. Without a `_last_obs`, SB3 resets the environments
        if self._step_states is not None or self._was_reset():
            self._step_states, self._last_obs = None, None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        assert self.env is not None and self._last_obs is not None, "SB3 has reset the environment"
        self._reset_watch = ResetWatch(self.env)
        check_observations(self.env, self._last_obs, self.num_timesteps)
        check_finite("observation", self._last_obs, self.num_timesteps)
        if is_masked(self.env, self.use_masking):
            keep_final_masks(self.env)
        self._action_masks = self._current_masks()
        return result

    def _current_masks(self) -> np.ndarray | None:
        """Masks of the actions that are valid now, ``[n_envs, M]``; ``None`` if masks are not used."""
        assert self.env is not None, "You must set the environment before calling learn()"
        if not self.use_masking:
            return None
        return current_masks(self.env, self.q_net.components.nvec, f"at step {self.num_timesteps}")

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._was_reset():
            warnings.warn(WAS_RESET, stacklevel=2)
            self._begin_episodes(np.random.randint(2**31 - 1))
        assert self._last_obs is not None and self._last_episode_starts is not None, "learn() has reset the environment"
        with th.no_grad():
            obs, _ = self.policy.obs_to_tensor(self._last_obs)
            state = self.q_net.initial_state(n_envs) if self._core_state is None else self._core_state
            if self._last_episode_starts.any():
                state = self.q_net.reset_rows(state, th.as_tensor(self._last_episode_starts, device=self.device))
            q_values, next_state = self.q_net(obs, state)
        if self._action_masks is not None:
            q_values = self.q_net.components.mask(q_values, th.as_tensor(self._action_masks, device=self.device))
        step_values, greedy_actions = self.q_net.components.best(q_values)
        self._step_states, self._step_values = (state, next_state), step_values.cpu().numpy()
        # Epsilon comes after the forward pass: the memory must see every observation, even where the action is random
        if self.num_timesteps < learning_starts:
            explore = np.ones(n_envs, dtype=bool)
        else:
            epsilons = ape_x_epsilons(n_envs) if self.per_env_epsilons else self.exploration_rate
            explore = np.random.rand(n_envs) < epsilons
        greedy = greedy_actions.cpu().numpy().astype(self.action_space.dtype, copy=False)
        actions = replace_randomly(greedy, explore, self.action_space, self._action_masks)
        return actions, actions  # for the environments and for the buffer

    def _store_transition(
        self,
        replay_buffer: SequenceReplayBuffer,  # type: ignore[override]
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        assert self._step_states is not None and self._step_values is not None, "_sample_action() comes first"
        assert self._last_episode_starts is not None, "learn() has reset the environment"
        if self._was_reset():
            return  # by a callback after this step, whose original observations VecNormalize no longer has
        state, next_state = self._step_states
        dones = dones.astype(bool, copy=False)  # a SubprocVecEnv returns what its environments do
        masks, self._action_masks = self._action_masks, self._current_masks()
        next_masks = None
        if self._action_masks is not None:
            next_masks = following_masks(self._action_masks, dones, infos, self.q_net.components.nvec)
        timeouts, stored = np.zeros_like(dones), np.ones_like(dones)
        if dones.any() and replay_buffer.handle_timeout_termination:
            timeouts = dones & [info.get("TimeLimit.truncated", False) for info in infos]
            stored = ~missing_final_observations(timeouts, infos, self.use_masking)

        def add(obs: Any, next_obs: Any, *rest: Any) -> None:
            step = (with_masks(obs, masks), with_masks(next_obs, next_masks), *rest)
            kwargs: dict[str, Any] = dict(core_state=state, episode_starts=self._last_episode_starts)
            if not stored.all():
                rows = np.flatnonzero(stored)
                step, kwargs = take_rows(step, rows), take_rows(kwargs, rows) | {"env_indices": rows}
            replay_buffer.add(*step, **kwargs)

        # SB3's own method handles VecNormalize and final observations, then calls `replay_buffer.add`. Only that call has to
        # know of memory and masks, so it gets an object whose `add` already has them.
        recorder = cast(ReplayBuffer, SimpleNamespace(add=add))
        super()._store_transition(recorder, buffer_action, new_obs, reward, dones, list(infos))
        # Only now, so that a step that is never stored, because a callback ended training, does not advance the memory either
        self.return_scale.update(reward, self._last_episode_starts)
        self.diagnostics.add_step(self._step_values, reward, dones, timeouts, self._last_episode_starts)
        self._core_state, self._step_states = next_state, None
        self._last_episode_starts = dones

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Epsilon-greedy actions, given observations and the memory of the steps before them.

        :param observation: ``[B, ...]``, or a single observation
        :param state: the state that the last call returned; ``None`` at the start of all episodes
        :param episode_start: whether the observation is an episode's first, so that the memory is reset, bool ``[B]``
        :param deterministic: whether to take greedy actions only; the memory advances either way
        :param action_masks: True on valid actions, or choices of all components, ``[B, M]``; ``None`` means that all are
        :return: the actions, and the memory after the step as numpy arrays, batch axis first
        :raises ValueError: if the observation has a NaN or an infinity, or the arguments do not fit each other
        """
        if self.use_masking and action_masks is None:
            warnings.warn(
                "predict() was called without action_masks, so it may take invalid actions; evaluate with sb3_contrib's "
                "MaskableEvalCallback or maskable.evaluation.evaluate_policy.",
                stacklevel=2,
            )
        actions, state = self.policy.predict(observation, state, episode_start, deterministic, action_masks)
        if not deterministic:
            components = self.q_net.components
            rows = actions.shape[: actions.ndim - len(components.action_shape)]
            explore = np.asarray(np.random.rand(*rows) < self.exploration_rate)
            masks = None if action_masks is None else np.reshape(action_masks, (-1, sum(components.nvec)))
            actions = replace_randomly(actions, explore, self.action_space, masks)
        return actions, state

    def _begin_episodes(self, seed: int) -> None:
        super()._begin_episodes(seed)  # acting resets its memory where episodes start
        self._step_states = None
        self._action_masks = self._current_masks()

    def _excluded_save_params(self) -> list[str]:
        # The memory of running episodes, which a loaded model does not continue
        of_episodes = ["_core_state", "_step_states", "_step_values", "_action_masks", "_reset_watch"]
        return [*super()._excluded_save_params(), *of_episodes]
