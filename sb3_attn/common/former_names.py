"""
Former names, so that models, replay buffers and YAML files of earlier versions still load.

The tables of former arguments, attributes and parameters are next to their classes, those of classes and modules here.
"""

from __future__ import annotations

import functools
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])

#: From the former name of a class to the present one
FORMER_CLASSES = {
    "CnnPolicy": "RecurrentDQNPolicy",
    "GatedTransformerCore": "GTrXLCore",
    "MlpPolicy": "RecurrentDQNPolicy",
    "MultiInputPolicy": "RecurrentDQNPolicy",
    "TransformerExtractor": "GTrXLExtractor",
    "TransformerPolicy": "GTrXLPolicy",
}

#: From the former name of a module to the present one
FORMER_MODULES = {
    "sb3_attn.memory.dnc": "sb3_attn.memory.external.dnc",
    "sb3_attn.memory.gated_transformer": "sb3_attn.memory.gtrxl",
    "sb3_attn.memory.ntm": "sb3_attn.memory.external.ntm",
}


def find_by_former_name(module: str, name: str) -> Any:
    """
    Look up a class by a former name: the ``__getattr__`` of packages that export classes.

    SB3 has three names for each policy. Here the observation space alone decides which network a policy builds, so they
    are former names of one class: ``NTMPolicy`` is also ``NTMMlpPolicy``, ``NTMCnnPolicy`` and ``NTMMultiInputPolicy``.

    :param module: name of the module that has the class
    :param name: former name of the class
    :return: the class
    :raises AttributeError: if the module has no such class
    """
    present = re.sub("(?<=.)(Mlp|Cnn|MultiInput)Policy$", "Policy", name)
    present = FORMER_CLASSES.get(present, present)
    attributes = vars(sys.modules[module])
    if present not in attributes:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return attributes[present]


def alias_former_modules() -> None:
    """Let pickles find the modules that have moved, all of which must have been imported."""
    for former, present in FORMER_MODULES.items():
        sys.modules[former] = sys.modules[present]


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


def rename_attributes(attributes: dict[str, Any], names: Mapping[str, str | None]) -> None:
    """
    Rename the attributes that an earlier version has saved.

    :param attributes: attributes by name, changed in place
    :param names: from the former name to the present one, or to ``None`` if the attribute no longer exists
    """
    for former in names.keys() & attributes.keys():
        value, name = attributes.pop(former), names[former]
        if name is not None:
            attributes[name] = value


class FormerAttributeNames:
    """A class whose pickles may have attributes by the names that they had in earlier versions."""

    #: From the former name of an attribute to the present one, or to ``None`` if it no longer exists
    former_attributes: ClassVar[dict[str, str | None]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rename_attributes(state, self.former_attributes)
        self.__dict__.update(state)


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
