"""
Reading the pickles in zips and replay files without running code from them.

SB3's zips keep what JSON cannot hold as pickles, and a pickle can call any function of the Python installation. Here it may
name only the classes and functions that the zips of SB3, sb3-contrib and this package need, all of which are harmless
whatever their arguments are.
"""

import base64
import copy
import functools
import importlib
import io
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Collection
from types import BuiltinFunctionType, FunctionType
from typing import Any, BinaryIO, ClassVar, cast

import torch as th
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_attn.common.files import has_wrong_checksum
from sb3_attn.common.sum_tree import SumTree
from sb3_attn.memory import MemoryCore
from sb3_attn.recurrent_dqn.heads import Head
from sb3_attn.recurrent_dqn.plain_settings import PlainSetting, decoded, is_pickled, read_settings
from sb3_attn.recurrent_dqn.return_scale import ReturnScale
from sb3_attn.replay import SequenceReplayBuffer
from sb3_attn.replay.core_states import CoreStateStore
from sb3_attn.replay.observation_store import ObservationStore

#: What pickles may name, by module
ALLOWED: dict[str, tuple[str, ...]] = {
    "builtins": ("bytearray", "complex", "frozenset", "range", "set", "slice"),
    "collections": ("OrderedDict", "deque"),
    "gymnasium.spaces.box": ("Box",),
    "gymnasium.spaces.dict": ("Dict",),
    "gymnasium.spaces.discrete": ("Discrete",),
    "gymnasium.spaces.multi_binary": ("MultiBinary",),
    "gymnasium.spaces.multi_discrete": ("MultiDiscrete",),
    "neurogym.utils.spaces": ("Box", "Discrete"),  # Gymnasium's, with names of the dimensions
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),  # of numpy 1
    "numpy.core.numeric": ("_frombuffer",),
    "numpy.random._mt19937": ("MT19937",),
    "numpy.random._pcg64": ("PCG64",),
    "numpy.random._pickle": ("__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"),
    "numpy.random.bit_generator": ("SeedSequence", "__pyx_unpickle_SeedSequence"),
    "rl_zoo3.utils": ("SimpleLinearSchedule",),
    "sb3_contrib.ars.policies": ("ARSLinearPolicy", "ARSPolicy"),
    "sb3_contrib.common.maskable.buffers": ("MaskableDictRolloutBuffer", "MaskableRolloutBuffer"),
    "sb3_contrib.common.maskable.policies": (
        "MaskableActorCriticPolicy",
        "MaskableActorCriticCnnPolicy",
        "MaskableMultiInputActorCriticPolicy",
    ),
    "sb3_contrib.common.recurrent.policies": (
        "RecurrentActorCriticPolicy",
        "RecurrentActorCriticCnnPolicy",
        "RecurrentMultiInputActorCriticPolicy",
    ),
    "sb3_contrib.crossq.policies": ("CrossQPolicy",),
    "sb3_contrib.qrdqn.policies": ("QRDQNPolicy", "CnnPolicy", "MultiInputPolicy"),
    "sb3_contrib.tqc.policies": ("CnnPolicy", "MultiInputPolicy", "TQCPolicy"),
    "stable_baselines3.common.buffers": ("DictReplayBuffer", "DictRolloutBuffer", "ReplayBuffer", "RolloutBuffer"),
    "stable_baselines3.common.noise": ("NormalActionNoise", "OrnsteinUhlenbeckActionNoise", "VectorizedActionNoise"),
    "stable_baselines3.common.policies": ("ActorCriticPolicy", "ActorCriticCnnPolicy", "MultiInputActorCriticPolicy"),
    "stable_baselines3.common.running_mean_std": ("RunningMeanStd",),
    "stable_baselines3.common.sb2_compat.rmsprop_tf_like": ("RMSpropTFLike",),
    "stable_baselines3.common.torch_layers": ("CombinedExtractor", "FlattenExtractor", "NatureCNN"),
    "stable_baselines3.common.type_aliases": ("TrainFreq", "TrainFrequencyUnit"),
    "stable_baselines3.common.utils": ("ConstantSchedule", "FloatSchedule", "LinearSchedule"),
    "stable_baselines3.common.vec_env.vec_normalize": ("VecNormalize",),
    "stable_baselines3.dqn.policies": ("CnnPolicy", "DQNPolicy", "MultiInputPolicy"),
    "stable_baselines3.her.goal_selection_strategy": ("GoalSelectionStrategy",),
    "stable_baselines3.her.her_replay_buffer": ("HerReplayBuffer",),
    "stable_baselines3.sac.policies": ("CnnPolicy", "MultiInputPolicy", "SACPolicy"),
    "stable_baselines3.td3.policies": ("CnnPolicy", "MultiInputPolicy", "TD3Policy"),
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),  # of Python 3.13
    "torch": ("Size", "device"),
    "torch._utils": ("_rebuild_tensor_v2",),
    "torch.nn.modules.activation": ("ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SELU", "Sigmoid", "SiLU", "Softplus", "Tanh"),
    "torch.optim.adam": ("Adam",),
    "torch.optim.adamw": ("AdamW",),
    "torch.optim.nadam": ("NAdam",),
    "torch.optim.radam": ("RAdam",),
    "torch.optim.rmsprop": ("RMSprop",),
    "torch.optim.sgd": ("SGD",),
}

#: Classes of this package that pickles may name, with their subclasses in it
OUR_BASES = (
    *(BaseFeaturesExtractor, BaseModel, Head, MemoryCore, ReturnScale),
    *(CoreStateStore, ObservationStore, SequenceReplayBuffer, SumTree),
)

#: A zip may unpack to this many times its own size, or to this many bytes if that is more; SB3's are not compressed at all
LARGEST_RATIO, LARGEST_SIZE = 20, 2**24


class RefusedFileError(ValueError):
    """A file is damaged, too large when unpacked, or not known to be harmless."""


class UnsafePickleError(RefusedFileError):
    """
    A file names something that is not among what is safe to load.

    :param name: what it names, as "module.name"
    :param file: the file, or which part of it
    :param alternative: a remedy besides trust
    """

    def __init__(self, name: str, file: object = "A pickle", alternative: str = "") -> None:
        self.name = name
        #: What is wrong, without a remedy
        self.fault = f"{file} needs {name}, which is not known to be harmless, so it was not loaded."
        remedy = f"pass trust=[{name!r}], or trust=True for all of it{alternative}."
        super().__init__(f"{self.fault} If you trust the source of this file, {remedy}")


def find_allowed(module: str, name: str, trusted: Collection[str] = ()) -> Any:
    """
    Find a class or a function that a file names.

    :param module: the module
    :param name: the name in it
    :param trusted: what may be found besides ``ALLOWED``, as "module.name"
    :return: the class or the function
    :raises UnsafePickleError: if it is not allowed
    """
    if name in ALLOWED.get(module, ()) or f"{module}.{name}" in trusted:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    if module.startswith("sb3_attn.") and "." not in name:
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, type) and issubclass(found, OUR_BASES) and found.__module__.startswith("sb3_attn."):
            return found
    raise UnsafePickleError(f"{module}.{name}")


def trusted_names(trust: bool | str | type | Collection[str | type]) -> Collection[str]:
    """
    What is trusted besides ``ALLOWED``.

    :param trust: names, as "module.name", or the classes themselves; ``False`` means none
    :return: the names
    """
    named = [trust] if isinstance(trust, str | type) else trust or []
    assert not isinstance(named, bool), "a file of which all is trusted is not read here"
    return [each if isinstance(each, str) else f"{each.__module__}.{each.__qualname__}" for each in named]


class SafeUnpickler(pickle._Unpickler):
    """
    Unpickler that finds only what is allowed.

    Python's own one in C is not enough: its BUILD instruction also sets attributes of classes.

    :param file: the pickle
    :param trusted: further classes and functions, as "module.name"
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, file: BinaryIO | io.BytesIO, trusted: Collection[str] = ()) -> None:
        super().__init__(file)
        self.trusted = trusted

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # torch's own would load any pickle
            return _load_tensor
        return find_allowed(module, name, self.trusted)

    def load_build(self) -> None:
        instance = self.stack[-2]
        if isinstance(instance, type | FunctionType | BuiltinFunctionType):
            raise UnsafePickleError(f"to change {instance!r}")
        cast(Any, pickle._Unpickler).dispatch[pickle.BUILD[0]](self)

    dispatch[pickle.BUILD[0]] = load_build


def _load_tensor(content: bytes) -> Any:
    file = io.BytesIO(content)
    if zipfile.is_zipfile(file):
        _check_members(file, "A tensor")
    file.seek(0)
    return th.load(file, weights_only=True)


def read_data(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, Any]:
    """
    Read the attributes in an SB3 zip, without unpickling any.

    :param path: the zip
    :return: attributes by name: values of JSON, ``PlainSetting``, and where the zip has neither, dictionaries with a pickle
    :raises RefusedFileError: if it is damaged or not of SB3, has a name twice, or needs many times its size in memory
    """
    file = open_path(path, "r", suffix="zip")
    try:
        check_archive(file, path)
        with zipfile.ZipFile(file) as archive:
            data = dict(json.loads(archive.read("data")))
            return data | read_settings(archive, data)
    except RefusedFileError:
        raise
    except Exception as error:  # SB3 might still read it, and would run code then
        raise RefusedFileError(f"{path} is damaged, or is not a zip file of SB3, so it was not loaded: {error!r}.") from error
    finally:
        if isinstance(path, str | pathlib.Path):
            file.close()
        else:
            path.seek(0)


def safe_objects(data: dict[str, Any], path: object, given: Collection[str], trusted: Collection[str] = ()) -> dict[str, Any]:
    """
    Make what JSON does not know, for the ``custom_objects`` of SB3's ``load``, which then unpickles nothing itself.

    :param data: from ``read_data``
    :param path: the zip, for errors
    :param given: keys that are not needed, since there are ``custom_objects`` for them
    :param trusted: further classes and functions that may be named, as "module.name"
    :return: the objects by key
    :raises UnsafePickleError: if one is of another class; the sentence says what to do
    :raises RefusedFileError: if one is damaged, or there is the name of an environment
    """
    objects = {}
    for key, item in data.items():
        if key in given:
            continue
        try:
            if isinstance(item, PlainSetting):
                objects[key] = decoded(item, functools.partial(find_allowed, trusted=trusted))
            elif is_pickled(item):
                objects[key] = SafeUnpickler(io.BytesIO(base64.b64decode(item[":serialized:"])), trusted).load()
        except UnsafePickleError as error:
            alternative = f"; or give the object yourself: custom_objects={{{key!r}: ...}}"
            raise UnsafePickleError(error.name, f"{key!r} in {path}", alternative) from None
        except Exception as error:
            raise RefusedFileError(
                f"{key!r} in {path} cannot be read ({error!r}); pass custom_objects={{{key!r}: ...}}."
            ) from error
    if "env" not in given and isinstance((data | objects).get("env"), str):  # SB3 would make it, and import a module in its id
        raise RefusedFileError(f"'env' in {path} names an environment, which no zip of SB3 does; give another file.")
    return objects


def load_pickle(path: str | pathlib.Path | io.BufferedIOBase, trust: bool | Collection[str | type] = False) -> Any:
    """
    Load a pickle, such as that of a replay buffer.

    :param path: the file
    :param trust: ``True`` for all that the pickle names; or further classes and functions that it may name, as "module.name"
    :return: the object
    :raises UnsafePickleError: if it names something else; the sentence says what to do
    :raises RefusedFileError: if it is damaged, or no regular file
    """
    if isinstance(path, str | pathlib.Path) and os.path.exists(path) and not os.path.isfile(path):
        raise RefusedFileError(f"{path} is not a regular file, so it was not read; give another.")
    file = open_path(path, "r", suffix="pkl")
    try:
        # Streams get none: they may hold more than the pickle
        if isinstance(path, str | pathlib.Path) and has_wrong_checksum(cast(BinaryIO, file)):
            raise ValueError("its checksum does not match")
        return pickle.load(file) if trust is True else SafeUnpickler(cast(BinaryIO, file), trusted_names(trust)).load()
    except UnsafePickleError as error:
        raise UnsafePickleError(error.name, path) from None
    except Exception as error:
        raise RefusedFileError(f"{path} is damaged, or is not a pickle: {error!r}.") from error
    finally:
        if isinstance(path, str | pathlib.Path):
            file.close()


def check_own_file(path: pathlib.Path, folder: pathlib.Path) -> None:
    """
    Check that a file is regular, and that no link leads to it out of its folder: to a private file, or one without an end.

    :param path: the file
    :param folder: what it lies in
    :raises RefusedFileError: if it is not, or is missing
    """
    expected = os.path.join(os.path.realpath(folder), path.relative_to(folder))
    if os.path.realpath(path) != expected or not os.path.isfile(path):
        raise RefusedFileError(
            f"{path} is missing, a link, or not a regular file, so it was not read; put the file itself there."
        )


def check_archive(file: Any, path: object) -> None:
    """
    Check that a zip, and each zip in it (PyTorch saves tensors as zips), does not unpack to far more than its own size, and
    that each member matches its checksum.

    :param file: the open zip
    :param path: its name
    :raises RefusedFileError: if one does, has two members of one name, or is compressed in a way that SB3 never uses
    :raises zipfile.BadZipFile: if a checksum does not match
    """
    _check_members(file, path)
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            content = io.BytesIO(archive.read(name))  # in memory, since a seek back in a zip reads from its start again
            if name.endswith(".pth") and zipfile.is_zipfile(content):
                _check_members(content, f"{name} in {path}")


def _check_members(file: Any, path: object) -> None:
    packed = file.seek(0, os.SEEK_END)  # headers may lie
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise RefusedFileError(f"{path} has two members of one name; SB3 writes no such zips, so it was not loaded.")
        unpacked = sum(member.file_size for member in members)
        if unpacked > max(LARGEST_RATIO * packed, LARGEST_SIZE):
            raise RefusedFileError(
                f"{path} would have {unpacked} bytes when unpacked, {unpacked // packed} times its size; not loaded."
            )
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise RefusedFileError(f"{path} is compressed in an unusual way; save the model again with SB3.")
            if member.compress_type == zipfile.ZIP_DEFLATED and not _has_true_size(archive, member):
                raise RefusedFileError(f"{member.filename} in {path} is not of the size that its header states; not loaded.")


def _has_true_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Whether a member is as large as its header says. Python looks only after it has unpacked all of it."""
    one_more = copy.copy(member)
    one_more.file_size += 1
    try:
        with archive.open(one_more) as content:
            return sum(map(len, iter(functools.partial(content.read, 2**16), b""))) == member.file_size
    except zipfile.BadZipFile:
        return False
