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
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions as at the first step of an episode.

        :param observation: ``[n_envs, ...]``
        :param state: ignored
        :param episode_start: ``[n_envs]``, of which only the shape is used
        :param deterministic: Whether or not to return deterministic actions.
        :param action_masks: as for the model, which has to take them
        :return: the model's action and the next hidden state
        """
        masks = {} if action_masks is None else {"action_masks": action_masks}
        return self.model.predict(observation, None, np.ones_like(episode_start), deterministic, **masks)
