"""Checks of the parameters of networks and optimizers, before they are saved or loaded."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch as th


def refuse_nan(parameters: Mapping[str, Any], consequence: str) -> None:
    """
    Check that no number is NaN.

    :param parameters: state dicts of networks and optimizers by name, as ``get_parameters`` returns them
    :param consequence: what happens now and what to do, for the message
    :raises ValueError: if one is; the sentence names it
    """
    for name, state in parameters.items():
        for key, tensor in _tensors(state):
            if tensor.is_floating_point() and tensor.isnan().any():
                raise ValueError(f"{key} in {name!r} has {int(tensor.isnan().sum())} NaN, so this {consequence}.")


def check_adam_state(optimizer: th.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """
    Check that the moments that Adam keeps of each parameter have its shape. The fused kernel reads them without asking.

    :param optimizer: an optimizer; others than Adam are not checked
    :param state: a state dict to load into it
    :raises ValueError: if one has another shape; the sentence names both
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(optimizer, th.optim.Adam) or len(numbers) != len(parameters):
        return  # if the numbers of parameters differ, torch raises, or SB3 for the zips of former versions
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, tensor in state["state"].get(number, {}).items():
            shape, needed = tuple(th.as_tensor(tensor).shape), () if key == "step" else tuple(parameter.shape)
            if shape != needed:
                raise ValueError(
                    f"{key!r} of parameter {number} in 'policy.optimizer' has the shape {shape}, but needs {needed}; the file "
                    "is damaged, or that of another model."
                )


def _tensors(state: Any, key: str = "") -> Iterator[tuple[str, th.Tensor]]:
    """All tensors in nested mappings, with the keys that lead to them."""
    if isinstance(state, th.Tensor):
        yield key, state
    elif isinstance(state, Mapping):
        for name, part in state.items():
            yield from _tensors(part, f"{key}.{name}" if key else str(name))
