"""Plain data as JSON, without losing anything: JSON itself knows neither arrays nor tuples."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np


def no_other_kind(value: Any, where: str) -> tuple[str, Any]:
    """
    Refuse what is not plain data.

    :param value: what it is
    :param where: where it is from
    :raises ValueError: always
    """
    raise ValueError(
        f"{where} has a {type(value).__name__}, but a checkpoint holds plain data only; return None, numbers, strings, numpy "
        "arrays of them, and lists, tuples and dicts (with strings as keys) of these."
    )


def to_json(value: Any, where: str, encode: Callable[[Any, str], tuple[str, Any]] = no_other_kind) -> Any:
    """
    Convert plain data into what JSON can hold.

    :param value: ``None``, numbers, strings, arrays, or lists, tuples and dicts of them, with strings as keys
    :param where: where it is from, for the error
    :param encode: given anything else and ``where``, returns what kind it is, and plain data that stands for it
    :return: the same; only what JSON does not know is a dict, with one key that tells what it is
    :raises ValueError: if it is something else
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [to_json(item, where, encode) for item in value]
    if type(value) is tuple:
        return {"tuple": [to_json(item, where, encode) for item in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: to_json(item, where, encode) for key, item in value.items()}}
    if isinstance(value, np.generic) or type(value) is np.ndarray:
        array = np.asarray(value)
        if array.dtype.kind in "biufcSU":
            content = base64.b64encode(array.tobytes()).decode()
            return {"array": [array.dtype.str, list(array.shape), content]}
    kind, content = encode(value, where)
    return {kind: to_json(content, where, encode)}


def from_json(value: Any, decode: Callable[[str, Any], Any] | None = None) -> Any:
    """
    Undo ``to_json``.

    :param value: what it returned, or what JSON made of that
    :param decode: given a kind and the plain data that stand for it, returns what ``encode`` was given
    :return: the value; an array without axes is a number of its type
    """
    if isinstance(value, list):
        return [from_json(item, decode) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        dtype, shape, encoded = content
        return np.frombuffer(base64.b64decode(encoded), dtype).reshape(shape).copy()[()]
    if kind == "dict":
        return {key: from_json(item, decode) for key, item in content.items()}
    if kind == "tuple":
        return tuple(from_json(content, decode))
    if decode is None:
        raise ValueError(f"{kind!r} is no kind of plain data.")
    return decode(kind, from_json(content, decode))
