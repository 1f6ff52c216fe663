"""
Former names, so that models, replay buffers and YAML files of earlier versions still load.

Each table of former names stands with the class that it is about; here is how they are applied.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])


def accept_former_arguments(**names: str) -> Callable[[Function], Function]:
    """
    Let a function accept keyword arguments by their former names, with a warning.

    :param names: from the former name to the present one
    :return: a decorator
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for former in names.keys() & kwargs.keys():
                name = names[former]
                if name in kwargs:
                    raise TypeError(f"{former} is the former name of {name}; pass {name} only.")
                warnings.warn(f"{former} is now called {name}; the former name still works.", FutureWarning, stacklevel=2)
                kwargs[name] = kwargs.pop(former)
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def rename_attributes(attributes: dict[str, Any], names: Mapping[str, str]) -> None:
    """
    Rename what an earlier version has saved.

    :param attributes: by their names then, changed in place
    :param names: from the former name to the present one
    """
    for former, name in names.items():
        if former in attributes:
            attributes[name] = attributes.pop(former)


class FormerParameterNames(nn.Module):
    """A module that also loads parameters by the names that they, or its submodules, had in earlier versions."""

    #: From the former name of a parameter or submodule to the present one
    former_parameters: ClassVar[dict[str, str]] = {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in list(state_dict):
            name, dot, rest = key.removeprefix(prefix).partition(".")
            if key.startswith(prefix) and name in self.former_parameters:
                state_dict[f"{prefix}{self.former_parameters[name]}{dot}{rest}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)
