"""
The settings of a model as JSON, in a member of its zip that SB3 does not look at.

SB3's own member has as pickles what JSON does not know: classes, spaces, schedules, arrays. Here they can be read, and are
loaded without a pickle. What is not known here stays a pickle, such as a function as the learning rate.
"""

import io
import json
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
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
#: Kind of a class, which is found by its name
CLASS = "class"


class Kind(NamedTuple):
    """
    How objects of a class are written.

    :param arguments: returns the arguments of ``make`` for an equal object
    :param make: makes one; ``None`` means the class itself
    """

    arguments: Callable[[Any], list[Any]]
    make: Callable[..., Any] | None = None


class PlainSetting(NamedTuple):
    """A setting as it is written; a type of its own, since SB3's own entries may be any JSON."""

    value: Any


def _box(low: Any, high: Any, dtype: str) -> spaces.Box:
    return spaces.Box(low, high, dtype=np.dtype(dtype))


def _discrete(n: int, start: int) -> spaces.Discrete:
    return spaces.Discrete(n, start=start)


def _multi_discrete(nvec: Any, start: Any, dtype: str) -> spaces.MultiDiscrete:
    return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)


def _return_scale(state: dict[str, Any]) -> ReturnScale:
    scale = ReturnScale(state["gamma"])
    vars(scale).update(state)
    return scale


KINDS: dict[type, Kind] = {
    spaces.Box: Kind(lambda space: [space.low, space.high, space.dtype.str], _box),
    spaces.Dict: Kind(lambda space: [list(space.items())]),  # a list of pairs keeps its order
    spaces.Discrete: Kind(lambda space: [int(space.n), int(space.start)], _discrete),
    spaces.MultiBinary: Kind(lambda space: [space.n]),
    spaces.MultiDiscrete: Kind(lambda space: [space.nvec, space.start, space.dtype.str], _multi_discrete),
    ConstantSchedule: Kind(lambda schedule: [schedule.val]),
    FloatSchedule: Kind(lambda schedule: [schedule.value_schedule]),
    LinearSchedule: Kind(lambda schedule: [schedule.start, schedule.end, schedule.end_fraction]),
    ReturnScale: Kind(lambda scale: [vars(scale)], _return_scale),
    th.Tensor: Kind(lambda tensor: [tensor.detach().cpu().numpy()], th.as_tensor),
    OrderedDict: Kind(lambda items: [list(items.items())]),
    TrainFreq: Kind(list),
    TrainFrequencyUnit: Kind(lambda unit: [unit.value]),
    deque: Kind(lambda items: [list(items), items.maxlen]),
}
KINDS_BY_NAME = {cls.__name__: (kind.make or cls) for cls, kind in KINDS.items()}


def append_settings(file: Path | io.BytesIO, attributes: Mapping[str, Any]) -> None:
    """
    Add to an SB3 zip what it has as pickles.

    :param file: the zip
    :param attributes: those of the model
    """
    with zipfile.ZipFile(file, "a") as archive:
        settings = {}
        for key, item in json.loads(archive.read("data")).items():
            if is_pickled(item):
                with suppress(ValueError, TypeError, RecursionError):  # a dtype that numpy does not have, a list in itself
                    settings[key] = to_json(attributes[key], key, _encode)
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


def decoded(setting: PlainSetting, find_class: Callable[[str, str], Any]) -> Any:
    """
    Make what a setting stands for.

    :param setting: from ``read_settings``
    :param find_class: returns a class, given its module and its name, if it may be used
    :return: the object
    """

    def decode(kind: str, content: Any) -> Any:
        return find_class(*content) if kind == CLASS else KINDS_BY_NAME[kind](*content)

    return from_json(setting.value, decode)


def is_pickled(item: Any) -> bool:
    """
    Tell pickles apart.

    :param item: a value in SB3's own member
    :return: whether it is a pickle
    """
    return isinstance(item, dict) and ":serialized:" in item


def _encode(value: Any, key: str) -> tuple[str, Any]:
    if isinstance(value, type) and value.__module__ != "__main__" and value.__qualname__ == value.__name__:
        return CLASS, [value.__module__, value.__name__]
    # A subclass may have more than its base, and Gymnasium takes numbers as the bounds of one axis
    if type(value) not in KINDS or (isinstance(value, spaces.Box) and not value.shape):
        raise ValueError(f"{key} has a {type(value).__name__}.")
    return type(value).__name__, KINDS[type(value)].arguments(value)
