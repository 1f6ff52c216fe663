"""Environment wrappers: observations for agents with memory, and spaces that Stable-Baselines3's DQN supports."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces

_Wrapper: TypeAlias = gym.Wrapper[Any, Any, Any, Any]

#: Key of an episode's last action masks in the info of its last step
ACTION_MASKS = "action_masks"


class PreviousActionReward(_Wrapper, gym.utils.RecordConstructorArgs):
    """
    Add the previous action (one-hot, each component by itself) and the previous reward to the observation; both are zero
    after a reset.

    R2D2 feeds both to its network (Kapturowski et al. 2019). Here they are part of the observation, since ``predict`` never
    sees the reward: only so are they the same in acting, in replay and in evaluation. Put this wrapper around those that
    change the reward (clipping), so that the agent sees the reward that it learns from.

    ==================================  ============================================================================
    observation space                   becomes
    ==================================  ============================================================================
    ``Dict``                            the same with the keys ``"previous_action"`` and ``"previous_reward"``
    ``Box`` with several axes (images)  ``Dict`` of ``"observation"`` and these two; use ``"MultiInputPolicy"``
    any other                           flat ``Box`` of float32: the flattened observation, the action, the reward
    ==================================  ============================================================================

    :param env: Environment with ``Discrete`` or ``MultiDiscrete`` actions.
    :raises ValueError: If the actions are neither, or the observations already have these keys.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        if not isinstance(env.action_space, spaces.Discrete | spaces.MultiDiscrete):
            raise ValueError(
                "PreviousActionReward encodes the previous action one-hot and needs Discrete or MultiDiscrete actions, but "
                f"env.action_space={env.action_space}; do without this wrapper, or discretise the actions first."
            )
        inner = env.observation_space
        self._as_dict = isinstance(inner, spaces.Dict) or (isinstance(inner, spaces.Box) and len(inner.shape) > 1)
        added = {
            "previous_action": spaces.Box(0.0, 1.0, (spaces.flatdim(env.action_space),), np.float32),
            "previous_reward": spaces.Box(-np.inf, np.inf, (1,), np.float32),
        }
        if not self._as_dict:
            self.observation_space = _flat_box(spaces.Tuple((inner, *added.values())))
            return
        kept = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {"observation": inner}
        if taken := kept.keys() & added.keys():
            raise ValueError(
                f"PreviousActionReward adds {sorted(added)}, but the observation space already has {sorted(taken)}; "
                "wrap the environment only once, or rename these keys."
            )
        self.observation_space = spaces.Dict({**kept, **added})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._extend(observation, None, 0.0), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation = self._extend(observation, action, float(reward))
        return observation, reward, terminated, truncated, info

    def _extend(self, observation: Any, action: Any, reward: float) -> Any:
        previous_action = np.zeros(spaces.flatdim(self.env.action_space), dtype=np.float32)
        if action is not None:
            previous_action[:] = np.asarray(spaces.flatten(self.env.action_space, np.asarray(action)))
        previous_reward = np.array([reward], dtype=np.float32)
        if not self._as_dict:
            flat = np.asarray(spaces.flatten(self.env.observation_space, observation))
            return np.concatenate([flat, previous_action, previous_reward], dtype=np.float32)
        kept = observation if isinstance(self.env.observation_space, spaces.Dict) else {"observation": observation}
        return {**kept, "previous_action": previous_action, "previous_reward": previous_reward}


class FlattenSpaces(_Wrapper, gym.utils.RecordConstructorArgs):
    """
    Convert spaces that Stable-Baselines3's DQN does not support into ones that it does; others remain as they are.

    - Observations: a ``Tuple`` or ``Text``, or a ``Dict`` that contains these or another ``Dict``, becomes one flat ``Box`` of
      float32, with discrete parts one-hot. (Gymnasium's ``FlattenObservation`` also flattens images, and makes discrete parts
      int64.)
    - Actions: ``MultiDiscrete`` becomes the ``Discrete`` of all combinations, with the last component changing fastest. So do
      the masks of an environment that has them as for MaskablePPO, those of the components one after the other.

    With this wrapper POPGym's tasks, except those with continuous actions, run under ``DQN("MlpPolicy")`` and
    ``RecurrentDQN("MlpPolicy")``. (POPGym's own wrappers of this kind do not accept an environment from ``gym.make``.) In RL
    Zoo's YAML: ``env_wrapper: sb3_attn.envs.FlattenSpaces``.

    :param env: Environment with ``Discrete`` or ``MultiDiscrete`` actions.
    :raises ValueError: If the actions are neither, or the observations have no fixed size.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        inner = env.observation_space
        parts = inner.spaces.values() if isinstance(inner, spaces.Dict) else [inner]
        unsupported = spaces.Tuple | spaces.Dict | spaces.Text | spaces.Sequence | spaces.Graph
        self._flatten_observation = any(isinstance(part, unsupported) for part in parts)
        if self._flatten_observation:
            self.observation_space = _flat_box(inner)
        if isinstance(env.action_space, spaces.MultiDiscrete):
            self.action_space = spaces.Discrete(int(np.prod(env.action_space.nvec)))
        elif not isinstance(env.action_space, spaces.Discrete):
            raise ValueError(
                f"FlattenSpaces makes MultiDiscrete actions Discrete, but env.action_space={env.action_space}; DQN needs a "
                "finite set of actions, so choose another environment or discretise its actions first."
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._flat(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        inner = self.env.action_space
        if isinstance(inner, spaces.MultiDiscrete):
            components = np.unravel_index(int(action), inner.nvec.ravel())
            action = (np.reshape(components, inner.shape) + inner.start).astype(inner.dtype)
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._flat(observation), reward, terminated, truncated, info

    @property
    def action_masks(self) -> Callable[[], np.ndarray]:
        """The method of the environment, if it has one, for the flat actions: valid are those whose components all are."""
        inner = self.env.get_wrapper_attr("action_masks")  # an AttributeError means that there are no masks
        return lambda: self._flat_masks(np.asarray(inner(), dtype=bool))

    def _flat_masks(self, masks: np.ndarray) -> np.ndarray:
        inner = self.env.action_space
        if not isinstance(inner, spaces.MultiDiscrete):
            return masks
        sizes = inner.nvec.ravel()
        components = np.split(masks, np.cumsum(sizes)[:-1])  # as MaskablePPO has them, one after the other
        return np.ravel(functools.reduce(np.logical_and.outer, components))

    def _flat(self, observation: Any) -> Any:
        if not self._flatten_observation:
            return observation
        return np.asarray(spaces.flatten(self.env.observation_space, observation), dtype=np.float32)


def _flat_box(space: spaces.Space[Any]) -> spaces.Box:
    """The flat float32 ``Box`` that Gymnasium's ``flatten`` maps the elements of a space to."""
    if not space.is_np_flattenable:
        raise ValueError(f"observation_space={space} has no fixed size; remove its Graph or Sequence.")
    flat = spaces.flatten_space(space)
    assert isinstance(flat, spaces.Box)
    return spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)


class FinalActionMasks(_Wrapper, gym.utils.RecordConstructorArgs):
    """
    Keeps the masks of a truncated episode's final observation in the info of its last step, as ``info["action_masks"]``.

    A vectorised environment resets at once, so that they could not be asked for afterwards, and the value after a truncation
    is that of the best valid action. The environments of a ``DummyVecEnv`` get this wrapper by themselves; give it to those of
    other processes, ``make_vec_env(..., wrapper_class=FinalActionMasks, vec_env_cls=SubprocVecEnv)``.

    :param env: The environment, with a method ``action_masks()``.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if truncated and not terminated:  # nothing is chosen after a termination, where masks may be undefined
            info[ACTION_MASKS] = np.array(self.get_wrapper_attr("action_masks")(), dtype=bool)
        return obs, reward, terminated, truncated, info
