"""Action masks in RL Zoo's programs, which know of none."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_with_masks
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common import callbacks
from stable_baselines3.common.vec_env import VecEnv

from sb3_attn.recurrent_dqn.acting import Acting


@contextlib.contextmanager
def masked_evaluations() -> Iterator[None]:
    """Have SB3's ``EvalCallback``, which RL Zoo evaluates with, give action masks to models that use them."""
    original = callbacks.evaluate_policy

    def evaluate(model: Any, *args: Any, **kwargs: Any) -> Any:
        return (evaluate_with_masks if getattr(model, "use_masking", False) else original)(model, *args, **kwargs)

    callbacks.evaluate_policy = evaluate
    try:
        yield
    finally:
        callbacks.evaluate_policy = original


@contextlib.contextmanager
def masked_acting() -> Iterator[None]:
    """Have ``predict`` take action masks from the environments that RL Zoo made last, if a model uses them and gets none."""
    from rl_zoo3 import utils

    make_vec_env, predict = utils.make_vec_env, Acting.predict
    envs: list[VecEnv] = []

    @functools.wraps(make_vec_env)
    def make_and_keep(*args: Any, **kwargs: Any) -> VecEnv:
        envs.append(make_vec_env(*args, **kwargs))
        return envs[-1]

    @functools.wraps(predict)
    def predict_with_masks(model: Acting, *args: Any, **kwargs: Any) -> Any:
        if model.use_masking:
            kwargs.setdefault("action_masks", get_action_masks(envs[-1]))
        return predict(model, *args, **kwargs)

    utils.make_vec_env, Acting.predict = make_and_keep, predict_with_masks  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        utils.make_vec_env, Acting.predict = make_vec_env, predict  # type: ignore[method-assign]
