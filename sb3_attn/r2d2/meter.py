"""How fast it goes."""

import time
from collections import deque

import numpy as np
from stable_baselines3.common.logger import Logger


class Meter:
    """
    Rates since the last log, and how old the weights were that acted.

    :param n_updates: the learner's number of updates at the start
    """

    def __init__(self, n_updates: int) -> None:
        #: Updates that the learner was ahead of the weights behind each of the last trajectories
        self.lags: deque[int] = deque(maxlen=100)
        self._last = time.monotonic(), n_updates, 0

    def record(self, logger: Logger, n_updates: int, n_bytes: int) -> None:
        """
        Hand the rates to a logger.

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
        if self.lags:
            logger.record("actors/policy_lag", np.mean(self.lags))
