"""What R2D2's arguments must be, and what they are if nobody says."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch as th

from sb3_attn.common.optimizer import default_optimizer_kwargs
from sb3_attn.r2d2.environments import env_fns_of

if TYPE_CHECKING:
    from sb3_attn.r2d2.r2d2 import R2D2

BACKENDS = ("sync", "ray")


def check_r2d2_arguments(model: R2D2) -> None:
    """
    Check the arguments that ``RecurrentDQN`` has not.

    :param model: has them as its attributes
    :raises ValueError: if one does not fit; the sentence says what to change
    """
    if model.backend not in BACKENDS:
        raise ValueError(f"backend={model.backend!r} must be one of {BACKENDS}.")
    if model.n_actors < 0:
        raise ValueError(f"n_actors={model.n_actors} is negative; 0 means no actors beside the learner.")
    for name in ("rollout_length", "weights_period"):
        if getattr(model, name) < 1:
            raise ValueError(f"{name}={getattr(model, name)} must be at least 1.")
    if model.samples_per_insert <= 0:
        raise ValueError(f"samples_per_insert={model.samples_per_insert} must be positive; windows would never be drawn.")
    if model.max_env_restarts < 0:
        raise ValueError(f"max_env_restarts={model.max_env_restarts} is negative; 0 ends learning at the first failure.")
    if model.backend == "sync" and model.backend_kwargs:
        raise ValueError(f"backend_kwargs={model.backend_kwargs}, but backend='sync' takes none; leave them out.")
    if model.n_actors > 0 and model.env is not None:  # a model that is loaded to be looked at needs no actors
        env_fns_of(model.env)
        if model.backend == "ray":
            ray_backend().check_options(**model.backend_kwargs)


def ray_backend() -> ModuleType:
    """
    The layer that runs actors on Ray: by name, since it stands above this one, which does without optional packages.

    :raises ModuleNotFoundError: if Ray is not installed
    """
    try:
        return importlib.import_module("sb3_attn.distributed")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'backend="ray" needs {error.name}, which is not installed; install the ray extra with '
            'pip install "sb3_attn[ray]", or use backend="sync".',
            name=error.name,
        ) from error


def with_default_policy_kwargs(policy_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """
    The paper's network where nobody says otherwise.

    :param policy_kwargs: what was said
    :return: that, and the rest
    """
    said = policy_kwargs or {}
    complete = {"net_arch": [512], **said}
    if said.get("core", "lstm") in ("lstm", "gru") and "lstm_hidden_size" not in said:
        complete["core_kwargs"] = {"hidden_size": 512, **(said.get("core_kwargs") or {})}
    if "optimizer_class" not in said:
        defaults = {"eps": 1e-3, **default_optimizer_kwargs(th.optim.Adam)}
        complete["optimizer_kwargs"] = defaults | (said.get("optimizer_kwargs") or {})
    return complete
