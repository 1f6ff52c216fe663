"""Saving without loss."""

import io
import pathlib
from collections.abc import Iterable

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_attn.common.files import replace_on_success


class SafeSaving(OffPolicyAlgorithm):
    """An algorithm whose failed save leaves the old file whole."""

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
