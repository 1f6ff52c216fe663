"""Callbacks that record what happens, or interfere with it."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback


class StepRecorder(BaseCallback):
    """Records the locals that callbacks of SB3 see at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self.timesteps: list[int] = []
        self.n_rollout_starts = self.n_rollout_ends = 0

    def _on_rollout_start(self) -> None:
        self.n_rollout_starts += 1

    def _on_rollout_end(self) -> None:
        self.n_rollout_ends += 1

    def _on_step(self) -> bool:
        self.seen.append(dict(self.locals))
        self.timesteps.append(self.num_timesteps)
        return True


class ActingRecorder(BaseCallback):
    """Records observations, memory and actions of RecurrentDQN at each step, before the step is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[np.ndarray, ...]] = []
        self.next_states: list[tuple[np.ndarray, ...]] = []
        self.observations: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []

    def _on_step(self) -> bool:
        before, after = self.model._step_states
        self.states.append(tuple(array.numpy().copy() for array in before))
        self.next_states.append(tuple(array.numpy().copy() for array in after))
        self.observations.append(np.array(self.model._last_obs))
        self.actions.append(np.array(self.locals["actions"]))
        return True


class StopAt(BaseCallback):
    """Ends `learn()` after n steps of this call, between the environments' step and its storage."""

    def __init__(self, n_calls: int) -> None:
        super().__init__()
        self.last = n_calls

    def _on_training_start(self) -> None:
        self.last += self.n_calls

    def _on_step(self) -> bool:
        return self.n_calls < self.last
