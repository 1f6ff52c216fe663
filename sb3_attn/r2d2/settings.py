"""R2D2's two sets of defaults: the paper's, and those for tasks that one machine learns in minutes."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch as th

from sb3_attn.common.checks import check_dict, check_whole, optional
from sb3_attn.common.optimizer import default_optimizer_kwargs
from sb3_attn.memory import CTRNNCore, GRUCore, LSTMCore, MinGRUCore, RNNCore, get_core_class

#: Of Kapturowski et al. (2019)
PAPER_SEQUENCE_PERIOD = 40

#: Cores that are a vector of units, as many by default as the paper's LSTM has
VECTOR_CORES = (CTRNNCore, GRUCore, LSTMCore, MinGRUCore, RNNCore)

#: From the name of settings to the arguments of R2D2 in which they differ from its signature, whose defaults are the paper's.
#: The first group of "small" has the defaults of RecurrentDQN, the second what only R2D2 has
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": dict(
        learning_rate=1e-3,
        buffer_size=100_000,
        learning_starts=1000,
        batch_size=None,
        gamma=0.99,
        max_grad_norm=10,
        clipped_double_q=None,
        n_steps=1,
        td_lambda=0.95,
        value_rescaling=False,
        reward_scaling=None,
        trace_length=128,
        sequence_period=None,
        prioritized_replay=False,
        per_env_epsilons=False,
        # One update per 10 steps, so these are RecurrentDQN's 1000 steps
        target_update_interval=100,
        samples_per_insert=None,
        # With 8 environments, actors are 16 updates behind the learner at most
        rollout_length=20,
        actor_update_interval=20,
    ),
}


def with_settings(init: Callable[..., None]) -> Callable[..., None]:
    """
    Let the argument ``settings`` of a constructor choose the defaults of the others.

    :param init: the constructor
    :return: a constructor with the same signature, in which the arguments that were not given have the values of ``SETTINGS``
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        init(**(settings_arguments(given.get("settings", "paper")) | given))

    return wrapper


def settings_arguments(settings: str) -> dict[str, Any]:
    """
    Look up settings by name.

    :param settings: a key of ``SETTINGS``
    :return: the arguments that they change
    :raises ValueError: if there are no such settings
    """
    if settings not in SETTINGS:
        raise ValueError(f"settings={settings!r} must be one of {tuple(SETTINGS)}.")
    return SETTINGS[settings]


def fitted_period(trace_length: int | None, sequence_period: int | None) -> int | None:
    """
    Fit the paper's period to the length of windows: neighbours leave no step between them, and whole episodes do not overlap.

    :param trace_length: as for ``R2D2``
    :param sequence_period: the paper's stands for no more than ``trace_length``
    :return: the period
    """
    optional(check_whole)("trace_length", trace_length)
    if sequence_period == PAPER_SEQUENCE_PERIOD and (trace_length is None or trace_length < PAPER_SEQUENCE_PERIOD):
        return None
    return sequence_period


def with_default_policy_kwargs(policy_kwargs: dict[str, Any] | None, settings: str = "paper") -> dict[str, Any]:
    """
    Complete the arguments of the policy by those of the settings.

    :param policy_kwargs: arguments that take precedence; left as they are
    :param settings: a key of ``SETTINGS``
    :return: all arguments
    """
    given = {} if policy_kwargs is None else policy_kwargs
    check_dict("policy_kwargs", given)
    if settings == "small":  # the policy's own defaults are meant for small tasks
        return dict(given)
    complete = {"net_arch": [512], "ema_decay": 0.0, **given}
    if get_core_class(given.get("core", "lstm")) in VECTOR_CORES and "lstm_hidden_size" not in given:
        complete["core_kwargs"] = {"hidden_size": 512, **(given.get("core_kwargs") or {})}
    if "optimizer_class" not in given:
        defaults = {"eps": 1e-3, **default_optimizer_kwargs(th.optim.Adam)}
        complete["optimizer_kwargs"] = defaults | (given.get("optimizer_kwargs") or {})
    return complete
