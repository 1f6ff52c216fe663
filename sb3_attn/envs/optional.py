"""Environments of optional packages."""

from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator


def load_optional(name: str, env_id: str, requirement: str) -> Any:
    """
    Load by name, as Gymnasium loads an entry point, so that this package can be imported without the other one.

    :param name: ``"module:attribute"``
    :param env_id: id of the environment that needs it
    :param requirement: what to install
    :return: the attribute
    :raises gymnasium.error.DependencyNotInstalled: if the other package is not installed
    """
    try:
        return load_env_creator(name)
    except ModuleNotFoundError as error:
        raise gym.error.DependencyNotInstalled(
            f"{env_id} needs the optional package {name.partition('.')[0]}, which is not installed; install it with "
            f'`pip install "{requirement}"`.'
        ) from error


def repeat_previous(k: int = 8, **kwargs: Any) -> gym.Env[Any, Any]:
    """
    Name the suit of the card before k - 1 others: POPGym's RepeatPrevious.

    :param k: Number of cards from the present one back to that one, counting both.
    :param kwargs: Further arguments of POPGym's.
    :return: The environment.
    :raises gymnasium.error.DependencyNotInstalled: If POPGym is not installed.
    """
    creator = load_optional("popgym.envs.repeat_previous:RepeatPrevious", "popgym-RepeatPrevious8-v0", "popgym>=1.0.7")
    env: gym.Env[Any, Any] = creator(k=k, **kwargs)
    return env
