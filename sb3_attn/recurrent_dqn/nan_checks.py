"""Checks that stop training at the first NaN or infinity, and at a step of the wrong shape."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_attn.recurrent_dqn.step_checks import check_step

REMEDY = "fix the environment (or wrap it in VecCheckNan to find the cause) before training on."


def check_finite(
    name: str, values: np.ndarray | dict[str, np.ndarray], num_timesteps: int, environment: int | None = None
) -> None:
    """
    Check values that vectorized environments returned.

    :param name: name of the values, for the message
    :param values: one row per environment, ``[n_envs, ...]``
    :param num_timesteps: the algorithm's count of steps, for the message
    :param environment: number of the environment if the values are those of a single one, ``[...]``
    :raises ValueError: if there is a NaN or an infinity; the sentence names environment and step
    """
    for key, array in (values if isinstance(values, dict) else {"": values}).items():
        array = np.asarray(array)  # the final observation of a Discrete space is a plain number
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        i = int(np.argwhere(~np.isfinite(array))[0, 0]) if environment is None else environment
        what = f"{name} {key!r}" if key else name
        value = array[i] if environment is None else array
        raise ValueError(f"environment {i} returned a non-finite {what} at step {num_timesteps}: {value}; {REMEDY}")


def check_finite_update(name: str, value: float, num_timesteps: int, n_updates: int) -> None:
    """
    Check the loss, or the norm of its gradient, before the optimizer steps, so that the weights stay finite.

    :param name: name of the value, for the message
    :param value: that of one batch
    :param num_timesteps: the algorithm's count of steps, for the message
    :param n_updates: its count of updates, for the message
    :raises ValueError: if it is NaN or infinite
    """
    if not np.isfinite(value):
        raise ValueError(
            f"the {name} is {value} at step {num_timesteps}, update {n_updates}; the parameters are those before this update. "
            "Lower learning_rate or max_grad_norm, or scale the rewards."
        )


class StepGuard(BaseCallback):
    """
    Stops training when an environment returns NaN or infinity, or arrays of the wrong shape.

    In ``RecurrentDQN`` it is the first callback, so it runs before any other can save the model or the statistics of
    VecNormalize. It works with any of SB3's algorithms: put it first.
    """

    def _on_step(self) -> bool:
        locals_: dict[str, Any] = self.locals
        obs, rewards, dones, infos = (locals_[name] for name in ("new_obs", "rewards", "dones", "infos"))
        check_step(locals_["env"], obs, rewards, dones, infos, self.num_timesteps)
        check_finite("reward", rewards, self.num_timesteps)
        check_finite("observation", obs, self.num_timesteps)
        for i in np.flatnonzero(dones):
            # As in SB3, a VecEnv may leave the final observation out
            final_obs = infos[i].get("terminal_observation")
            if final_obs is not None:
                check_finite("final observation", final_obs, self.num_timesteps, int(i))
        return True
