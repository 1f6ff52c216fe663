"""
What the written-out gradients of NTM and DNC share.

Autograd records dozens of operations for each step of such a memory, whose bookkeeping costs more than they do. Instead the
states are kept; all that the steps computed from them is computed again, for all steps at once (a *trace*), and a short
loop goes back in time. Step by step, as ``MemoryCore.unroll`` does it, comes to the same, and is the oracle in the tests.

``d_x`` is the gradient by x; the *slope* of y by x is dy/dx where both are numbers.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch as th
from torch.autograd.function import once_differentiable

from sb3_attn.memory.external import addressing
from sb3_attn.memory.external.controller import Controller

if TYPE_CHECKING:
    from sb3_attn.memory.external.controlled import ControlledCore


class WrittenGradient(NamedTuple):
    """
    The gradient of a core's step.

    :param trace: from the core, the projected inputs ``[T, B, 4 C]`` and the T + 1 states around the steps, stacked, a trace
        that has a ``ControllerTrace`` named ``controller``
    :param step_backward: from a trace of one step, the gradients by what the output layer sees ``[B, C + R W]`` and by the
        state after the step, and the weights of the controller's recurrent layer and of its instructions: the gradients by
        the state before the step, by the controller's gates ``[B, 4 C]``, and by the instructions before their functions
    """

    trace: Callable[[Any, th.Tensor, Any], Any]
    step_backward: Callable[[Any, th.Tensor, Any, th.Tensor, th.Tensor], tuple[Any, th.Tensor, th.Tensor]]

    def compiled(self) -> WrittenGradient:
        """The same with the loop's body compiled; the trace has other shapes for other numbers of steps."""
        return self._replace(step_backward=compile_once(self.step_backward))


#: ``torch.compile``, which starts anew each time it is called. Not kept on a module, since those are copied and pickled
compile_once = cache(th.compile)


def has_compiler() -> bool:
    """Whether there is the C++ compiler that ``torch.compile`` looks for."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


def unroll_with(gradient: WrittenGradient, core: ControlledCore, projected: th.Tensor, state: Any) -> tuple[th.Tensor, Any]:
    """
    T steps, with a written gradient.

    :param gradient: of the core's step
    :param core: with an LSTM as controller
    :param projected: what the inputs contribute to the gates, ``[T, B, 4 C]``
    :param state: before the first step
    :return: what the output layer sees, ``[T, B, C + R W]``, and the state after the last step
    """
    # The parameters stand here only so that autograd knows of them
    parameters = (core.controller.recurrent_weight, core.instructions.weight, core.instructions.bias)
    features, *arrays = _Unroll.apply(gradient, core, projected, *parameters, *state)
    return features, core.state_class._make(arrays)


class _Unroll(th.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gradient: WrittenGradient, core: ControlledCore, projected: th.Tensor, *arguments: th.Tensor
    ) -> tuple[th.Tensor, ...]:
        recurrent_weight, instruction_weight, _, *arrays = arguments
        features, states = core.run(projected, core.state_class._make(arrays))
        ctx.gradient, ctx.core = gradient, core
        ctx.save_for_backward(projected, recurrent_weight, instruction_weight, *map(th.stack, zip(*states, strict=True)))
        return features, *states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_features: th.Tensor, *d_arrays: th.Tensor) -> tuple[th.Tensor | None, ...]:
        projected, *weights = ctx.saved_tensors[:3]
        make_state = ctx.core.state_class._make
        trace = ctx.gradient.trace(ctx.core, projected, make_state(ctx.saved_tensors[3:]))
        d_state, d_gates, d_told = make_state(d_arrays), [], []
        for now, d_step in zip(reversed(steps(trace)), reversed(d_features), strict=True):
            d_state, d_step_gates, d_step_told = ctx.gradient.step_backward(now, d_step, d_state, *weights)
            d_gates.append(d_step_gates)
            d_told.append(d_step_told)
        all_d_gates, all_d_told = th.stack(d_gates[::-1]), th.stack(d_told[::-1])
        d_recurrent_weight = weight_gradient(all_d_gates, trace.controller.recurrent)
        d_instruction_weight = weight_gradient(all_d_told, trace.controller.hidden)
        d_bias = all_d_told.sum(dim=(0, 1))
        return None, None, all_d_gates, d_recurrent_weight, d_instruction_weight, d_bias, *d_state


def steps(trace: Any) -> list[Any]:
    """
    A trace of T steps as T traces of one.

    :param trace: a named tuple of tensors ``[T, ...]``, or of such named tuples
    """
    fields = (steps(field) if isinstance(field, tuple) else field.unbind(0) for field in trace)
    return [trace._make(step) for step in zip(*fields, strict=True)]


def softmax_backward(weights: th.Tensor, d_weights: th.Tensor) -> th.Tensor:
    """
    The gradient by what went into a softmax.

    :param weights: what came out, ``[..., n]``
    :param d_weights: ``[..., n]``
    """
    products = weights * d_weights
    return th.addcmul(products, weights, products.sum(dim=-1, keepdim=True), value=-1)


class ContentTrace(NamedTuple):
    """Weights by content."""

    memory: th.Tensor  # [T, B, N, W]
    keys: th.Tensor  # [T, B, H, W]
    strengths: th.Tensor  # [T, B, H, 1]
    key_squares: th.Tensor  # |k|^2, [T, B, H, 1]
    memory_squares: th.Tensor  # |M(i)|^2, [T, B, 1, N]
    inverse_lengths: th.Tensor  # 1 / sqrt(|k|^2 |M(i)|^2 + eps), [T, B, H, N]
    similarity: th.Tensor  # [T, B, H, N]
    weights: th.Tensor  # [T, B, H, N]


def trace_content(memory: th.Tensor, keys: th.Tensor, strengths: th.Tensor) -> ContentTrace:
    """
    Weights by content again.

    :param memory: ``[T, B, N, W]``
    :param keys: ``[T, B, H, W]``
    :param strengths: ``[T, B, H, 1]``
    """
    key_squares = (keys * keys).sum(dim=-1, keepdim=True)
    memory_squares = (memory * memory).sum(dim=-1).unsqueeze(-2)
    inverse_lengths = (key_squares * memory_squares + addressing.EPS).rsqrt()
    similarity = keys @ memory.transpose(-1, -2) * inverse_lengths
    weights = addressing.content_weights(similarity, strengths)
    return ContentTrace(memory, keys, strengths, key_squares, memory_squares, inverse_lengths, similarity, weights)


def content_backward(now: ContentTrace, d_weights: th.Tensor, d_memory: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Graves et al. (2014), eqs. (5) and (6), of one step.

    :param now: of this step
    :param d_weights: ``[B, H, N]``
    :param d_memory: from elsewhere, ``[B, N, W]``
    :return: the gradients by the keys ``[B, H, W]``, the strengths ``[B, H, 1]`` and, with what was given, the memory
    """
    d_scores = softmax_backward(now.weights, d_weights)
    d_strengths = (d_scores * now.similarity).sum(dim=-1, keepdim=True)
    d_products = d_scores * now.strengths * now.inverse_lengths
    # The lengths, which stand below the fraction: - K / 2 times the logarithm of their squares
    d_squares = d_products * now.similarity * now.inverse_lengths
    d_keys = d_products @ now.memory
    d_keys = th.addcmul(d_keys, now.keys, (d_squares * now.memory_squares).sum(dim=-1, keepdim=True), value=-1)
    d_memory = d_memory + d_products.transpose(-1, -2) @ now.keys
    d_memory = th.addcmul(d_memory, now.memory, (d_squares * now.key_squares).sum(dim=1).unsqueeze(-1), value=-1)
    return d_keys, d_strengths, d_memory


class ControllerTrace(NamedTuple):
    """An LSTM as controller."""

    recurrent: th.Tensor  # what was read and the hidden state, both before the step, [T, B, R W + C]
    hidden: th.Tensor  # after the step, [T, B, C]
    forget: th.Tensor  # the forget gate, [T, B, C]
    gate_slopes: th.Tensor  # of the cell (i, f, g) or the hidden state (o) by the gates before their functions, [T, B, 4 C]
    cell_slopes: th.Tensor  # of the hidden state by the cell, [T, B, C]


def trace_controller(
    controller: Controller, projected: th.Tensor, reads: th.Tensor, hidden: th.Tensor, cell: th.Tensor
) -> ControllerTrace:
    """
    The controller's steps again.

    :param controller: an LSTM
    :param projected: what the inputs contribute to the gates, ``[T, B, 4 C]``
    :param reads: around the steps, ``[T + 1, B, R, W]``
    :param hidden: around the steps, ``[T + 1, B, C]``
    :param cell: around the steps, ``[T + 1, B, C]``
    """
    recurrent = th.cat((reads[:-1].flatten(2), hidden[:-1]), dim=-1)
    i, f, o, g = controller.gates(projected + recurrent @ controller.recurrent_weight.t())
    tanh_cell = cell[1:].tanh()
    gate_slopes = (g * i * (1 - i), cell[:-1] * f * (1 - f), tanh_cell * o * (1 - o), i * (1 - g * g))
    return ControllerTrace(recurrent, hidden[1:], f, th.cat(gate_slopes, dim=-1), o * (1 - tanh_cell * tanh_cell))


def controller_backward(
    now: ControllerTrace, d_hidden: th.Tensor, d_cell: th.Tensor, recurrent_weight: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """
    The LSTM, of one step.

    :param now: of this step
    :param d_hidden: ``[B, C]``
    :param d_cell: ``[B, C]``
    :param recurrent_weight: ``[4 C, R W + C]``
    :return: the gradients by what was read before ``[B, R W]``, by hidden state and cell before, and by the gates before
        their functions ``[B, 4 C]``
    """
    d_cell = th.addcmul(d_cell, d_hidden, now.cell_slopes)
    d_gates = th.cat((d_cell, d_cell, d_hidden, d_cell), dim=-1) * now.gate_slopes
    d_recurrent = d_gates @ recurrent_weight
    hidden_size = d_hidden.shape[-1]
    return d_recurrent[:, :-hidden_size], d_recurrent[:, -hidden_size:], d_cell * now.forget, d_gates


def weight_gradient(d_outputs: th.Tensor, inputs: th.Tensor) -> th.Tensor:
    """
    The gradient by a layer's weight, from those by its outputs at all steps in one product.

    :param d_outputs: ``[T, B, out]``
    :param inputs: ``[T, B, in]``
    :return: ``[out, in]``
    """
    return d_outputs.flatten(0, 1).t() @ inputs.flatten(0, 1)
