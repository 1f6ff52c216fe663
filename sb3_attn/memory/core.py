"""The contract of memory cores, and the core without a memory."""

import math
from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import torch as th
from torch import nn

from sb3_attn.common.core_state import CoreState


def check_sizes(owner: nn.Module, **sizes: int) -> None:
    """
    Refuse sizes that are not positive integers.

    :param owner: the module that has them as arguments
    :param sizes: argument names and values
    :raises ValueError: naming the first value that is not a positive integer
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name}={size!r} of {type(owner).__name__} must be at least 1; give it a positive integer.")


def check_finite(owner: nn.Module, **numbers: float) -> None:
    """
    Refuse numbers that are not finite.

    :param owner: the module that has them as arguments
    :param numbers: argument names and values
    :raises ValueError: naming the first value that is not a finite number
    """
    for name, number in numbers.items():
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(f"{name}={number!r} of {type(owner).__name__} is not finite; give it a number such as 1.0.")


class WeightsInfo(NamedTuple):
    """The meaning of one entry of ``MemoryCore.memory_weights``, for pictures."""

    #: Whether the weights of each head are distributed over the slots, so that they sum to at most 1. Otherwise each slot has
    #: a value of its own, such as the DNC's usage
    is_distribution: bool = True
    #: If the slots are the last steps, oldest first: the age of the last slot in steps, 0 being the current step. ``None`` if
    #: they are the places of an external memory
    newest_age: int | None = None
    #: If there is one weight for each pair of slots ``[B, N, N]`` instead of one for each head and slot: the name of the last
    #: axis relative to the one before it, such as ``"slot written before"``. ``None`` otherwise
    pair_label: str | None = None


class MemoryCore(nn.Module, ABC):
    """
    A recurrent memory: a pure function of its inputs and its state.

    The state is an argument and a return value, never an attribute, so acting, replay, evaluation and
    training can each carry their own. It is a flat ``NamedTuple`` of tensors with the batch axis first;
    its rows are independent.

    :param input_size: size F of an input vector
    :param output_size: size D of an output vector
    """

    #: For each name in ``memory_weights``, what its weights mean. A name that is missing has the defaults of ``WeightsInfo``
    weights_info: ClassVar[dict[str, WeightsInfo]] = {}
    #: Names of the fields of the state that hold nothing remembered, such as masks, so that its norm is taken without them
    auxiliary_fields: ClassVar[tuple[str, ...]] = ()
    #: Whether the core samples in training mode, as hard attention does. In evaluation mode a core is deterministic
    samples_in_training: bool = False

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        check_sizes(self, input_size=input_size, output_size=output_size)
        self.input_size = input_size
        self.output_size = output_size

    @classmethod
    def window_kwargs(cls, length: int) -> dict[str, Any]:
        """
        Constructor arguments that make a sliding-window core look back exactly ``length`` steps.

        :param length: number of steps
        :return: keyword arguments; empty for a core without a window
        """
        return {}

    @abstractmethod
    def initial_state(self, batch_size: int) -> CoreState:
        """
        Return the state before an episode's first step. It may be learned.

        :param batch_size: number of rows B
        :return: a flat ``NamedTuple`` of tensors ``[B, ...]``
        """

    @abstractmethod
    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, CoreState]:
        """
        Advance by one step.

        :param inputs: ``[B, F]``
        :param state: the state before this step, tensors ``[B, ...]``
        :return: outputs ``[B, D]`` and the state after this step
        """

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, CoreState]:
        """
        Advance by T steps within an episode, with the result of T calls of ``forward``.

        Overridden where a fused path is faster.

        :param inputs: ``[T, B, F]``
        :param state: the state before the first step
        :return: outputs ``[T, B, D]`` and the state after the last step
        """
        outputs = []
        for step_inputs in inputs.unbind(0):
            output, state = self(step_inputs, state)
            outputs.append(output)
        return th.stack(outputs), state

    def memory_weights(self, inputs: th.Tensor, state: CoreState) -> dict[str, th.Tensor]:
        """
        Compute the weights with which one step reads and writes, for pictures of the memory.

        The step is computed again, since nothing is kept on the module. ``weights_info`` says what the weights mean.

        :param inputs: ``[B, F]``
        :param state: the state before this step
        :return: by name, such as ``"read"``, weights ``[B, heads, N]``, or ``[B, N, N]`` over pairs of the N slots; empty for
            a core without slots
        """
        return {}

    def surrogate_loss(self, step_losses: th.Tensor, mask: th.Tensor, state: CoreState) -> th.Tensor | float:
        """
        Compute a term to add to the loss, whose gradient is the score-function (REINFORCE) gradient of the core's sampling.

        :param step_losses: the part of each step in the loss, without gradient, 0 on padding, ``[T, B]``
        :param mask: True on real steps, False on padding, bool ``[T, B]``
        :param state: the state after an unroll of T + 1 steps, the last of which has no loss; with gradient
        :return: a scalar whose value has no meaning; 0 for a core that does not sample, as most
        """
        return 0.0


class IdentityState(NamedTuple):
    """The empty state."""


class IdentityCore(MemoryCore):
    """
    No memory: the outputs are the inputs. The memoryless control of an experiment.

    With this core, windows of length 1, no double Q, uniform replay, and no dueling or skip connection, ``RecurrentDQN`` is
    stock DQN.

    :param input_size: size of an input vector, which is also the output
    """

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, output_size=input_size)

    def initial_state(self, batch_size: int) -> IdentityState:
        return IdentityState()

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, CoreState]:
        return inputs, state

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, CoreState]:
        return inputs, state
