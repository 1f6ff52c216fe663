"""R2D2, from one process to many machines."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule, TrainFreq
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn import DQN

from sb3_attn.common.checks import ValueCheck, check_dict, check_number, check_whole, optional
from sb3_attn.common.former_names import accept_former_arguments, rename_attributes
from sb3_attn.common.plain_data import from_json
from sb3_attn.r2d2.actor import Actor, ActorSpec, Parameters, copy_parameters
from sb3_attn.r2d2.actor_checkpoints import ActorCheckpoints
from sb3_attn.r2d2.actors import Actors, LocalActors
from sb3_attn.r2d2.collection import Collection, StepLedger
from sb3_attn.r2d2.environments import MonitorFiles, env_fns_of, to_vec_env
from sb3_attn.r2d2.settings import (
    PAPER_SEQUENCE_PERIOD,
    fitted_period,
    settings_arguments,
    with_default_policy_kwargs,
    with_settings,
)
from sb3_attn.r2d2.trajectory import Trajectory
from sb3_attn.recurrent_dqn import RecurrentDQN, RecurrentDQNPolicy
from sb3_attn.recurrent_dqn.arguments import refuse_foreign_arguments, refuse_misplaced_arguments
from sb3_attn.recurrent_dqn.recurrent_dqn import FORMER_ARGUMENTS as FORMER_RECURRENT_DQN_ARGUMENTS
from sb3_attn.recurrent_dqn.recurrent_dqn import STEPS_PER_UPDATE
from sb3_attn.recurrent_dqn.stopping import save_checkpoints, stop_request
from sb3_attn.version import __version__

BACKENDS = ("sync", "ray")

#: End of the sentence about a bad ``samples_per_insert``
UNLESS_NONE = "; None means one update per 10 environment steps"

FORMER_ARGUMENTS = {**FORMER_RECURRENT_DQN_ARGUMENTS, "weights_period": "actor_update_interval"}
FORMER_ATTRIBUTES = {**FORMER_ARGUMENTS, "n_inserted": "n_windows_inserted", "n_sampled": "n_windows_sampled"}

SelfR2D2 = TypeVar("SelfR2D2", bound="R2D2")


class R2D2(ActorCheckpoints):
    """
    Recurrent Replay Distributed DQN (Kapturowski et al. 2019, https://openreview.net/forum?id=r1lyTjAqYX).

    Actors step environments, each with its own copy of the policy, and send trajectories; the learner keeps the replay,
    trains, and gives the actors new parameters. The defaults are the paper's, except for ``samples_per_insert``,
    ``learning_starts`` and ``max_grad_norm``: a paper with 256 actors does not say what suits a few. ``settings="small"``
    replaces them with defaults for tasks that one machine learns in minutes (see ``sb3_attn.r2d2.settings``).

    With ``n_actors=0`` the same code steps the learner's own environments. With ``backend="sync"`` all actors run in the
    learner's process, one after the other; with ``"ray"`` each has its own process, on this machine or others.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, DARQNPolicy)
    :param env: The environment to learn from: an id, a factory of one environment, an environment or a VecEnv. Actors
        create their own copies, so it must be possible to pickle it.
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param buffer_size: number of steps in the replay buffer; the paper's 4,000,000 take 28 GB with images
    :param learning_starts: how many steps to collect before learning starts
    :param batch_size: number of windows in a gradient update; ``None`` means 1024 trained steps, from
        at most 64 windows
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1) default 1 for hard update
    :param gamma: the discount factor
    :param replay_buffer_class: a ``SequenceReplayBuffer``; ``None`` means the one that fits ``prioritized_replay``
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param target_update_interval: update the target network every ``target_update_interval`` gradient updates
        (``RecurrentDQN`` counts environment steps)
    :param max_grad_norm: The maximum value for the gradient clipping
    :param double_q: choose the next action by the online network (van Hasselt et al. 2016)
    :param clipped_double_q: give that action the smaller of the two networks' values; ``None`` means the value of ``double_q``
    :param n_steps: number of rewards before the bootstrap, if ``td_lambda`` is ``None``
    :param td_lambda: learn from Q(lambda) over the window; ``None`` means n-step returns
    :param trace_tolerance: a lambda return goes on after an action whose value is below the greedy one's by at most this
        fraction of it; 0 means Watkins's Q(lambda), ``None`` Peng's
    :param value_rescaling: learn h(Q) instead of Q (see ``sb3_attn.common.td.signed_hyperbolic``)
    :param reward_scaling: divide values by four standard deviations of the returns so far instead. ``None`` means the opposite
        of ``value_rescaling``
    :param munchausen_alpha: weight of the log-probability of the action taken, which Munchausen DQN adds to the reward; 0
        means DQN. The initial priorities of windows leave it out
    :param munchausen_temperature: temperature of the policy that has these probabilities, in the unit of the rewards
    :param use_masking: whether acting, targets and replay are restricted to the actions that the environments' method
        ``action_masks()`` declares valid, as in sb3-contrib's MaskablePPO; ``None`` means ``True`` if they have this method
    :param trace_length: number of trained steps in a window; ``None`` means whole episodes
    :param burn_in_length: largest number of steps before the trained ones that only warm up the memory, without gradient
        unless the policy has ``burn_in_gradient``; ``None`` means 40, or 0 for whole episodes
    :param sequence_period: distance between the first trained steps of two windows; ``None`` means ``trace_length``. So does
        the default of 40 if ``trace_length`` is shorter, or ``None``
    :param stored_state: start a window from the state that was stored while acting, rather than from the initial state
    :param prioritized_replay: sample windows in proportion to their TD errors; a new window has those of its actor
    :param per_env_epsilons: a constant epsilon for each environment of all actors (see
        ``sb3_attn.common.exploration.ape_x_epsilons``); ``predict(deterministic=False)`` explores with the smallest of them.
        Otherwise all have that of the schedule below, which actors get together with new parameters
    :param exploration_fraction: fraction of entire training period over which the exploration rate is reduced
    :param exploration_initial_eps: initial value of random action probability
    :param exploration_final_eps: final value of random action probability
    :param n_actors: number of actors; 0 means that the learner acts itself
    :param envs_per_actor: number of environments of each actor; ``None`` means as many as ``env`` has, or 8 if it is an id
        or a factory
    :param samples_per_insert: how often a window is sampled on average; the ratio holds from ``learning_starts`` on. ``None``
        means one gradient update per 10 environment steps, as in ``RecurrentDQN``, however long the windows are
    :param backend: where actors run, ``"sync"`` or ``"ray"``
    :param rollout_length: number of steps of each environment in a trajectory
    :param actor_update_interval: number of its environment steps after which an actor gets new parameters, at the earliest
    :param max_env_restarts: number of failures of an actor's environment that are tolerated
    :param backend_kwargs: further arguments of the backend, see ``sb3_attn.distributed.RayActors``
    :param settings: ``"paper"`` or ``"small"``: the defaults of all other arguments. Arguments that are given take precedence,
        and so do single entries of ``policy_kwargs``
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments for the policy. The defaults are the paper's: an LSTM of 512, a head of 512,
        Adam with an epsilon of 1e-3, no average of the parameters. That epsilon is large where rewards are about 1: small
        tasks learned with 1e-8 only. With ``settings="small"`` they are the policy's own
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the learner should be run.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if arguments are out of range or contradict each other; the sentence says what to change
    :raises TypeError: if an argument of the policy, or of another algorithm, is given
    :raises ModuleNotFoundError: if actors are to run on Ray, and it is not installed
    """

    former_arguments = FORMER_ARGUMENTS
    value_checks: ClassVar[Mapping[str, ValueCheck]] = {
        **RecurrentDQN.value_checks,
        "n_actors": partial(check_whole, at_least=0),
        "rollout_length": partial(check_whole, at_least=1),
        "actor_update_interval": partial(check_number, low=1),
        "samples_per_insert": optional(partial(check_number, low=0, positive=True, otherwise=UNLESS_NONE)),
        "max_env_restarts": partial(check_whole, at_least=0),
        "backend_kwargs": check_dict,
    }

    @accept_former_arguments(**FORMER_ARGUMENTS)
    @refuse_misplaced_arguments
    @with_settings
    def __init__(
        self,
        policy: str | type[RecurrentDQNPolicy],
        env: GymEnv | str | Callable[[], gym.Env],
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 4_000_000,
        learning_starts: int = 10_000,
        batch_size: int | None = 64,
        tau: float = 1.0,
        gamma: float = 0.997,
        replay_buffer_class: type | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        target_update_interval: int = 2500,
        max_grad_norm: float = 40.0,
        double_q: bool = True,
        clipped_double_q: bool | None = False,
        n_steps: int = 5,
        td_lambda: float | None = None,
        trace_tolerance: float | None = 0.01,
        value_rescaling: bool = True,
        reward_scaling: bool | None = False,
        munchausen_alpha: float = 0.0,
        munchausen_temperature: float = 0.03,
        use_masking: bool | None = None,
        trace_length: int | None = 80,
        burn_in_length: int | None = None,
        sequence_period: int | None = PAPER_SEQUENCE_PERIOD,
        stored_state: bool = True,
        prioritized_replay: bool = True,
        per_env_epsilons: bool = True,
        exploration_fraction: float = 0.2,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        n_actors: int = 0,
        envs_per_actor: int | None = None,
        samples_per_insert: float | None = 4.0,
        backend: str = "sync",
        rollout_length: int = 80,
        actor_update_interval: int = 400,
        max_env_restarts: int = 10,
        backend_kwargs: dict[str, Any] | None = None,
        settings: str = "paper",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            to_vec_env(env, envs_per_actor),  # type: ignore[arg-type]
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            target_update_interval=target_update_interval,
            max_grad_norm=max_grad_norm,
            double_q=double_q,
            clipped_double_q=clipped_double_q,
            n_steps=n_steps,
            td_lambda=td_lambda,
            trace_tolerance=trace_tolerance,
            value_rescaling=value_rescaling,
            reward_scaling=reward_scaling,
            munchausen_alpha=munchausen_alpha,
            munchausen_temperature=munchausen_temperature,
            use_masking=use_masking,
            trace_length=trace_length,
            burn_in_length=burn_in_length,
            sequence_period=fitted_period(trace_length, sequence_period),
            stored_state=stored_state,
            prioritized_replay=prioritized_replay,
            per_env_epsilons=per_env_epsilons,
            exploration_fraction=exploration_fraction,
            exploration_initial_eps=exploration_initial_eps,
            exploration_final_eps=exploration_final_eps,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=with_default_policy_kwargs(policy_kwargs, settings),
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.n_actors = n_actors
        self.samples_per_insert = samples_per_insert
        self.backend = backend
        self.rollout_length = rollout_length
        self.actor_update_interval = actor_update_interval
        self.max_env_restarts = max_env_restarts
        self.backend_kwargs = backend_kwargs or {}
        #: Number of steps received since learning started
        self.n_steps_since_start = 0
        #: Numbers of windows inserted since learning started, and sampled
        self.n_windows_inserted = self.n_windows_sampled = 0
        if _init_setup_model:
            self.package_version = __version__
            self._check_new_model()
            self._setup_model()

    @property
    def n_replay_envs(self) -> int:
        return self.n_envs * max(self.n_actors, 1)

    @property
    def step_ledger(self) -> StepLedger:
        """The steps that actors have sent in the current or last ``learn()``, and what became of them."""
        return StepLedger() if self._collection is None else self._collection.ledger

    @classmethod
    def load(cls: type[SelfR2D2], *args: Any, **kwargs: Any) -> SelfR2D2:
        # The zip holds all arguments. Only those of the policy are completed here, because SB3 compares them with the zip's
        settings = kwargs.pop("settings", "paper")
        settings_arguments(settings)
        refuse_foreign_arguments(kwargs, ("train_freq", "gradient_steps"))  # the zip has them, but nothing reads them
        if "policy_kwargs" in kwargs:
            kwargs["policy_kwargs"] = with_default_policy_kwargs(kwargs["policy_kwargs"], settings)
        model = super().load(*args, **kwargs)
        # Another ratio is that of what comes, so that no updates are due for what came before
        if "samples_per_insert" in kwargs:
            if model.samples_per_insert is None:
                model.n_steps_since_start = model._n_updates * STEPS_PER_UPDATE
            else:
                model.n_windows_sampled = round(model.samples_per_insert * model.n_windows_inserted)
        return model

    def _setup_model(self) -> None:
        rename_attributes(self.__dict__, FORMER_ATTRIBUTES)
        with warnings.catch_warnings():  # DQN's, of a target_update_interval that counts environment steps
            warnings.filterwarnings("ignore", "The number of environments used is greater than the target network")
            super()._setup_model()
        self._update_running_scale()  # tiny in a new model, so that its first values are negligible beside the rewards
        if self.per_env_epsilons:
            self.exploration_rate = self.exploration_schedule(1.0)

    def _check_arguments(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={self.backend!r} must be one of {BACKENDS}.")
        if self.backend == "sync" and self.backend_kwargs:
            raise ValueError(f"backend_kwargs={self.backend_kwargs}, but backend='sync' takes none; leave them out.")
        if self.n_actors > 0 and self.env is not None:  # a model that is loaded without environments needs no actors
            env_fns_of(self.env)
            if self.backend == "ray":
                _ray_backend().check_options(**self.backend_kwargs)
        super()._check_arguments()

    def learn(
        self: SelfR2D2,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "R2D2",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfR2D2:
        """
        Learn, and check at the end that no step was lost or stored twice.

        :param total_timesteps: The total number of steps to receive from actors
        :param callback: callback(s) called in the learner's process, for every ``n_envs`` steps received; their ``locals``
            have new_obs, rewards, dones and, where episodes ended, infos
        :param log_interval: number of episodes between two logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: the trained model
        :raises KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once all trajectories on the way are stored and
            checkpoints are written
        """
        if reset_num_timesteps or self._was_reset():
            self._last_obs = None  # SB3 resets the environments, so no episodes go on
        with closing(self._make_actors(None if self._last_obs is None else self._resumed)) as actors:
            self._resumed = None
            with stop_request() as stop:  # Ray sets signal handlers of its own, so ours come after the actors
                monitor_files = MonitorFiles(self.get_env())  # type: ignore[arg-type]
                collection = Collection(actors, self.replay_buffer, monitor_files, stop, self._n_updates)
                self._collection = collection
                try:
                    # Not RecurrentDQN's, which would handle the signals itself, before the trajectories on the way are stored
                    DQN.learn(self, total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
                    for trajectory in actors.drain():
                        self._insert(collection, trajectory)
                    if self.n_actors == 0:
                        (self._previous,) = self._running_actors()
                        self._last_obs = self._previous.obs
                except (EOFError, ConnectionError):
                    if not stop.is_set():  # Ctrl-C also reaches the processes of a SubprocVecEnv, which then end
                        raise
                    actors.close()  # no checkpoint can go on from the middle of a step
            collection.ledger.check()
            if stop.is_set():
                save_checkpoints(callback)
                raise KeyboardInterrupt
        return self

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(*args, **kwargs)
        # Actors act many steps before the first update of the progress, which is still that of the end of the last learn()
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        return result

    def _guards(self) -> list[BaseCallback]:
        return []  # trajectories are checked for NaN as they arrive, before anything of them is stored

    def _make_actors(self, episodes: dict[str, Any] | None = None) -> Actors:
        """Make the actors of ``learn()``; those in this process go on with the episodes of a checkpoint, if given."""

        @lru_cache(maxsize=1)  # one copy serves all actors
        def copy(tensor_versions: tuple[int, ...], *args: Any) -> Parameters:
            return copy_parameters(self.q_net, *args)

        def latest_parameters() -> Parameters:
            # A callback may set other parameters between two updates; torch counts the changes of each tensor
            tensor_versions = tuple(tensor._version for tensor in self.q_net.state_dict().values())
            return copy(tensor_versions, self._n_updates, None if self.per_env_epsilons else self.exploration_rate)

        spec, args = self.actor_spec(), (latest_parameters, self.rollout_length, self.actor_update_interval)
        if self.n_actors == 0:
            assert self.env is not None, "actor_spec() has checked it"
            previous, self._previous = next(iter(self._running_actors()), None), None
            if previous is None:
                self._last_obs = None  # SB3 resets the environments, once; they may not be reset a second time
            if self.seed is not None or self._actors_seed is not None:
                self.env.seed(spec.random_streams(0)[0])
            actors = [Actor(spec, 0, self.env, lambda: self._last_obs, previous, device=self.device)]
        elif self.backend == "sync":
            actors = [Actor(spec, index, device=self.device) for index in range(self.n_actors)]
        else:
            return _ray_backend().RayActors(spec, *args, **self.backend_kwargs)
        local = LocalActors(actors, *args)
        if self._actors_seed is not None:  # there has been a checkpoint
            local.begin_round(self._turn())
        try:
            if episodes is not None and local.resume(episodes["actors"]):
                vars(self.return_scale).update(from_json(episodes["model"])["return_scale"])
        except ValueError:
            local.close()
            raise
        return local

    def actor_spec(self) -> ActorSpec:
        """
        Describe the actors of this model.

        :return: all that an actor needs to know
        :raises ValueError: if actors cannot create environments like these
        """
        assert self.env is not None, "You must set the environment before calling learn()"
        return ActorSpec(
            env_fns=env_fns_of(self.env) if self.n_actors else [],
            n_actors=max(self.n_actors, 1),
            policy_class=self.policy_class,  # type: ignore[arg-type]  # _check_arguments() has seen to it
            policy_kwargs={
                "observation_space": self.observation_space,
                "action_space": self.action_space,
                **self.policy_kwargs,
            },
            seed=self._streams_seed(),
            gamma=self.gamma,
            return_kwargs=self.return_kwargs,
            with_td_errors=self.prioritized_replay,
            burn_in_length=self.replay_buffer.burn_in_length,
            sequence_period=self.replay_buffer.sequence_period,
            stored_state=self.replay_buffer.stored_state,
            handle_timeout_termination=self.replay_buffer.handle_timeout_termination,
            max_env_restarts=self.max_env_restarts,
            use_masking=self.use_masking,
        )

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """
        Receive one trajectory of one actor and store it.

        :param env: not used; actors have their own
        :param callback: called once for every step of ``n_envs`` environments
        :param train_freq: not used; ``samples_per_insert`` says how often to train
        :param replay_buffer: not used; the collection has it
        :param action_noise: not used
        :param learning_starts: Number of steps before learning for the warm-up phase.
        :param log_interval: Log data every ``log_interval`` episodes
        :return: the number of steps and episodes, and whether to continue
        """
        collection = self._collection
        assert collection is not None, "learn() has created it"
        n_steps, n_episodes, continues = 0, 0, True
        callback.on_rollout_start()
        trajectory = collection.actors.receive()
        if trajectory is not None:
            n_windows = self._insert(collection, trajectory)
            self.diagnostics.add_episodes(*np.reshape(trajectory.episode_values, (-1, 2)).T)
            is_dict = isinstance(self.observation_space, spaces.Dict)
            for new_obs, rewards, dones, infos in trajectory.steps(is_dict):  # noqa: B007  the names that SB3's callbacks read
                self._n_calls += 1
                self.num_timesteps += env.num_envs
                n_steps += env.num_envs
                callback.update_locals(locals())
                if not callback.on_step():
                    continues = False
                    break
                if dones.any():
                    self._update_info_buffer(infos, dones)
                    if self.n_actors:  # the learner's own Monitors write their episodes themselves
                        collection.monitor_files.write(infos)
                    n_episodes += int(dones.sum())
            if self.num_timesteps > learning_starts:
                self.n_windows_inserted += n_windows
                self.n_steps_since_start += n_steps
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            n_before, self._episode_num = self._episode_num, self._episode_num + n_episodes
            if log_interval is not None and self._episode_num // log_interval > n_before // log_interval:
                self.dump_logs()
        callback.on_rollout_end()
        return RolloutReturn(n_steps, n_episodes, continues and not collection.stop.is_set())

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)

    def _insert(self, collection: Collection, trajectory: Trajectory) -> int:
        """
        Check and store a trajectory.

        :return: number of windows that have become available
        :raises ValueError: if an environment returned a NaN or an infinity; nothing is stored then
        """
        trajectory.check_finite(self.num_timesteps)
        if self.reward_scaling:
            self._update_return_scale(trajectory)
            if trajectory.td_errors is not None:  # from the unit of the rewards to that of the priorities
                trajectory.td_errors = trajectory.td_errors / self.return_scale.value
        return collection.insert(trajectory, self._n_updates)

    def _update_return_scale(self, trajectory: Trajectory) -> None:
        env_indices = trajectory.actor * self.n_envs + np.arange(self.n_envs)
        rewards = trajectory.rewards
        if self._vec_normalize_env is not None:  # the replay stores original rewards, but the update gets normalized ones
            rewards = self._vec_normalize_env.normalize_reward(rewards)
        for step_rewards, episode_starts in zip(rewards, trajectory.episode_starts, strict=True):
            self.return_scale.update(step_rewards, episode_starts, env_indices)

    def train(self, gradient_steps: int, batch_size: int | None = 100) -> None:
        """
        Update as often as ``samples_per_insert`` asks for.

        :param gradient_steps: not used
        :param batch_size: number of windows in an update
        """
        if self.replay_buffer.n_windows == 0:
            return  # the first window is not complete yet
        batch_size = self.n_windows_per_batch(batch_size)
        if self.samples_per_insert is None:
            n_due = self.n_steps_since_start // STEPS_PER_UPDATE - self._n_updates
        else:
            n_due = int((self.samples_per_insert * self.n_windows_inserted - self.n_windows_sampled) / batch_size)
        while n_due > 0:
            # As many as are due, but not beyond the next update of the target network
            n_now = min(n_due, self.target_update_interval - self._n_updates % self.target_update_interval)
            super().train(n_now, batch_size)
            n_due -= n_now
            self.n_windows_sampled += n_now * batch_size
            if self._n_updates % self.target_update_interval == 0:
                polyak_update(self.q_net.parameters(), self.q_net_target.parameters(), self.tau)
                polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)  # as DQN does

    def dump_logs(self) -> None:
        if self._collection is not None:
            self._collection.log(self.logger, self._n_updates)
        self.logger.record("train/samples_per_insert", self.n_windows_sampled / max(self.n_windows_inserted, 1))
        if not self.per_env_epsilons:
            self.logger.record("rollout/exploration_rate", self.exploration_rate)
        self.logger.record("replay/windows", self.replay_buffer.n_windows)
        self.logger.record("replay/fill", self.replay_buffer.size() / self.replay_buffer.buffer_size)
        super().dump_logs()


def _ray_backend() -> ModuleType:
    """
    The layer that runs actors on Ray. It stands above this one, which needs no optional package, so it is named by a string.

    :raises ModuleNotFoundError: if Ray is not installed
    """
    try:
        return importlib.import_module("sb3_attn.distributed")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'backend="ray" needs {error.name}, which is not installed; install the ray extra with '
            'pip install "sb3_attn[ray]", or use backend="sync".',
            name=error.name,
        ) from error
