"""Settings as JSON beside SB3's pickles."""

import io
import json
import zipfile
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_attn import RecurrentDQN
from sb3_attn.memory import GRUCore
from sb3_attn.recurrent_dqn.plain_settings import MEMBER, append_settings, decoded, is_pickled, read_settings
from sb3_attn.recurrent_dqn.return_scale import ReturnScale
from sb3_attn.recurrent_dqn.safe_loading import find_allowed
from tests.helpers.environments import POLICIES, counters, walks
from tests.helpers.hostile import tampered
from tests.helpers.models import Make, make_rdqn


class OwnBox(spaces.Box):
    """A space that JSON does not know."""


class Replaced:
    """A class whose name means something else by now."""


REPLACED, Replaced = Replaced, OwnBox  # type: ignore[misc, assignment]


def drawn_from(space: spaces.Discrete) -> spaces.Discrete:
    space.sample()
    return space


def named(space: spaces.Box) -> spaces.Box:
    space.names = ["a", "b"]  # type: ignore[attr-defined]
    return space


def scale() -> ReturnScale:
    found = ReturnScale(0.9)
    found.reset(2)
    found.update(np.array([1.0, 2.0]), np.array([False, True]))
    return found


VALUES = {
    "class": GRUCore,
    "box": spaces.Box(np.array([-1, -np.inf], np.float32), np.array([2, np.inf], np.float32)),
    "image": spaces.Box(0, 255, (2, 3, 1), np.uint8),
    "discrete": spaces.Discrete(5, start=-2, dtype=np.int32),
    "drawn from": drawn_from(spaces.Discrete(5, seed=3)),
    "named": named(spaces.Box(-np.inf, np.inf, (2,), np.int64)),
    "one number": spaces.Box(np.float32(0), np.float32(1), (1,)),
    "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=np.int32, start=[[1, 0], [0, 2]]),
    "multi_binary": spaces.MultiBinary((2, 3)),
    "dict": spaces.Dict(OrderedDict(b=spaces.Discrete(2), a=spaces.Dict(c=spaces.MultiBinary(3)))),
    "linear": FloatSchedule(LinearSchedule(1.0, 0.1, 0.5)),
    "constant": ConstantSchedule(0.25),
    "train_freq": TrainFreq(4, TrainFrequencyUnit.EPISODE),
    "episodes": deque([{"r": 1.5, "l": np.int64(3)}], maxlen=7),
    "tensor": th.arange(6, dtype=th.int16).reshape(2, 3),
    "kwargs": {"optimizer_class": th.optim.Adam, "net_arch": [8], "nested": ({"activation_fn": th.nn.ReLU},)},
    "scale": scale(),
}


def zip_of(data: dict[str, Any], attributes: dict[str, Any]) -> zipfile.ZipFile:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps(data))
    append_settings(file, attributes)
    return zipfile.ZipFile(file)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, th.Tensor):
        assert found.dtype == expected.dtype and th.equal(found, expected)
    elif isinstance(expected, np.random.Generator):
        assert found.bit_generator.state == expected.bit_generator.state
    elif isinstance(expected, deque):
        assert found.maxlen == expected.maxlen
        assert_same(list(found), list(expected))
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif hasattr(expected, "__dict__") and not isinstance(expected, type | TrainFrequencyUnit):
        assert_same(vars(found), vars(expected))
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("key", VALUES)
def test_settings_stay_as_they_are(key: str) -> None:
    pickled = {key: {":serialized:": ""}}
    with zip_of(pickled, VALUES) as archive:
        settings = read_settings(archive, pickled)
    assert_same(decoded(settings[key], find_allowed), VALUES[key])


def test_what_json_does_not_know_stays_a_pickle() -> None:
    unknown: dict[str, Any] = {
        "function": len,
        "space": OwnBox(0, 1),
        "no axis": np.array(3.0),
        "parameter": th.ones(2, requires_grad=True),
        "replaced": REPLACED,
        "local class": type("Local", (), {"__qualname__": "test.<locals>.Local"}),
        "in a dict": {"a": {1}},
        "bfloat16": th.ones(2, dtype=th.bfloat16),
        "in itself": (itself := [None]),
    }
    itself.append(itself)
    with zip_of({key: {":serialized:": ""} for key in unknown} | {"gamma": 0.9}, unknown | {"gamma": 0.9}) as archive:
        assert json.loads(archive.read(MEMBER)) == {}


@pytest.mark.parametrize("kind", POLICIES)
def test_a_model_loads_without_its_pickles(make: Make, kind: str, tmp_path: Path) -> None:
    model = make(walks(2, kind=kind), POLICIES[kind], learning_rate=LinearSchedule(1e-2, 0.0, 1.0)).learn(60)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive, zipfile.ZipFile(tmp_path / "bare.zip", "w") as copy:
        for name in archive.namelist():
            member = archive.read(name)
            if name == "data":
                data = {key: {":serialized:": ""} if is_pickled(item) else item for key, item in json.loads(member).items()}
                member = json.dumps(data).encode()
            copy.writestr(name, member)
    loaded = type(model).load(tmp_path / "bare", env=walks(2, kind=kind), device="cpu")
    assert loaded.action_space == model.action_space and loaded.observation_space == model.observation_space
    for name in ("lr_schedule", "policy_class", "train_freq", "ep_info_buffer"):
        assert_same(getattr(loaded, name), getattr(model, name))
    loaded.learn(40, reset_num_timesteps=False)


def test_a_zip_without_settings_loads(tmp_path: Path) -> None:
    model = make_rdqn(counters(2)).learn(40)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert MEMBER in archive.namelist()
        seed = json.loads(archive.read("data"))["seed"]
    tampered(tmp_path / "model.zip", tmp_path / "former.zip", "seed", b"\x80\x04N.")  # None
    with zipfile.ZipFile(tmp_path / "former.zip") as archive:
        assert MEMBER not in archive.namelist()
    loaded = RecurrentDQN.load(tmp_path / "former", device="cpu")
    assert loaded.seed is None and seed is not None
    assert loaded.return_scale.value == model.return_scale.value


def test_a_stream_may_be_for_writing_only(tmp_path: Path) -> None:
    with open(tmp_path / "model.zip", "wb") as file:
        make_rdqn().save(file)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert "policy_class" in json.loads(archive.read(MEMBER))
    RecurrentDQN.load(tmp_path / "model", device="cpu")
