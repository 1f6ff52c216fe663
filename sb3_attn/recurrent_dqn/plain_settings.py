"""
The settings of a model as JSON, in a member of its zip that SB3 does not look at.

SB3's own member has as pickles what JSON does not know: classes, spaces, schedules, arrays. Here they can be read, and are
loaded without a pickle. What would not come back as it was, such as a function as the learning rate, stays a pickle only.
"""

import importlib
import io
import json
import pickle
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_attn.common.plain_data import from_json, to_json
from sb3_attn.recurrent_dqn.return_scale import ReturnScale

MEMBER = "settings.json"

#: Classes whose objects are fully described by their attributes
BY_ATTRIBUTES = (
    *(spaces.Box, spaces.Dict, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete),
    *(ConstantSchedule, FloatSchedule, LinearSchedule, ReturnScale),
)

#: For objects of other classes, the arguments from which ``MAKERS`` makes an equal object
ARGUMENTS: dict[type, Callable[[Any], list[Any]]] = {
    np.random.Generator: lambda generator: [generator.bit_generator.state],
    th.Tensor: lambda tensor: [tensor.numpy()],
    OrderedDict: lambda items: [list(items.items())],
    TrainFreq: list,
    TrainFrequencyUnit: lambda unit: [unit.value],
    deque: lambda items: [list(items), items.maxlen],
}


def _generator(state: dict[str, Any]) -> np.random.Generator:
    generator = np.random.Generator(np.random.PCG64())
    generator.bit_generator.state = state
    return generator


MAKERS: dict[str, Callable[..., Any]] = {
    "dtype": np.dtype,
    "Generator": _generator,
    "Tensor": th.as_tensor,
    **{cls.__name__: cls for cls in (OrderedDict, TrainFreq, TrainFrequencyUnit, deque)},
}


class PlainSetting(NamedTuple):
    """A setting as it is written; a type of its own, since SB3's own entries may be any JSON."""

    value: Any


def append_settings(file: Path | io.BytesIO, attributes: Mapping[str, Any]) -> None:
    """
    Add to an SB3 zip, as JSON, what it otherwise has only as pickles.

    :param file: the zip
    :param attributes: those of the model
    """
    with zipfile.ZipFile(file, "a") as archive:
        pickled = [key for key, item in json.loads(archive.read("data")).items() if is_pickled(item)]
        settings = {key: setting.value for key in pickled if (setting := plain_setting(attributes[key])) is not None}
        archive.writestr(MEMBER, json.dumps(settings, indent=2))


def read_settings(archive: zipfile.ZipFile, data: Mapping[str, Any]) -> dict[str, PlainSetting]:
    """
    Read what an SB3 zip has in both forms.

    :param archive: the zip
    :param data: what SB3's own member has
    :return: settings by name, none if an earlier version saved the zip
    """
    settings = json.loads(archive.read(MEMBER)) if MEMBER in archive.namelist() else {}
    return {key: PlainSetting(value) for key, value in settings.items() if is_pickled(data.get(key))}


def plain_setting(value: Any) -> PlainSetting | None:
    """
    Write a setting.

    :param value: any object
    :return: ``None`` if it would not come back as it is
    """
    try:
        setting = PlainSetting(to_json(value, "a setting", _encode))
        is_same = _pickled(decoded(setting, _find_class)) == _pickled(value)
    except Exception:  # anything that JSON, NumPy or the pickle for the comparison cannot hold
        return None
    return setting if is_same else None


def decoded(setting: PlainSetting, find_class: Callable[[str, str], Any]) -> Any:
    """
    Make what a setting stands for.

    :param setting: from ``read_settings``
    :param find_class: returns a class, given its module and its name, if it may be used
    :return: the object
    """

    def decode(kind: str, content: Any) -> Any:
        if kind == "class":
            return find_class(*content)
        if kind != "object":
            return MAKERS[kind](*content)
        module, name, attributes = content
        cls = find_class(module, name)
        if cls not in BY_ATTRIBUTES:
            raise ValueError(f"{module}.{name} is not a class that is made from attributes.")
        made = cls.__new__(cls)
        vars(made).update(attributes)
        return made

    return from_json(setting.value, decode)


def is_pickled(item: Any) -> bool:
    """
    Tell pickles apart.

    :param item: a value in SB3's own member
    :return: whether it is a pickle
    """
    return isinstance(item, dict) and ":serialized:" in item


def _encode(value: Any, where: str) -> tuple[str, Any]:
    cls = type(value)
    if isinstance(value, type) and value.__module__ != "__main__":
        return "class", [value.__module__, value.__qualname__]
    if isinstance(value, np.dtype):
        return "dtype", [value.str]
    if cls in BY_ATTRIBUTES:  # a subclass may be more
        return "object", [cls.__module__, cls.__name__, dict(vars(value))]
    if cls in ARGUMENTS:
        return cls.__name__, ARGUMENTS[cls](value)
    raise ValueError(f"{where} has a {cls.__name__}.")


def _find_class(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


class _Pickler(pickle.Pickler):
    """Pickles of equal numbers are equal, whatever their layout in memory."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray and obj.dtype != object:
            return np.array, (obj.dtype.str, obj.shape, obj.tobytes())
        if type(obj) is th.Tensor:
            return th.tensor, (obj.numpy(),)
        if type(obj) is np.random.Generator:
            return np.random.Generator, (obj.bit_generator.state,)
        return NotImplemented


def _pickled(value: Any) -> bytes:
    """The bytes that values are compared by: the same for equal values, whether or not they share parts."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=5)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()
