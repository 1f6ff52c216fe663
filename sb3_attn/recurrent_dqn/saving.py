"""Saving without loss, and loading what fits."""

import io
import pathlib
from collections.abc import Iterable

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_attn.common.files import replace_on_success
from sb3_attn.replay import SequenceReplayBuffer


class SaveAndLoad(OffPolicyAlgorithm):
    """An algorithm whose failed save leaves the old file whole, and whose replay is one of sequences."""

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        if isinstance(path, io.BufferedIOBase):
            return super().save(path, exclude, include)
        with replace_on_success(path, suffix="zip") as temporary:
            super().save(temporary, exclude, include)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        if isinstance(path, io.BufferedIOBase):
            return super().save_replay_buffer(path)
        with replace_on_success(path, suffix="pkl") as temporary:
            super().save_replay_buffer(temporary)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        super().load_replay_buffer(path, truncate_last_traj)
        buffer = self.replay_buffer
        if not isinstance(buffer, SequenceReplayBuffer) or buffer.n_envs != self.n_envs:
            raise ValueError(
                f"path={path} holds a {type(buffer).__name__} for {getattr(buffer, 'n_envs', 0)} environments, but "
                f"this model needs a SequenceReplayBuffer for {self.n_envs}; load the model with as many environments."
            )
        # Its episodes are not those now under way in the environments, so the next `learn()` begins with new ones
        self._last_obs = None
