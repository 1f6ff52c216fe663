"""
Reading the pickles in zips and replay files without running code from them.

SB3's zips keep what JSON cannot hold as pickles, and a pickle can call any function of the Python installation. Here it may
name only the classes and functions that the zips of SB3, sb3-contrib and this package need, all of which are harmless
whatever their arguments are.
"""

import base64
import io
import json
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
from sb3_attn.recurrent_dqn.return_scale import ReturnScale
from sb3_attn.replay import SequenceReplayBuffer
from sb3_attn.replay.core_states import CoreStateStore

#: What pickles may name, by module
ALLOWED: dict[str, tuple[str, ...]] = {
    "builtins": ("bytearray", "complex", "frozenset", "range", "set", "slice"),
    "collections": ("OrderedDict", "deque"),
    "gymnasium.spaces.box": ("Box",),
    "gymnasium.spaces.dict": ("Dict",),
    "gymnasium.spaces.discrete": ("Discrete",),
    "gymnasium.spaces.multi_binary": ("MultiBinary",),
    "gymnasium.spaces.multi_discrete": ("MultiDiscrete",),
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
    "sb3_contrib.common.maskable.policies": ("MaskableActorCriticPolicy", "MaskableActorCriticCnnPolicy"),
    "sb3_contrib.common.recurrent.policies": ("RecurrentActorCriticPolicy", "RecurrentActorCriticCnnPolicy"),
    "sb3_contrib.qrdqn.policies": ("QRDQNPolicy", "CnnPolicy", "MultiInputPolicy"),
    "stable_baselines3.common.buffers": ("DictReplayBuffer", "DictRolloutBuffer", "ReplayBuffer", "RolloutBuffer"),
    "stable_baselines3.common.noise": ("NormalActionNoise", "OrnsteinUhlenbeckActionNoise", "VectorizedActionNoise"),
    "stable_baselines3.common.policies": ("ActorCriticPolicy", "ActorCriticCnnPolicy", "MultiInputActorCriticPolicy"),
    "stable_baselines3.common.torch_layers": ("CombinedExtractor", "FlattenExtractor", "NatureCNN"),
    "stable_baselines3.common.type_aliases": ("TrainFreq", "TrainFrequencyUnit"),
    "stable_baselines3.common.utils": ("ConstantSchedule", "FloatSchedule", "LinearSchedule"),
    "stable_baselines3.dqn.policies": ("CnnPolicy", "DQNPolicy", "MultiInputPolicy"),
    "stable_baselines3.sac.policies": ("CnnPolicy", "MultiInputPolicy", "SACPolicy"),
    "stable_baselines3.td3.policies": ("CnnPolicy", "MultiInputPolicy", "TD3Policy"),
    "torch": ("Size", "device"),
    "torch._utils": ("_rebuild_tensor_v2",),
    "torch.nn.modules.activation": ("ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SELU", "Sigmoid", "SiLU", "Softplus", "Tanh"),
    "torch.optim.adam": ("Adam",),
    "torch.optim.adamw": ("AdamW",),
    "torch.optim.rmsprop": ("RMSprop",),
    "torch.optim.sgd": ("SGD",),
}

#: Classes of this package that pickles may name, with their subclasses in it
OUR_BASES = (BaseFeaturesExtractor, BaseModel, CoreStateStore, Head, MemoryCore, ReturnScale, SequenceReplayBuffer, SumTree)

#: Largest size of an unpacked zip, relative to its own and at least: SB3's are not compressed at all
LARGEST_RATIO, LARGEST_SIZE = 20, 2**24


class UnsafePickleError(ValueError):
    """A pickle names something that is not among what is safe to load."""


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
        if name in ALLOWED.get(module, ()) or f"{module}.{name}" in self.trusted:
            return super().find_class(module, name)
        if module.startswith("sb3_attn.") and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and issubclass(found, OUR_BASES) and found.__module__.startswith("sb3_attn."):
                return found
        raise UnsafePickleError(f"{module}.{name}")

    def load_build(self) -> None:
        instance = self.stack[-2]
        if isinstance(instance, type | FunctionType | BuiltinFunctionType):
            raise UnsafePickleError(f"to change {instance!r}")
        cast(Any, pickle._Unpickler).dispatch[pickle.BUILD[0]](self)

    dispatch[pickle.BUILD[0]] = load_build


def _load_tensor(content: bytes) -> Any:
    return th.load(io.BytesIO(content), weights_only=True)


def read_data(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, Any]:
    """
    Read the attributes in an SB3 zip, without unpickling those that JSON cannot hold.

    :param path: the zip
    :return: attributes by name; a pickled one is a dictionary with its class and its bytes
    :raises ValueError: if the zip is damaged or not of SB3, has a name twice, or would be many times as large when unpacked
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            _check_archive(archive)
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} has another checksum")
            return dict(json.loads(archive.read("data")))
    except Exception as error:
        raise ValueError(f"{path} is damaged, or is no zip-file of SB3, so it was not loaded: {error!r}.") from error
    finally:
        if isinstance(path, str | pathlib.Path):
            file.close()
        else:
            path.seek(0)


def safe_objects(
    path: str | pathlib.Path | io.BufferedIOBase, given: Collection[str], trusted: Collection[str] = ()
) -> dict[str, Any]:
    """
    Unpickle what an SB3 zip has pickled, for the ``custom_objects`` of SB3's ``load``, which then unpickles nothing itself.

    :param path: the zip
    :param given: keys that are not needed, since there are ``custom_objects`` for them
    :param trusted: further classes and functions that may be named, as "module.name"
    :return: the objects by key
    :raises UnsafePickleError: if a pickle names something else; the sentence says what to do
    :raises ValueError: as ``read_data`` does
    """
    objects = {}
    for key, item in read_data(path).items():
        if key in given or not (isinstance(item, dict) and ":serialized:" in item):
            continue
        try:
            objects[key] = SafeUnpickler(io.BytesIO(base64.b64decode(item[":serialized:"])), trusted).load()
        except UnsafePickleError as error:
            alternative = f"; or give the object yourself: custom_objects={{{key!r}: ...}}"
            raise _unsafe(f"{key!r} in {path}", error, alternative) from None
        except Exception as error:
            raise ValueError(
                f"{key!r} in {path} cannot be read ({error!r}); give it by custom_objects={{{key!r}: ...}}."
            ) from error
    return objects


def load_pickle(path: str | pathlib.Path | io.BufferedIOBase, trust: bool | Collection[str] = False) -> Any:
    """
    Load a pickle, such as that of a replay buffer.

    :param path: the file
    :param trust: ``True`` for all that the pickle names; or further classes and functions that it may name, as "module.name"
    :return: the object
    :raises UnsafePickleError: if it names something else; the sentence says what to do
    :raises ValueError: if it is damaged
    """
    file = open_path(path, "r", suffix="pkl")
    try:
        # Streams get none: they may hold more than the pickle
        if isinstance(path, str | pathlib.Path) and has_wrong_checksum(cast(BinaryIO, file)):
            raise ValueError("its checksum is another")
        return pickle.load(file) if trust is True else SafeUnpickler(cast(BinaryIO, file), trust or ()).load()
    except UnsafePickleError as error:
        raise _unsafe(str(path), error) from None
    except Exception as error:
        raise ValueError(f"{path} is damaged, or is no pickle: {error!r}.") from error
    finally:
        if isinstance(path, str | pathlib.Path):
            file.close()


def _unsafe(what: str, error: UnsafePickleError, alternative: str = "") -> UnsafePickleError:
    return UnsafePickleError(
        f"{what} needs {error}, which is not known to be harmless, so it was not loaded. If you trust the source of this "
        f"file, pass trust=[{str(error)!r}], or trust=True for all of it{alternative}."
    )


def _check_archive(archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("it has two members of one name")
    packed, unpacked = sum(member.compress_size for member in members), sum(member.file_size for member in members)
    if unpacked > max(LARGEST_RATIO * packed, LARGEST_SIZE):
        raise ValueError(f"it would have {unpacked} bytes when unpacked, {unpacked // max(packed, 1)} times its size")
