"""Checks of single arguments."""

import math
import numbers
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

#: Takes the name of an argument and its value; raises a ``ValueError`` that names both
ValueCheck: TypeAlias = Callable[[str, Any], None]


def optional(check: ValueCheck) -> ValueCheck:
    """
    Let an argument be ``None``.

    :param check: of all other values
    :return: a check that accepts ``None``, too
    """
    return lambda name, value: None if value is None else check(name, value)


def check_flag(name: str, value: Any) -> None:
    """
    Check that an argument is a truth value.

    :param name: of the argument
    :param value: of the argument
    :raises ValueError: if it is not
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value!r} must be True or False.")


def check_dict(name: str, value: Any) -> None:
    """
    Check that an argument is a dict.

    :param name: of the argument
    :param value: of the argument
    :raises ValueError: if it is not
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name}={value!r} must be a dict of arguments.")


def check_whole(name: str, value: Any, at_least: int | None = None) -> None:
    """
    Check that an argument is an integer.

    :param name: of the argument
    :param value: of the argument
    :param at_least: its smallest value
    :raises ValueError: if it is not an integer, or is smaller
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be a whole number, not of type {type(value).__name__}.")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name}={value} must be at least {at_least}.")


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, positive: bool = False, otherwise: str = ""
) -> None:
    """
    Check that an argument is a number in a range.

    :param name: of the argument
    :param value: of the argument
    :param low: its smallest value
    :param high: its largest value
    :param positive: whether it has to be larger than 0
    :param otherwise: end of the sentence, with what else it may be
    :raises ValueError: if it is not a number, is NaN, or is outside the range
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be a number, not of type {type(value).__name__}{otherwise}.")
    if not low <= float(value) <= high or (positive and value == 0):
        must = "be positive" if positive else f"be at least {low}" if high == math.inf else f"lie between {low} and {high}"
        raise ValueError(f"{name}={value} must {must}{otherwise}.")
