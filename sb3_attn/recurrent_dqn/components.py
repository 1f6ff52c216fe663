"""The components of an action, several if actions are ``MultiDiscrete``, and how their values make up that of the action."""

import math
from functools import reduce
from numbers import Integral
from typing import TypeAlias

import torch as th
from gymnasium import spaces

from sb3_attn.common import td
from sb3_attn.common.action_masks import mask_values, numbers_of_choices
from sb3_attn.recurrent_dqn.heads import take_actions

#: Actions that can be valued
ActionSpace: TypeAlias = spaces.Discrete | spaces.MultiDiscrete


class ActionComponents:
    """
    Values that are a sum over the components: Q(s, a) = sum_d q_d(s, a_d), so that the best action has the best of each.

    q_d is 1/D of the head's output for component d of D, so that Q is the mean of these outputs. The A values of all choices
    lie one component after the other on the last axis. With ``Discrete`` actions these are Q.

    :param action_space: with at most one axis
    """

    def __init__(self, action_space: ActionSpace) -> None:
        #: Number of choices in each component, which is how masks are laid out; their sum is M
        self.nvec = numbers_of_choices(action_space)
        #: How the values are laid out; their sum is A
        self.sizes = self.nvec
        #: Shape of an action: (number of components,), or () if actions are ``Discrete``
        self.action_shape = tuple(action_space.shape or ())

    def choices(self, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        Indices into the values of each part of the layout.

        :param actions: ``[..., *action_shape]``
        :return: ``[...]`` for each of ``sizes``
        """
        return actions.unbind(dim=-1) if self.action_shape else (actions,)

    def best(self, q_values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        The best actions.

        :param q_values: ``[..., A]``
        :return: their values ``[...]``, and the actions ``[..., *action_shape]``
        """
        if not self.action_shape:
            return q_values.max(dim=-1)  # a fifth of the time of what follows, which speeds acting up
        parts = [part.max(dim=-1) for part in q_values.split(self.sizes, dim=-1)]
        choices = [indices for _, indices in parts]
        return _sum([values for values, _ in parts]), th.stack(choices, dim=-1)

    def take(self, values: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        The values of some actions.

        :param values: ``[..., N, A]``
        :param actions: ``[..., *action_shape]``
        :return: ``[..., N]``
        """
        parts = zip(values.split(self.sizes, dim=-1), self.choices(actions), strict=True)
        return _sum([take_actions(*part) for part in parts])

    def mask(self, values: th.Tensor, action_masks: th.Tensor | None) -> th.Tensor:
        """
        Make invalid choices the worst, as ``mask_values`` does, in each component.

        :param values: ``[..., A]``
        :param action_masks: True on valid choices, ``[..., M]``; ``None`` means that all are
        :return: the values, minus infinity where a choice is invalid
        """
        if action_masks is None or not self.action_shape:
            return mask_values(values, action_masks)
        parts = zip(values.split(self.sizes, dim=-1), action_masks.split(self.nvec, dim=-1), strict=True)
        return th.cat([mask_values(*part) for part in parts], dim=-1)

    def munchausen_bonuses(self, q_values: th.Tensor, actions: th.Tensor, temperature: float) -> th.Tensor:
        """
        ``td.munchausen_bonuses`` of the policy softmax(Q / tau), which is a product over the components.

        :param q_values: ``[T, B, A]``
        :param actions: ``[T, B, *action_shape]``
        :param temperature: tau
        :return: ``[T, B]``
        """
        parts = zip(q_values.split(self.sizes, dim=-1), self.choices(actions), strict=True)
        return _sum([td.munchausen_bonuses(*part, temperature) for part in parts]).clamp(min=td.MIN_BONUS)

    def soft_values(self, values: th.Tensor, temperature: float) -> th.Tensor:
        """
        ``td.soft_values`` of that policy.

        :param values: ``[T, B, N, A]``
        :param temperature: tau
        :return: ``[T, B, N]``
        """
        return _sum([td.soft_values(part, temperature) for part in values.split(self.sizes, dim=-1)])


class ActionCombinations(ActionComponents):
    """
    A value of each combination of choices, with the last component changing fastest, as in ``FlattenSpaces``.

    :param action_space: with one axis
    """

    def __init__(self, action_space: spaces.MultiDiscrete) -> None:
        super().__init__(action_space)
        self.sizes = [math.prod(self.nvec)]

    def choices(self, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        strides = [math.prod(self.nvec[d + 1 :]) for d in range(len(self.nvec))]
        return ((actions * actions.new_tensor(strides)).sum(dim=-1),)

    def best(self, q_values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        values, combinations = q_values.max(dim=-1)
        return values, th.stack(th.unravel_index(combinations, tuple(self.nvec)), dim=-1)

    def mask(self, values: th.Tensor, action_masks: th.Tensor | None) -> th.Tensor:
        if action_masks is None:
            return values
        components = action_masks.split(self.nvec, dim=-1)
        return mask_values(values, reduce(lambda left, right: (left[..., None] & right[..., None, :]).flatten(-2), components))


def action_components(action_space: ActionSpace, max_combinations: int) -> ActionComponents:
    """
    Decide how actions are valued.

    :param action_space: with at most one axis
    :param max_combinations: largest number of combinations of ``MultiDiscrete`` actions that have a value each
    :return: the components
    :raises ValueError: if ``max_combinations`` is not an integer of at least 0
    """
    if not isinstance(max_combinations, Integral) or max_combinations < 0:
        raise ValueError(
            f"max_combinations={max_combinations!r} must be an integer of at least 0, which means a value of each component."
        )
    if isinstance(action_space, spaces.MultiDiscrete) and math.prod(action_space.nvec.tolist()) <= max_combinations:
        return ActionCombinations(action_space)
    return ActionComponents(action_space)


def _sum(parts: list[th.Tensor]) -> th.Tensor:
    return parts[0] if len(parts) == 1 else th.stack(parts).sum(dim=0)
