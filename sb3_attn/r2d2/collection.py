"""Collection of experience by actors, and the step ledger that checks it."""

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
from stable_baselines3.common.logger import Logger

from sb3_attn.r2d2.actors import Actors
from sb3_attn.r2d2.environments import MonitorFiles
from sb3_attn.r2d2.trajectory import InsertResult, Trajectory, insert_trajectory
from sb3_attn.replay import SequenceReplayBuffer

PLEASE_REPORT = "this is a bug in sb3_attn, please report it."


@dataclass
class StepLedger:
    """Step accounting: every step that actors send is inserted or rejected exactly once."""

    #: Number of steps that each incarnation of an actor has sent, by its own count
    n_steps_sent: dict[str, int] = field(default_factory=dict)
    n_steps_received: int = 0
    n_steps_inserted: int = 0
    #: Number of rejected steps, keyed by the reason
    n_steps_rejected: Counter[str] = field(default_factory=Counter)
    _incarnations: dict[int, set[str]] = field(default_factory=dict, repr=False)

    @property
    def n_restarts(self) -> int:
        """Number of times that an actor came back after a crash."""
        return sum(len(incarnations) - 1 for incarnations in self._incarnations.values())

    def record(self, trajectory: Trajectory, result: InsertResult) -> None:
        """
        Record a trajectory.

        :param trajectory: of any actor
        :param result: of its insertion
        :raises RuntimeError: if the one before it is missing, or it has been recorded before
        """
        n_sent_before = self.n_steps_sent.get(trajectory.incarnation, 0)
        if trajectory.n_sent - trajectory.n_env_steps != n_sent_before:
            raise RuntimeError(
                f"actor {trajectory.actor} says it has sent {trajectory.n_sent} steps, {trajectory.n_env_steps} of them now, "
                f"but {n_sent_before} were recorded before; {PLEASE_REPORT}"
            )
        self.n_steps_sent[trajectory.incarnation] = trajectory.n_sent
        self._incarnations.setdefault(trajectory.actor, set()).add(trajectory.incarnation)
        self.n_steps_received += trajectory.n_env_steps
        self.n_steps_inserted += result.n_steps_inserted
        self.n_steps_rejected += result.n_steps_rejected

    def check(self) -> None:
        """
        Check that steps sent = received = inserted + rejected.

        :raises RuntimeError: if not
        """
        n_sent, n_rejected = sum(self.n_steps_sent.values()), sum(self.n_steps_rejected.values())
        if not n_sent == self.n_steps_received == self.n_steps_inserted + n_rejected:
            raise RuntimeError(
                f"the actors sent {n_sent} steps, {self.n_steps_received} were received, {self.n_steps_inserted} inserted and "
                f"{n_rejected} rejected {dict(self.n_steps_rejected)}; {PLEASE_REPORT}"
            )


class Rates:
    """
    Rates since the last log, and the policy lag.

    :param n_updates: the learner's number of updates at the start
    """

    def __init__(self, n_updates: int) -> None:
        #: Number of updates that the learner was ahead of the actor, for each of the last trajectories
        self.policy_lags: deque[int] = deque(maxlen=100)
        self._last = time.monotonic(), n_updates, 0

    def log(self, logger: Logger, n_updates: int, n_bytes: int) -> None:
        """
        Record the rates in a logger.

        :param logger: the logger
        :param n_updates: the learner's number of updates
        :param n_bytes: number of bytes received
        """
        now = time.monotonic()
        then, n_updates_then, n_bytes_then = self._last
        self._last = now, n_updates, n_bytes
        seconds = max(now - then, np.finfo(float).eps)
        logger.record("time/updates_per_second", (n_updates - n_updates_then) / seconds)
        logger.record("time/bytes_per_second", (n_bytes - n_bytes_then) / seconds)
        if self.policy_lags:
            logger.record("actors/policy_lag", np.mean(self.policy_lags))


class Collection:
    """
    All that one ``learn()`` of R2D2 needs to collect experience.

    :param actors: the actors
    :param replay_buffer: stores their trajectories
    :param monitor_files: files for the episodes of actors
    :param stop: is set when learning should end
    :param n_updates: the learner's number of updates at the start
    """

    def __init__(
        self,
        actors: Actors,
        replay_buffer: SequenceReplayBuffer,
        monitor_files: MonitorFiles,
        stop: threading.Event,
        n_updates: int,
    ) -> None:
        self.actors = actors
        self.replay_buffer = replay_buffer
        self.monitor_files = monitor_files
        self.stop = stop
        self.rates = Rates(n_updates)
        self.ledger = StepLedger()

    def insert(self, trajectory: Trajectory, n_updates: int) -> int:
        """
        Store and record a trajectory.

        :param trajectory: of one of the actors
        :param n_updates: the learner's number of updates
        :return: number of windows that have become available
        """
        result = insert_trajectory(self.replay_buffer, trajectory)
        self.ledger.record(trajectory, result)
        self.rates.policy_lags.append(n_updates - trajectory.version)
        return result.n_windows_inserted

    def log(self, logger: Logger, n_updates: int) -> None:
        """
        Record rates, policy lag and restarts in a logger.

        :param logger: the logger
        :param n_updates: the learner's number of updates
        """
        self.rates.log(logger, n_updates, self.actors.n_bytes)
        logger.record("actors/restarts", self.ledger.n_restarts)
