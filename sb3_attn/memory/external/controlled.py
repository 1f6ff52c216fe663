"""A controller with an external memory: what NTM and DNC share."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import torch as th
from torch import nn

from sb3_attn.common.core_state import CoreState
from sb3_attn.memory.core import MemoryCore
from sb3_attn.memory.external.controller import Controller
from sb3_attn.memory.external.gradients import WrittenGradient, compile_once, has_compiler, unroll_with


class ControlledCore(MemoryCore):
    """
    A controller that reads and writes a memory, and a layer over both for the outputs.

    :param input_size: size F of an input vector
    :param hidden_size: size C of the controller
    :param read_size: size R W of all that is read at a step
    :param output_size: size D of the output; ``None`` means ``hidden_size``
    :param controller: ``"lstm"`` or ``"feedforward"``
    :param forget_bias: of the LSTM's forget gate
    :param compiled: compile the steps of an unroll with ``torch.compile``
    """

    state_class: ClassVar[Any]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        read_size: int,
        output_size: int | None,
        controller: str,
        forget_bias: float,
        compiled: bool,
    ) -> None:
        self._check_sizes(hidden_size=hidden_size)
        self._check_finite(forget_bias=forget_bias)
        super().__init__(input_size, output_size=hidden_size if output_size is None else output_size)
        self.controller = Controller(input_size, read_size, hidden_size, controller, forget_bias)
        self.output = nn.Linear(hidden_size + read_size, self.output_size)
        self.compiled = compiled and has_compiler()
        if compiled and not self.compiled:
            warnings.warn(
                "compiled=True needs a C++ compiler and there is none, so the steps are not compiled; install g++, or set the "
                "environment variable CXX to the compiler that you have.",
                stacklevel=4,
            )

    @property
    @abstractmethod
    def instructions(self) -> nn.Linear:
        """The layer through which the controller tells the memory what to do."""

    @abstractmethod
    def step(self, projected: th.Tensor, state: Any) -> tuple[th.Tensor, Any]:
        """
        One step.

        :param projected: what the inputs contribute to the controller's gates, ``[B, gates * C]``
        :param state: before the step
        :return: what the output layer sees, ``[B, C + R W]``, and the state after the step
        """

    def written_gradient(self) -> WrittenGradient | None:
        """The gradient of a step, written out; ``None`` leaves it to autograd."""
        return None

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, Any]:
        features, after = self.step(self.controller.project(inputs), self.state_class._make(state))
        return self.output(features), after

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, Any]:
        # The products with the inputs and for the outputs need no memory: one each for all steps
        projected, start = self.controller.project(inputs), self.state_class._make(state)
        gradient = self.written_gradient() if th.is_grad_enabled() else None
        if gradient is None:
            features, (*_, end) = self.run(projected, start)
        else:
            features, end = unroll_with(gradient.compiled() if self.compiled else gradient, self, projected, start)
        return self.output(features), end

    def run(self, projected: th.Tensor, state: Any) -> tuple[th.Tensor, list[Any]]:
        """
        T steps, one after the other.

        :param projected: ``[T, B, gates * C]``
        :param state: before the first
        :return: what the output layer sees, ``[T, B, C + R W]``, and the T + 1 states around the steps
        """
        step = compile_once(type(self).step) if self.compiled else type(self).step
        features, states = [], [state]
        for step_projected in projected.unbind(0):
            step_features, state = step(self, step_projected, state)
            features.append(step_features)
            states.append(state)
        return th.stack(features), states
