"""
The common part of NTM and DNC: a controller with an external memory, unrolled over time.

The second half, from ``CustomBackward`` on, lets a core replace autograd by a backward pass of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch as th
from torch import nn
from torch.autograd.function import once_differentiable

from sb3_attn.common.core_state import CoreState
from sb3_attn.memory.core import MemoryCore, check_finite, check_sizes
from sb3_attn.memory.external.backward import linear_weight_backward
from sb3_attn.memory.external.controller import Controller

#: ``torch.compile``, once per function, since each further call would compile again. Compiled functions are cached here and
#: not on a module, because modules are copied and pickled
compile_once = cache(th.compile)


def has_compiler() -> bool:
    """
    Look for the C++ compiler that ``torch.compile`` needs.

    :return: whether it is installed
    """
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


class ExternalMemoryCore(MemoryCore):
    """
    A controller that reads and writes an external memory, with an output layer over both.

    :param input_size: size F of an input vector
    :param hidden_size: size C of the controller
    :param read_size: size R W of the vectors read in one step, concatenated
    :param output_size: size D of the output; ``None`` means ``hidden_size``
    :param controller: ``"lstm"`` or ``"feedforward"``
    :param forget_bias: initial bias of the LSTM's forget gate
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
        check_sizes(self, hidden_size=hidden_size)
        check_finite(self, forget_bias=forget_bias)
        super().__init__(input_size, output_size=hidden_size if output_size is None else output_size)
        self.controller = Controller(input_size, read_size, hidden_size, controller, forget_bias)
        self.output = nn.Linear(hidden_size + read_size, self.output_size)
        self.compiled = compiled and has_compiler()
        if compiled and not self.compiled:
            warnings.warn(
                "compiled=True needs a C++ compiler and none was found, so the steps are not compiled; install g++, or set "
                "the environment variable CXX to the compiler that you have.",
                stacklevel=4,
            )

    @property
    @abstractmethod
    def interface_layer(self) -> nn.Linear:
        """The layer from the controller's output to the interface vector, which operates the memory."""

    @abstractmethod
    def step(self, projected: th.Tensor, state: Any) -> tuple[th.Tensor, Any]:
        """
        Advance by one step.

        :param projected: contribution of the inputs to the controller's gates, ``[B, gates * C]``
        :param state: the state before the step
        :return: features for the output layer ``[B, C + R W]``, and the state after the step
        """

    def custom_backward(self) -> CustomBackward | None:
        """
        Choose how gradients are computed.

        :return: a backward pass written by hand, or ``None`` for autograd
        """
        return None

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, Any]:
        features, after = self.step(self.controller.project(inputs), self.state_class._make(state))
        return self.output(features), after

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, Any]:
        # Input projection and output layer do not depend on the memory, so each is one product for all steps
        projected, start = self.controller.project(inputs), self.state_class._make(state)
        backward = self.custom_backward() if th.is_grad_enabled() else None
        if backward is None:
            features, (*_, end) = self.run(projected, start)
        else:
            backward = backward.compiled() if self.compiled else backward
            features, end = unroll_with_custom_backward(backward, self, projected, start)
        return self.output(features), end

    def run(self, projected: th.Tensor, state: Any) -> tuple[th.Tensor, list[Any]]:
        """
        Run T steps in sequence.

        :param projected: ``[T, B, gates * C]``
        :param state: the state before the first step
        :return: features for the output layer ``[T, B, C + R W]``, and the T + 1 states before, between and after the steps
        """
        step = compile_once(type(self).step) if self.compiled else type(self).step
        features, states = [], [state]
        for step_projected in projected.unbind(0):
            step_features, state = step(self, step_projected, state)
            features.append(step_features)
            states.append(state)
        return th.stack(features), states


class CustomBackward(NamedTuple):
    """
    A backward pass written by hand, for a core whose controller is an LSTM.

    ``recompute(core, projected, states)`` computes again what the backward pass needs from the forward pass, for all T steps
    at once. It gets the projected inputs ``[T, B, 4 C]`` and the T + 1 states, stacked. It returns a named tuple of tensors
    ``[T, B, ...]`` or of further such tuples, with a ``SavedController`` in the field ``controller``.

    ``step_backward(saved, d_features, d_after, recurrent_weight, interface_weight)`` goes back by one step. It gets what
    ``recompute`` returned for this step, the gradients with respect to the features ``[B, C + R W]`` and to the state after
    the step, and the weights of the controller's recurrent part and of the interface layer. It returns the gradients with
    respect to the state before the step, to the gates ``[B, 4 C]`` and to the interface vector, the last two before their
    activations.
    """

    recompute: Callable[[Any, th.Tensor, Any], Any]
    step_backward: Callable[[Any, th.Tensor, Any, th.Tensor, th.Tensor], tuple[Any, th.Tensor, th.Tensor]]

    def compiled(self) -> CustomBackward:
        """
        Compile the body of the loop, but not ``recompute``: its shapes change with the number of steps.

        :return: the same backward pass, compiled
        """
        return self._replace(step_backward=compile_once(self.step_backward))


def unroll_with_custom_backward(
    backward: CustomBackward, core: ExternalMemoryCore, projected: th.Tensor, state: Any
) -> tuple[th.Tensor, Any]:
    """
    Run T steps that autograd sees as a single operation.

    :param backward: the gradient of that operation
    :param core: a core whose controller is an LSTM
    :param projected: contribution of the inputs to the gates, ``[T, B, 4 C]``
    :param state: the state before the first step
    :return: features for the output layer ``[T, B, C + R W]``, and the state after the last step
    """
    # The core has its parameters anyway; they are passed so that autograd asks for their gradients
    parameters = (core.controller.recurrent_weight, core.interface_layer.weight, core.interface_layer.bias)
    features, *arrays = _Unroll.apply(backward, core, projected, *parameters, *state)
    return features, core.state_class._make(arrays)


class _Unroll(th.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, custom: CustomBackward, core: ExternalMemoryCore, projected: th.Tensor, *arguments: th.Tensor
    ) -> tuple[th.Tensor, ...]:
        recurrent_weight, interface_weight, _, *arrays = arguments
        features, states = core.run(projected, core.state_class._make(arrays))
        ctx.custom, ctx.core = custom, core
        ctx.save_for_backward(projected, recurrent_weight, interface_weight, *map(th.stack, zip(*states, strict=True)))
        return features, *states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_features: th.Tensor, *d_arrays: th.Tensor) -> tuple[th.Tensor | None, ...]:
        projected, *weights = ctx.saved_tensors[:3]
        make_state = ctx.core.state_class._make
        saved = ctx.custom.recompute(ctx.core, projected, make_state(ctx.saved_tensors[3:]))
        d_state, d_gates, d_interface = make_state(d_arrays), [], []
        for step_saved, d_step in zip(reversed(split_steps(saved)), reversed(d_features), strict=True):
            d_state, d_step_gates, d_step_interface = ctx.custom.step_backward(step_saved, d_step, d_state, *weights)
            d_gates.append(d_step_gates)
            d_interface.append(d_step_interface)
        all_d_gates, all_d_interface = th.stack(d_gates[::-1]), th.stack(d_interface[::-1])
        # Gradients of weights are sums over all steps, so each is one product outside the loop
        d_recurrent_weight = linear_weight_backward(all_d_gates, saved.controller.recurrent)
        d_interface_weight = linear_weight_backward(all_d_interface, saved.controller.hidden)
        d_interface_bias = all_d_interface.sum(dim=(0, 1))
        # The gates are projected inputs + recurrent part, so projected inputs and gates have the same gradient
        return None, None, all_d_gates, d_recurrent_weight, d_interface_weight, d_interface_bias, *d_state


def split_steps(saved: Any) -> list[Any]:
    """
    Split saved values along time.

    :param saved: a named tuple of tensors ``[T, ...]``, or of further such tuples
    :return: T such tuples of tensors ``[...]``
    """
    fields = (split_steps(field) if isinstance(field, tuple) else field.unbind(0) for field in saved)
    return [saved._make(step) for step in zip(*fields, strict=True)]
