"""R2D2, from one process to many machines."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule, TrainFreq
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn import DQN

from sb3_attn.common.former_names import accept_former_arguments
from sb3_attn.r2d2.accounts import Accounts
from sb3_attn.r2d2.actor import Actor, Weights
from sb3_attn.r2d2.actors import Actors, LocalActors
from sb3_attn.r2d2.arguments import check_r2d2_arguments, ray_backend, with_default_policy_kwargs
from sb3_attn.r2d2.environments import MonitorFiles, to_vec_env
from sb3_attn.r2d2.meter import Meter
from sb3_attn.r2d2.sink import ReplaySink, Sink
from sb3_attn.r2d2.spec import actor_spec
from sb3_attn.r2d2.stopping import save_checkpoints, stop_request
from sb3_attn.r2d2.trajectory import Trajectory, check_trajectory
from sb3_attn.recurrent_dqn import RecurrentDQN, RecurrentDQNPolicy
from sb3_attn.recurrent_dqn.recurrent_dqn import FORMER_ARGUMENTS

SelfR2D2 = TypeVar("SelfR2D2", bound="R2D2")


class R2D2(RecurrentDQN):
    """
    Recurrent Replay Distributed DQN (Kapturowski et al. 2019, https://openreview.net/forum?id=r1lyTjAqYX).

    Actors step environments, each with its own copy of the policy, and hand over what happened; the learner keeps the
    replay, learns, and gives the actors new weights. The defaults are the paper's, but for what a paper with 256 actors
    does not say about few: ``samples_per_insert``, ``learning_starts``, ``max_grad_norm``.

    With ``n_actors=0`` the learner's own environments are stepped, by the same code. ``backend="sync"`` lets all actors
    take turns in the learner's process, ``"ray"`` gives each a process of its own, here or on other machines.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from: an id, a factory of one environment, an environment or a VecEnv. Actors make
        their own, for which it must be possible to pickle it.
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param buffer_size: number of steps in the replay buffer; the paper's 4,000,000 take 28 GB with images
    :param learning_starts: how many steps to collect before learning starts
    :param batch_size: number of windows in a gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1) default 1 for hard update
    :param gamma: the discount factor
    :param replay_buffer_class: a ``SequenceReplayBuffer``; ``None`` means the one ``prioritized_replay`` asks for
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param target_update_interval: update the target network every ``target_update_interval`` gradient updates
        (``RecurrentDQN`` counts environment steps)
    :param max_grad_norm: The maximum value for the gradient clipping
    :param double_q: as for ``RecurrentDQN``, and so are the other parts of the method:
    :param n_steps: number of rewards before the bootstrap, if ``td_lambda`` is ``None``
    :param td_lambda: learn from Peng's Q(lambda) over the window; ``None`` means n-step returns
    :param value_rescaling: learn h(Q) instead of Q (see ``sb3_attn.common.td.signed_hyperbolic``)
    :param trace_length: number of trained steps in a window; ``None`` means whole episodes
    :param burn_in_length: largest number of steps before them that warm the memory up, without gradient
    :param sequence_period: distance of the starts of two trained parts; ``None`` means ``trace_length``
    :param stored_state: start windows from the state that acting had there, rather than from the initial one
    :param prioritized_replay: draw windows by the size of their TD errors; a new one by those its actor saw
    :param n_actors: number of actors; 0 means none beside the learner
    :param envs_per_actor: number of environments of each; ``None`` means as many as ``env`` has, or 8 if it is an id or a
        factory
    :param samples_per_insert: how often a window is drawn on average; the ratio is held from ``learning_starts`` on
    :param backend: ``"sync"`` or ``"ray"``, where actors run
    :param rollout_length: number of steps of each environment that an actor hands over at once
    :param weights_period: number of its environment steps after which an actor gets new weights, at the earliest
    :param max_env_restarts: how often an environment of an actor may fail before learning ends
    :param backend_kwargs: further arguments of the backend, see ``sb3_attn.distributed.RayActors``
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments for the policy. What is not said is the paper's: an LSTM of 512, a head of 512,
        Adam with an epsilon of 1e-3, which is large where rewards are about 1: small tasks learned with 1e-8 only
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the learner should be run.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if arguments are out of range or contradict each other; the sentence says what to change
    """

    @accept_former_arguments(**FORMER_ARGUMENTS)
    def __init__(
        self,
        policy: str | type[RecurrentDQNPolicy],
        env: GymEnv | str | Callable[[], gym.Env],
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 4_000_000,
        learning_starts: int = 10_000,
        batch_size: int = 64,
        tau: float = 1.0,
        gamma: float = 0.997,
        replay_buffer_class: type | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        target_update_interval: int = 2500,
        max_grad_norm: float = 40.0,
        double_q: bool = True,
        n_steps: int = 5,
        td_lambda: float | None = None,
        value_rescaling: bool = True,
        trace_length: int | None = 80,
        burn_in_length: int = 40,
        sequence_period: int | None = 40,
        stored_state: bool = True,
        prioritized_replay: bool = True,
        n_actors: int = 0,
        envs_per_actor: int | None = None,
        samples_per_insert: float = 4.0,
        backend: str = "sync",
        rollout_length: int = 80,
        weights_period: int = 400,
        max_env_restarts: int = 10,
        backend_kwargs: dict[str, Any] | None = None,
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
            n_steps=n_steps,
            td_lambda=td_lambda,
            value_rescaling=value_rescaling,
            trace_length=trace_length,
            burn_in_length=burn_in_length,
            sequence_period=sequence_period,
            stored_state=stored_state,
            prioritized_replay=prioritized_replay,
            per_env_epsilons=True,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=with_default_policy_kwargs(policy_kwargs),
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.n_actors = n_actors
        self.samples_per_insert = samples_per_insert
        self.backend = backend
        self.rollout_length = rollout_length
        self.weights_period = weights_period
        self.max_env_restarts = max_env_restarts
        self.backend_kwargs = backend_kwargs or {}
        #: Windows that came since learning started
        self.n_inserted = 0
        #: Windows that were drawn
        self.n_sampled = 0
        self.accounts = Accounts()
        self._open = ExitStack()
        self._weights: Weights | None = None
        if _init_setup_model:
            self._check_buffer_size()
            self._setup_model()

    @property
    def n_replay_envs(self) -> int:
        return self.n_envs * max(self.n_actors, 1)

    def _setup_model(self) -> None:
        check_r2d2_arguments(self)
        with warnings.catch_warnings():  # DQN's, of a target_update_interval that counts environment steps
            warnings.filterwarnings("ignore", "The number of environments used is greater than the target network")
            super()._setup_model()
        self.exploration_rate = self.exploration_schedule(1.0)

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
        Learn, and check at the end that no step was lost on the way or came twice.

        :param total_timesteps: The total number of steps to receive from actors
        :param callback: callback(s) called in the learner's process, for every ``n_envs`` steps received; their ``locals``
            have new_obs, rewards, dones and, at episodes' ends, infos
        :param log_interval: number of episodes between two logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: the trained model
        :raises KeyboardInterrupt: after Ctrl-C or SIGTERM, when all that was under way is stored and checkpoints are written
        """
        try:
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
            for trajectory in self._actors.drain():
                self._store(trajectory)
        except (EOFError, ConnectionError):
            if not self._stop.is_set():  # the processes of a SubprocVecEnv had the Ctrl-C too, and have ended
                raise
        finally:
            self._open.close()
        self.accounts.check()
        if self._stop.is_set():
            save_checkpoints(callback)
            raise KeyboardInterrupt
        return self

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        self._open.close()
        self._weights = None
        self.accounts = Accounts()
        self._sink: Sink = ReplaySink(self.replay_buffer)
        self._actors = self._make_actors()
        self._open.callback(self._actors.close)
        self._stop = self._open.enter_context(stop_request())  # after Ray, which has signal handlers of its own
        self._meter = Meter(self._n_updates)
        self._monitor_files = MonitorFiles(self.get_env())  # type: ignore[arg-type]
        return result

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        # Not RecurrentDQN's: trajectories are checked for NaN as they come, before anything of them is stored
        return DQN._init_callback(self, callback, progress_bar)

    def _make_actors(self) -> Actors:
        spec = actor_spec(self)
        args = self._latest_weights, self.rollout_length, self.weights_period
        if self.n_actors == 0:
            return LocalActors([Actor(spec, 0, env=self.env, device=self.device)], *args)
        if self.backend == "sync":
            return LocalActors([Actor(spec, index, device=self.device) for index in range(self.n_actors)], *args)
        return ray_backend().RayActors(spec, *args, **self.backend_kwargs)

    def _latest_weights(self) -> Weights:
        if self._weights is None or self._weights.version != self._n_updates:
            arrays = {name: tensor.cpu().numpy().copy() for name, tensor in self.q_net.state_dict().items()}
            self._weights = Weights(self._n_updates, arrays)
        return self._weights

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
        :param replay_buffer: not used; the sink has it
        :param action_noise: not used
        :param learning_starts: Number of steps before learning for the warm-up phase.
        :param log_interval: Log data every ``log_interval`` episodes
        :return: the number of steps and episodes, and whether to go on
        """
        n_steps, n_episodes, goes_on = 0, 0, True
        callback.on_rollout_start()
        trajectory = self._actors.receive()
        if trajectory is not None:
            n_windows = self._store(trajectory)
            as_dicts = isinstance(self.observation_space, spaces.Dict)
            for new_obs, rewards, dones, infos in trajectory.steps(as_dicts):  # noqa: B007  the names that SB3's callbacks read
                self._n_calls += 1
                self.num_timesteps += env.num_envs
                n_steps += env.num_envs
                callback.update_locals(locals())
                if not callback.on_step():
                    goes_on = False
                    break
                if dones.any():
                    self._update_info_buffer(infos, dones)
                    if self.n_actors:
                        self._monitor_files.write(infos)
                    n_episodes += int(dones.sum())
            if self.num_timesteps > learning_starts:
                self.n_inserted += n_windows
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            n_before, self._episode_num = self._episode_num, self._episode_num + n_episodes
            if log_interval is not None and self._episode_num // log_interval > n_before // log_interval:
                self.dump_logs()
        callback.on_rollout_end()
        return RolloutReturn(n_steps, n_episodes, goes_on and not self._stop.is_set())

    def _store(self, trajectory: Trajectory) -> int:
        """Store a trajectory; the number of windows that came with it."""
        check_trajectory(trajectory, self.num_timesteps)
        receipt = self._sink.insert(trajectory)
        self.accounts.book(trajectory, receipt)
        self._meter.lags.append(self._n_updates - trajectory.version)
        return receipt.n_windows

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """
        Update as often as ``samples_per_insert`` asks for.

        :param gradient_steps: not used
        :param batch_size: number of windows in an update
        """
        n_due = int((self.samples_per_insert * self.n_inserted - self.n_sampled) / batch_size)
        while n_due > 0 and self.replay_buffer.n_windows > 0:
            n_now = min(n_due, self.target_update_interval - self._n_updates % self.target_update_interval)
            super().train(n_now, batch_size)
            n_due -= n_now
            self.n_sampled += n_now * batch_size
            if self._n_updates % self.target_update_interval == 0:
                polyak_update(self.q_net.parameters(), self.q_net_target.parameters(), self.tau)
                polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)  # as DQN does

    def dump_logs(self) -> None:
        self._meter.record(self.logger, self._n_updates, self._actors.n_bytes)
        self.logger.record("train/samples_per_insert", self.n_sampled / max(self.n_inserted, 1))
        self.logger.record("replay/windows", self.replay_buffer.n_windows)
        self.logger.record("replay/fill", self.replay_buffer.size() / self.replay_buffer.buffer_size)
        self.logger.record("actors/restarts", self.accounts.n_restarts)
        super().dump_logs()

    def _excluded_save_params(self) -> list[str]:
        live = ["accounts", "_open", "_weights", "_sink", "_actors", "_stop", "_meter", "_monitor_files"]
        return [*super()._excluded_save_params(), *live]
