"""Evaluation of agents with memory."""

from typing import Any

import numpy as np


class StateZeroed:
    """
    A model whose memory is reset at every step, to measure what the model owes to it.

    ``evaluate_policy(StateZeroed(model), env)`` is the score of the same network without a past, to compare with
    ``evaluate_policy(model, env)``.

    :param model: a model with SB3's ``predict``
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions as at the first step of an episode.

        :param observation: ``[n_envs, ...]``
        :param state: ignored
        :param episode_start: ``[n_envs]``, of which only the shape is used
        :param deterministic: Whether or not to return deterministic actions.
        :return: the model's action and the next hidden state
        """
        return self.model.predict(observation, None, np.ones_like(episode_start), deterministic)
