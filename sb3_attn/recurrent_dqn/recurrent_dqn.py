"""Deep Q-learning with a memory: the algorithm and its update."""

import math
import threading
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule
from stable_baselines3.common.utils import ConstantSchedule
from stable_baselines3.dqn import DQN

from sb3_attn.common import td
from sb3_attn.common.exploration import ape_x_epsilons
from sb3_attn.common.former_names import accept_former_arguments, rename_attributes
from sb3_attn.recurrent_dqn.acting import Acting
from sb3_attn.recurrent_dqn.arguments import ArgumentChecks, MultiDiscreteActions, refuse_misplaced_arguments
from sb3_attn.recurrent_dqn.darqn import DARQNPolicy
from sb3_attn.recurrent_dqn.diagnostics import Diagnostics
from sb3_attn.recurrent_dqn.heads import expected_values
from sb3_attn.recurrent_dqn.masking import is_masked
from sb3_attn.recurrent_dqn.nan_checks import StepGuard, check_finite_update
from sb3_attn.recurrent_dqn.networks import RecurrentQNetwork
from sb3_attn.recurrent_dqn.policies import (
    CnnPolicy,
    FrozenFeaturesPolicy,
    ImpalaPolicy,
    MlpPolicy,
    MultiInputPolicy,
    RecurrentDQNPolicy,
)
from sb3_attn.recurrent_dqn.return_scale import ReturnScale
from sb3_attn.recurrent_dqn.stopping import save_checkpoints, stop_request
from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer, SequenceReplayBufferSamples
from sb3_attn.version import __version__

#: From the former name of an argument to the present one, for the zips and YAML files of earlier versions
FORMER_ARGUMENTS = {"bootstrap_n": "n_steps", "epsilon_ladder": "per_env_epsilons"}

#: Defaults of the policy as they were when models had no ``package_version``
FORMER_POLICY_DEFAULTS = {"net_arch": [64], "ema_decay": 0.0}

#: By default a batch has as many windows as make up this many trained steps, padding included, but at most that many windows
STEPS_PER_BATCH, MAX_WINDOWS_PER_BATCH = 1024, 64

#: Number of steps of single environments for each gradient step, by default
STEPS_PER_UPDATE = 10

SelfRecurrentDQN = TypeVar("SelfRecurrentDQN", bound="RecurrentDQN")


class RecurrentDQN(ArgumentChecks, Acting, DQN, MultiDiscreteActions):
    """
    Deep recurrent Q-network: DQN for partially observable environments.

    DRQN (Hausknecht & Stone 2015, https://arxiv.org/abs/1507.06527) with the additions of R2D2 (Kapturowski et al. 2019,
    https://openreview.net/forum?id=r1lyTjAqYX), each of which has a switch of its own, and soft Watkins Q(lambda).

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param buffer_size: number of steps in the replay buffer
    :param learning_starts: number of steps to collect before learning starts
    :param batch_size: number of windows in a gradient update; ``None`` means 1024 trained steps: 8 windows of 128, or more
        where all episodes are shorter, but at most 64
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1) default 1 for hard update
    :param gamma: the discount factor
    :param train_freq: Update the model every ``train_freq`` steps of the vectorized environment. Alternatively pass a tuple of
        frequency and unit like ``(5, "step")`` or ``(2, "episode")``. Given neither this nor ``gradient_steps``, there is one
        gradient step per 10 steps of single environments, however many there are; given one, the other is DQN's (4 or 1)
    :param gradient_steps: How many gradient steps to do after each rollout; ``-1`` means as many as steps done
    :param replay_buffer_class: a ``SequenceReplayBuffer`` class; ``None`` means the one that fits ``prioritized_replay``
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param optimize_memory_usage: accepted because DQN has it; changes nothing, since each observation is stored once anyway
    :param target_update_interval: update the target network every ``target_update_interval`` environment steps.
    :param exploration_fraction: fraction of entire training period over which the exploration rate is reduced
    :param exploration_initial_eps: initial value of random action probability
    :param exploration_final_eps: final value of random action probability
    :param max_grad_norm: The maximum value for the gradient clipping
    :param double_q: let the online network choose the next action, and the target network value it (van Hasselt et al. 2016)
    :param clipped_double_q: give that action the smaller of both networks' values, which keeps targets from chasing their own
        overestimates (after Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477, eq. 10, who take two target networks).
        ``None`` means the value of ``double_q``. Munchausen's targets have neither
    :param n_steps: number of rewards before the bootstrap, if ``td_lambda`` is ``None``
    :param td_lambda: learn from Q(lambda) over the window; ``None`` means n-step returns
    :param trace_tolerance: a lambda return goes on after an action whose value is below the greedy one's by at most this
        fraction of it: soft Watkins Q(lambda) (Kapturowski et al. 2022). 0 means Watkins's, ``None`` Peng's, never cut
    :param value_rescaling: learn h(Q) instead of Q (see ``sb3_attn.common.td.signed_hyperbolic``)
    :param trace_length: number of trained steps in a window; ``None`` means whole episodes
    :param burn_in_length: largest number of steps before the trained ones that only warm up the memory, without gradient
        unless the policy has ``burn_in_gradient``; ``None`` means 40, or 0 for whole episodes, which have no steps before them
    :param sequence_period: distance between the starts of two trained parts; ``None`` means ``trace_length``
    :param stored_state: start a window from the state that was stored while acting, rather than from the initial state
    :param prioritized_replay: draw windows in proportion to a power of their TD errors
    :param per_env_epsilons: a constant epsilon for each environment (see ``sb3_attn.common.exploration.ape_x_epsilons``)
        instead of the schedule; ``predict(deterministic=False)`` then explores with the smallest of them
    :param reward_scaling: divide values, inside the network, by four standard deviations of the returns so far, so that
        learning does not depend on the unit of the rewards; Q-values keep that unit. ``None`` means the opposite of
        ``value_rescaling``
    :param munchausen_alpha: weight of the log-probability of the action taken, which Munchausen DQN adds to the reward
        (Vieillard et al. 2020, who have 0.9); 0 means DQN
    :param munchausen_temperature: temperature of the policy that has these probabilities, in the unit of the rewards
    :param use_masking: whether acting, targets and replay are restricted to the actions that the environments' method
        ``action_masks()`` declares valid, as in sb3-contrib's MaskablePPO; ``None`` means ``True`` if the environments that
        the model is made with have this method
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments for the policy: ``core``, ``core_kwargs``, ``net_arch``, ...
        (see ``sb3_attn.recurrent_dqn.policies.RecurrentDQNPolicy``)
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if arguments are out of range or contradict each other; the sentence says what to change
    :raises TypeError: if an argument of the policy, or of another algorithm, is given
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "ImpalaPolicy": ImpalaPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        # sb3-contrib's names for its recurrent policies
        "MlpLstmPolicy": MlpPolicy,
        "CnnLstmPolicy": CnnPolicy,
        "MultiInputLstmPolicy": MultiInputPolicy,
        "DARQNPolicy": DARQNPolicy,
        "FrozenFeaturesPolicy": FrozenFeaturesPolicy,
    }
    former_arguments: ClassVar[Mapping[str, str]] = FORMER_ARGUMENTS
    former_defaults: ClassVar[Mapping[str, Any]] = {
        "clipped_double_q": False,
        "reward_scaling": False,
        "trace_tolerance": None,
        "use_masking": False,
    }
    #: Whether ``train_freq`` and ``gradient_steps`` follow from the number of environments; ``False`` in zips too old to say
    default_frequency = False
    #: Version of this package that made the model; ``None`` if its zip is too old to say
    package_version: str | None = None
    #: Whether ``learn()`` is to end, while it runs
    _stop: threading.Event | None = None
    q_net: RecurrentQNetwork
    q_net_target: RecurrentQNetwork
    policy: RecurrentDQNPolicy
    replay_buffer: SequenceReplayBuffer

    @accept_former_arguments(**FORMER_ARGUMENTS)
    @refuse_misplaced_arguments
    def __init__(
        self,
        policy: str | type[RecurrentDQNPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 100_000,
        learning_starts: int = 1000,
        batch_size: int | None = None,
        tau: float = 1.0,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] | None = None,
        gradient_steps: int | None = None,
        replay_buffer_class: type[SequenceReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        target_update_interval: int = 1000,
        exploration_fraction: float = 0.2,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        max_grad_norm: float = 10,
        double_q: bool = True,
        clipped_double_q: bool | None = None,
        n_steps: int = 1,
        td_lambda: float | None = 0.95,
        trace_tolerance: float | None = 0.01,
        value_rescaling: bool = False,
        trace_length: int | None = 128,
        burn_in_length: int | None = None,
        sequence_period: int | None = None,
        stored_state: bool = True,
        prioritized_replay: bool = False,
        per_env_epsilons: bool = False,
        reward_scaling: bool | None = None,
        munchausen_alpha: float = 0.0,
        munchausen_temperature: float = 0.03,
        use_masking: bool | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        default_frequency = train_freq is None and gradient_steps is None
        if train_freq is None:
            train_freq = 4
        if replay_buffer_class is None:
            replay_buffer_class = PrioritizedSequenceReplayBuffer if prioritized_replay else SequenceReplayBuffer
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,  # type: ignore[arg-type]
            tau,
            gamma,
            tuple(train_freq) if isinstance(train_freq, list) else train_freq,  # YAML has no tuples
            1 if gradient_steps is None else gradient_steps,
            replay_buffer_class,
            replay_buffer_kwargs,
            target_update_interval=target_update_interval,
            exploration_fraction=exploration_fraction,
            exploration_initial_eps=exploration_initial_eps,
            exploration_final_eps=exploration_final_eps,
            max_grad_norm=max_grad_norm,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.double_q = double_q
        self.clipped_double_q = clipped_double_q
        self.n_steps = n_steps
        self.td_lambda = td_lambda
        self.trace_tolerance = trace_tolerance
        self.value_rescaling = value_rescaling
        self.trace_length = trace_length
        if burn_in_length is None:
            burn_in_length = 0 if trace_length is None else 40
        self.burn_in_length = burn_in_length
        self.sequence_period = sequence_period
        self.stored_state = stored_state
        self.prioritized_replay = prioritized_replay
        self.per_env_epsilons = per_env_epsilons
        self.reward_scaling = not value_rescaling if reward_scaling is None else reward_scaling
        self.munchausen_alpha = munchausen_alpha
        self.munchausen_temperature = munchausen_temperature
        self.use_masking = use_masking  # type: ignore[assignment]  # until _setup_model() decides
        self.return_scale = ReturnScale(gamma)
        if _init_setup_model:
            self.default_frequency = default_frequency
            self.package_version = __version__
            self._check_new_model()
            self._setup_model()

    @classmethod
    def load(cls: type[SelfRecurrentDQN], *args: Any, **kwargs: Any) -> SelfRecurrentDQN:
        if kwargs.keys() & {"train_freq", "gradient_steps"}:
            kwargs["default_frequency"] = False
        return super().load(*args, **kwargs)

    @property
    def n_replay_envs(self) -> int:
        return self.n_envs

    def _setup_model(self) -> None:
        rename_attributes(self.__dict__, FORMER_ARGUMENTS)
        if self.package_version is None:
            self.policy_kwargs = FORMER_POLICY_DEFAULTS | self.policy_kwargs
        if self.default_frequency and self.env is not None:  # the smallest numbers with this ratio
            divisor = math.gcd(STEPS_PER_UPDATE, self.n_envs)
            self.train_freq, self.gradient_steps = STEPS_PER_UPDATE // divisor, self.n_envs // divisor
        if self.clipped_double_q is None:
            self.clipped_double_q = self.double_q
        self.use_masking = is_masked(self.env, self.use_masking)
        self._check_arguments()
        if self.replay_buffer is None:  # SB3 would build one without the lengths
            self.replay_buffer = self.replay_buffer_class(
                self.buffer_size,
                self.observation_space,
                self.action_space,
                device=self.device,
                n_envs=self.n_replay_envs,
                trace_length=self.trace_length,
                burn_in_length=self.burn_in_length,
                sequence_period=self.sequence_period,
                stored_state=self.stored_state,
                **({"use_masking": True} if self.use_masking else {}),  # a class of the user's need not know of masks
                **self.replay_buffer_kwargs,
            )
        with warnings.catch_warnings():
            # SB3 warns that a custom replay buffer has to compute n-step returns itself; common/td.py computes them
            warnings.filterwarnings("ignore", "`n_steps=.*` is ignored")
            super()._setup_model()
        self.return_scale.gamma = self.gamma  # which may be another when a model is loaded
        self.return_scale.reset(self.n_replay_envs)
        self.diagnostics = Diagnostics(self.n_replay_envs, self.gamma, self.value_rescaling)
        if self.per_env_epsilons:  # for `predict` and the logs; acting takes all epsilons
            self.exploration_schedule = ConstantSchedule(ape_x_epsilons(self.n_replay_envs)[-1])
        elif self.exploration_fraction == 0:  # by which SB3's schedule divides
            self.exploration_schedule = ConstantSchedule(self.exploration_final_eps)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if not isinstance(callback, list):
            callback = [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
        return super()._init_callback([*self._guards(), *callback], progress_bar)

    def _guards(self) -> list[BaseCallback]:
        """Callbacks that run before the user's, so that a wrong step stops training before any of these saves the model."""
        return [StepGuard()]

    def train(self, gradient_steps: int, batch_size: int | None = 100) -> None:
        if self.replay_buffer.n_windows == 0:
            return  # the first window is not complete yet
        batch_size = self.n_windows_per_batch(batch_size)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self._update_running_scale()

        losses, td_errors = [], []
        for n_updates in range(self._n_updates + 1, self._n_updates + gradient_steps + 1):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)

            # Each network warms up its own memory, then both unroll over the same T + 1 observations. N values of each action,
            # whose mean is its Q-value: [T + 1, B, N, A]
            values, core_state = self.q_net.unroll_values(batch.observations, self.q_net.burn_in(batch))
            with th.no_grad():
                target_values, _ = self.q_net_target.unroll_values(batch.observations, self.q_net_target.burn_in(batch))
                # The online network chooses the next actions; the target network, or the more cautious of both, values them
                selector_values = self._acting_values(batch, values) if self.double_q else target_values
                targets = self._targets(batch, selector_values, target_values)
            chosen_values = self.q_net.components.take(values[:-1], batch.actions)

            # [T, B]. All steps of a window share its importance weight; the division makes the sum a mean over trained steps
            step_losses = self.q_net.head.loss(chosen_values, targets)
            step_losses = batch.importance_weights * th.where(batch.mask, step_losses, 0.0) / batch.mask.sum()
            loss = step_losses.sum()
            losses.append(loss.item())
            check_finite_update("loss", losses[-1], self.num_timesteps, n_updates)

            # A core that samples adds a term for the gradient of its sampling (REINFORCE); all others add 0
            self.policy.optimizer.zero_grad()
            (loss + self.q_net.core.surrogate_loss(step_losses.detach(), batch.mask, core_state)).backward()
            grad_norm = th.nn.utils.clip_grad_norm_(self.q_net.parameters(), self.max_grad_norm)
            check_finite_update("norm of the gradient", grad_norm.item(), self.num_timesteps, n_updates)
            self.policy.optimizer.step()
            self.policy.update_average()
            self.diagnostics.add_update(chosen_values, batch.mask, core_state, grad_norm)

            # Priorities are the errors before this update, as in R2D2: no second forward pass
            td_error = (targets - chosen_values.detach()).mean(dim=-1)
            if isinstance(self.replay_buffer, PrioritizedSequenceReplayBuffer):
                priorities = td.sequence_priority(td_error / self.q_net.head.running_scale, batch.mask)
                self.replay_buffer.update_priorities(batch, priorities.cpu().numpy())
            td_errors.append(td_error[batch.mask].abs().mean().item())

        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(losses))
        self.logger.record("train/td_error", np.mean(td_errors))

    def _update_running_scale(self) -> None:
        """Give the networks the scale of the returns so far."""
        if self.reward_scaling:
            for net in (self.q_net, self.q_net_target):
                net.head.running_scale.fill_(self.return_scale.value)

    def n_windows_per_batch(self, batch_size: int | None) -> int:
        """
        The number of windows in a gradient update. The replay buffer must hold at least one.

        :param batch_size: this number; ``None`` means as many as have 1024 trained steps if all are as long as the longest
            window in the replay buffer, but at most 64
        :return: at least 1
        """
        return batch_size or min(math.ceil(STEPS_PER_BATCH / self.replay_buffer.longest_window), MAX_WINDOWS_PER_BATCH)

    def _acting_values(self, batch: SequenceReplayBufferSamples, values: th.Tensor) -> th.Tensor:
        """The online network's values as acting computes them, given those of the update; both ``[T + 1, B, N, A]``."""
        if not self.q_net.samples_in_training:
            return values
        # With hard attention, the values of the update are those of sampled regions, but acting takes the most likely regions
        self.q_net.set_training_mode(False)
        values, _ = self.q_net.unroll_values(batch.observations, self.q_net.burn_in(batch))
        self.q_net.set_training_mode(True)
        return values

    def _targets(self, batch: SequenceReplayBufferSamples, selector_values: th.Tensor, target_values: th.Tensor) -> th.Tensor:
        """
        Targets ``[T, B, N]`` for the values of the actions taken.

        :param batch: B windows
        :param selector_values: the values that choose the next actions, ``[T + 1, B, N, A]``
        :param target_values: the values that the chosen actions get, unless clipped double Q is on and the selector's are
            smaller, ``[T + 1, B, N, A]``
        """
        components = self.q_net.components
        if batch.action_masks is not None:
            masks = batch.action_masks.unsqueeze(-2)
            selector_values, target_values = components.mask(selector_values, masks), components.mask(target_values, masks)
        _, next_actions = components.best(expected_values(selector_values[1:]))
        next_values = components.take(target_values[1:], next_actions)
        q_values = components.take(target_values[:-1], batch.actions)
        if self.clipped_double_q:
            next_values = td.smaller_values(next_values, components.take(selector_values[1:], next_actions))
            q_values = td.smaller_values(q_values, components.take(selector_values[:-1], batch.actions))
        td_lambda = td.cut_traces(self.td_lambda, self.trace_tolerance, q_values.mean(dim=-1), next_values.mean(dim=-1))
        rewards = batch.rewards
        if self.munchausen_alpha > 0:
            temperature = self.munchausen_temperature
            bonuses = components.munchausen_bonuses(expected_values(target_values[:-1]), batch.actions, temperature)
            rewards = rewards + self.munchausen_alpha * bonuses
            next_values = components.soft_values(target_values[1:], temperature)
        discounts = (1 - batch.terminations) * self.gamma
        return td.value_targets(rewards, discounts, next_values, batch.mask, self.n_steps, td_lambda, self.value_rescaling)

    @property
    def return_kwargs(self) -> dict[str, Any]:
        """The kind of return, for actors that compute TD errors without the algorithm."""
        return dict(
            n_steps=self.n_steps,
            td_lambda=self.td_lambda,
            trace_tolerance=self.trace_tolerance,
            value_rescaling=self.value_rescaling,
        )

    def dump_logs(self) -> None:
        if self.reward_scaling:
            self.logger.record("train/return_scale", self.return_scale.value)
        self.diagnostics.log_updates(self.logger, self.q_net.core)
        self.diagnostics.log_episodes(self.logger)
        self.diagnostics.log_delta_q(self.logger, self.q_net, self.replay_buffer, self._n_updates, self._vec_normalize_env)
        super().dump_logs()

    def learn(
        self: SelfRecurrentDQN,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "RecurrentDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRecurrentDQN:
        """
        Learn, and end in good order on Ctrl-C, SIGTERM or SIGHUP.

        :param total_timesteps: The total number of environment steps to train
        :param callback: callback(s) called at every step
        :param log_interval: number of episodes between two logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: the trained model
        :raises KeyboardInterrupt: after one of these signals, once the rollout has ended and each ``CheckpointCallback`` has
            written; a second signal ends at once
        """
        with stop_request() as stop:
            self._stop = stop
            try:
                super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
            except (EOFError, ConnectionError):
                if not stop.is_set():  # Ctrl-C also reaches the processes of a SubprocVecEnv, which then end
                    raise
            finally:
                self._stop = None
        if stop.is_set():
            save_checkpoints(callback)
            raise KeyboardInterrupt
        return self

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        if self._stop is not None and self._stop.is_set():
            return RolloutReturn(0, 0, continue_training=False)
        return super().collect_rollouts(*args, **kwargs)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # A rollout may go beyond the last step asked for, where linear schedules would be negative; `learn(0)` asks for none
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), max(total_timesteps, 1))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_stop", "diagnostics"]  # they belong to this process
