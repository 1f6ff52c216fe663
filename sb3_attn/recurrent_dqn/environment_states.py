"""The states of environments as plain data, for checkpoints at which no episode ends."""

import json
import warnings
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize, VecTransposeImage

from sb3_attn.common.plain_data import from_json, to_json
from sb3_attn.envs import FinalActionMasks, FlattenSpaces, PreviousActionReward
from sb3_attn.extractors.frozen import VecFrozenFeatures

#: What wrappers carry from step to step, after a reset. Others may carry anything, so their episodes cannot go on elsewhere
WRAPPERS: dict[type, tuple[str, ...]] = {
    Monitor: ("rewards", "needs_reset"),
    **dict.fromkeys((OrderEnforcing, PassiveEnvChecker, ActionMasker), ()),
    **dict.fromkeys((FinalActionMasks, FlattenSpaces, PreviousActionReward), ()),
}

#: Gymnasium's time limit, and the subclass with which RL Zoo replaces it when it is imported
TIME_LIMITS = ("gymnasium.wrappers.common.TimeLimit", "rl_zoo3.gym_patches.PatchedTimeLimit")

#: Wrappers around all environments that carry nothing but what checkpoints save of VecNormalize
VEC_WRAPPERS = (VecFrozenFeatures, VecNormalize, VecTransposeImage)


def environment_states(env: VecEnv) -> list[Any] | None:
    """
    Ask each environment for its state, and check that it takes it.

    :param env: the environments, which stay as they are
    :return: for each a list of names and states, as values of JSON; ``None`` unless all have ``get_state`` and ``set_state``
        and are in this process, in wrappers that are known
    :raises ValueError: if a state is not plain data, or ``set_state`` does not take it
    """
    if (parts := _parts(env)) is None:
        return None
    states = [_states(each, i) for i, each in enumerate(parts)]
    if fault := _set_states(parts, states):
        raise ValueError(f"{fault}; make it restore that, or remove one of the two: checkpoints then begin new episodes.")
    return states


def set_environment_states(env: VecEnv, states: list[Any]) -> bool:
    """
    Put environments into the states of others.

    :param env: the environments, as many of them and with the same wrappers
    :param states: from ``environment_states``
    :return: whether they are now in these states; if not, a warning says so, and they have to begin new episodes
    :raises ValueError: if the number of environments, or a class or wrapper of one, is not that of the states
    """
    parts, expected = _parts(env), [[name for name, _ in each] for each in states]
    if parts is None:
        fault = f"the checkpoint has states of {expected}, but env has none that can be set"
    elif (found := [[_name(part) for part in each] for each in parts]) != expected:
        raise ValueError(
            f"the checkpoint has states of {expected}, but env has {found}; give environments and wrappers like those of the "
            "run that wrote it."
        )
    else:
        env.unwrapped.reset()  # not the wrappers, since VecNormalize would count the observations
        fault = _set_states(parts, states)
    if fault:
        warnings.warn(f"{fault}: all begin new episodes, so the run is not resumed exactly.", stacklevel=2)
    return not fault


def _parts(env: VecEnv) -> list[list[Any]] | None:
    """
    For each environment, the wrappers that carry something and, last, what has both methods; ``None`` if one has a wrapper
    that is not known, or lacks the methods.
    """
    while isinstance(env, VecEnvWrapper):
        if type(env) not in VEC_WRAPPERS:
            return None
        env = env.venv
    if not isinstance(env, DummyVecEnv):
        return None
    parts: list[list[Any]] = []
    for each in env.envs:
        wrappers: list[Any] = []
        while not (hasattr(each, "get_state") and hasattr(each, "set_state")):
            if not isinstance(each, gym.Wrapper) or (carried := _carried(each)) is None:
                return None
            if carried:
                wrappers.append(each)
            each = each.env
        parts.append([*wrappers, each])
    return parts


def _carried(wrapper: gym.Wrapper) -> tuple[str, ...] | None:
    """The attributes that hold a wrapper's state; ``None`` if the wrapper is not known."""
    return ("_elapsed_steps",) if _is_time_limit(wrapper) else WRAPPERS.get(type(wrapper))


def _name(part: Any) -> str:
    """The name of the class of an environment or a wrapper, one name for both time limits."""
    return "TimeLimit" if _is_time_limit(part) else type(part).__name__


def _is_time_limit(part: Any) -> bool:
    return f"{type(part).__module__}.{type(part).__qualname__}" in TIME_LIMITS


def _set_states(parts: list[list[Any]], states: list[Any]) -> str:
    """Put environments into states; returns what is wrong with one that does not take its own, or ``""``."""
    for i, (each, saved) in enumerate(zip(parts, states, strict=True)):
        fault = f"set_state() of environment {i} ({type(each[-1]).__name__}) does not restore what get_state() returned"
        try:
            for part, (_, state) in zip(each, saved, strict=True):
                if part is not each[-1]:
                    vars(part).update(from_json(state))
                else:
                    part.set_state(from_json(state))
            if _text(_states(each, i)) != _text(saved):
                return fault
        except Exception as error:  # a method of this name may do anything
            return f"{fault} ({type(error).__name__}: {error})"
    return ""


def _states(parts: list[Any], index: int) -> list[Any]:
    where = f"get_state() of environment {index} ({type(parts[-1]).__name__})"
    states: list[Any] = [{name: getattr(part, name) for name in _carried(part) or ()} for part in parts[:-1]]
    try:
        states.append(parts[-1].get_state())
    except Exception as error:  # a method of this name may do anything
        raise ValueError(
            f"{where} raised {type(error).__name__}: {error}; make it return the state, or remove it: episodes then begin "
            "anew at checkpoints."
        ) from error
    return [[_name(part), to_json(state, where)] for part, state in zip(parts, states, strict=True)]


def _text(states: Any) -> str:
    """Equal for equal states; a NaN is not equal to itself."""
    return json.dumps(states, sort_keys=True)
