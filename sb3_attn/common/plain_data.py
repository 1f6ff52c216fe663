"""Plain data as JSON, without losing anything: JSON itself knows neither arrays nor tuples."""

import base64
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

#: Largest number of numbers in an array that are written out, which can be read but takes more space
MAX_WRITTEN_OUT = 64


def no_other_kind(value: Any, where: str) -> NoReturn:
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
    :return: the same where JSON knows it; anything else, and a dict, is a dict with one key that tells what it is
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
            is_short = array.size <= MAX_WRITTEN_OUT and array.dtype.kind in "biuf" and array.itemsize <= 8
            content = array.ravel().tolist() if is_short else base64.b64encode(array.tobytes()).decode()
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
        dtype, shape, numbers = content
        if not isinstance(numbers, list):
            numbers = np.frombuffer(base64.b64decode(numbers), dtype)
        return np.array(numbers, dtype).reshape(shape)[()]
    if kind == "dict":
        return {key: from_json(item, decode) for key, item in content.items()}
    if kind == "tuple":
        return tuple(from_json(content, decode))
    if decode is None:
        raise ValueError(f"{kind!r} is not a kind of plain data.")
    return decode(kind, from_json(content, decode))
