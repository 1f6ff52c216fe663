"""Saving and loading: atomic files, and a check that a loaded replay buffer fits."""

import io
import pathlib
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_attn.common.files import replace_on_success
from sb3_attn.recurrent_dqn.parameter_checks import check_adam_state, refuse_nan
from sb3_attn.recurrent_dqn.policies import RecurrentQNetwork
from sb3_attn.replay import SequenceReplayBuffer


class SaveAndLoad(OffPolicyAlgorithm):
    """
    Mixin of an algorithm with a ``SequenceReplayBuffer``.

    A save that fails leaves the old file as it was, and a replay buffer that does not fit the model is refused.
    """

    q_net: RecurrentQNetwork
    trace_length: int | None
    burn_in_length: int
    sequence_period: int | None
    stored_state: bool

    @property
    @abstractmethod
    def n_replay_envs(self) -> int:
        """Number of environments that fill the replay buffer."""

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        refuse_nan(self.get_parameters(), "is not saved; load an earlier checkpoint")
        if isinstance(path, io.BufferedIOBase):
            return super().save(path, exclude, include)
        with replace_on_success(path, suffix="zip") as temporary:
            super().save(temporary, exclude, include)

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        parameters = load_path_or_dict
        if not isinstance(parameters, dict):
            parameters = load_from_zip_file(parameters, device=device, load_data=False)[1]
        refuse_nan(parameters, "is not loaded; use another checkpoint")
        if "policy.optimizer" in parameters:
            check_adam_state(self.policy.optimizer, parameters["policy.optimizer"])
        super().set_parameters(parameters, exact_match, device)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        if isinstance(path, io.BufferedIOBase):
            return super().save_replay_buffer(path)
        with replace_on_success(path, suffix="pkl") as temporary:
            super().save_replay_buffer(temporary)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        own = self.replay_buffer
        try:
            super().load_replay_buffer(path, truncate_last_traj)
            self._check_replay(path)
        except BaseException:
            self.replay_buffer = own  # SB3 replaces it before it checks anything
            raise
        # The open episodes of the buffer are not those of the environments now, so the next `learn()` resets the environments
        self._last_obs = None

    def _check_replay(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Check that a loaded replay buffer fits this model."""
        loaded, expected = _description(self.replay_buffer), self._expected_replay()
        if different := [key for key in expected if loaded.get(key) != expected[key]]:
            raise ValueError(
                f"path={path} holds a replay buffer with {_select(loaded, different)}, but this model needs "
                f"{_select(expected, different)}; load it into a model with the arguments of the one that saved it."
            )
        assert isinstance(self.replay_buffer, SequenceReplayBuffer), "its class is the same"
        shapes = self.replay_buffer.core_state_shapes
        needed = [tuple(array.shape[1:]) for array in self.q_net.initial_state(1)]
        if shapes not in (None, needed):
            raise ValueError(
                f"path={path} holds states of a memory of the shapes {shapes}, but this model's has {needed}; load it into a "
                "model with the same core and core_kwargs."
            )

    def _expected_replay(self) -> dict[str, Any]:
        """The properties that a replay buffer must have for this model to learn from it."""
        assert self.replay_buffer_class is not None, "the constructor has chosen one"
        return {
            "class": self.replay_buffer_class.__name__,
            "n_envs": self.n_replay_envs,
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "trace_length": self.trace_length,
            "burn_in_length": self.burn_in_length,
            "sequence_period": self.sequence_period or self.trace_length,
            "stored_state": self.stored_state,
        }


def _description(buffer: Any) -> dict[str, Any]:
    """The same properties of a replay buffer."""
    if not isinstance(buffer, SequenceReplayBuffer):
        return {"class": type(buffer).__name__}
    # The buffer stores trace_length=None as its largest number of steps
    whole_episodes = buffer.trace_length == buffer.buffer_size
    return {
        "class": type(buffer).__name__,
        "n_envs": buffer.n_envs,
        "observation_space": buffer.observation_space,
        "action_space": buffer.action_space,
        "trace_length": None if whole_episodes else buffer.trace_length,
        "burn_in_length": buffer.burn_in_length,
        "sequence_period": None if whole_episodes else buffer.sequence_period,
        "stored_state": buffer.stored_state,
    }


def _select(description: dict[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key}={description.get(key)}" for key in keys)
