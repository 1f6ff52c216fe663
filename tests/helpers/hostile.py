"""Files that would run code."""

import base64
import functools
import io
import json
import os
import pickle
import re
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_attn import RecurrentDQN
from sb3_attn.recurrent_dqn.plain_settings import MEMBER


class Calls:
    """Something whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def touching(marker: Path) -> dict[str, bytes]:
    """Pickles that would create a file, each in a way of its own."""
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    name = "stable_baselines3.common.utils"
    dotted = b"\x80\x04\x8c" + bytes([len(name)]) + name.encode() + b"\x8c\x09os.system\x93\x8c" + bytes([len(command)])
    calls: dict[str, Any] = {
        "os.system": Calls(os.system, command),
        "subprocess": Calls(subprocess.call, ["touch", str(marker)]),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "open": Calls(open, str(marker), "w"),
        "getattr": Calls(getattr, os, "system"),
        "partial": Calls(functools.partial, os.system, command),
        "torch.load": Calls(th.load, io.BytesIO(pickle.dumps(Calls(os.system, command)))),
        "numpy.load": Calls(np.load, io.BytesIO(b""), None, True),
        "in a list": [1, {"a": Calls(os.system, command)}],
        "as an argument": Calls(LinearSchedule, Calls(os.system, command), 0.0, 1.0),
        "as a state": _with_state(Calls(os.system, command)),
        "lambda": lambda progress: os.system(command),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(os.system, command))),
        "environment": Calls(RecurrentDQN, "MlpPolicy", "os:system-v0"),
        "torch's storages": Calls(th.storage._load_from_bytes, torch_file(Calls(os.system, command))),
    }
    pickles = {key: cloudpickle.dumps(value) for key, value in calls.items()}
    return pickles | {
        "dotted name": dotted + command.encode() + b"\x85R.",
        "old protocol": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "INST": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + command.encode() + b"'\no.",
        "persistent id": b"Pos.system\n.",
    }


def _with_state(state: Any) -> LinearSchedule:
    schedule = LinearSchedule(1.0, 0.0, 1.0)
    schedule.end = state
    return schedule


def torch_file(value: Any) -> bytes:
    file = io.BytesIO()
    th.save(value, file)
    return file.getvalue()


def tampered(source: Path, target: Path, key: str, content: bytes) -> None:
    """A copy of a zip in which the pickle of one key is another, without the settings that would be read in its place."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in set(archive.namelist()) - {MEMBER}:
            member = archive.read(name)
            if name == "data":
                data = json.loads(member)
                data[key] = {":type:": "?", ":serialized:": base64.b64encode(content).decode()}
                member = json.dumps(data).encode()
            copy.writestr(name, member)


def with_setting(source: Path, target: Path, key: str, value: Any) -> None:
    """A copy of a zip in which the setting of one key is another."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            member = archive.read(name)
            copy.writestr(name, json.dumps(json.loads(member) | {key: value}) if name == MEMBER else member)


def let_header_lie(path: Path, name: str) -> None:
    """Let the headers of a zip say that a compressed member has 16 bytes, all of them spaces."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(name)
    content = bytearray(path.read_bytes())
    central = next(
        found.start()
        for found in re.finditer(rb"PK\x01\x02", content)
        if content.startswith(name.encode(), found.start() + 46)
    )
    for crc, size in ((member.header_offset + 14, member.header_offset + 22), (central + 16, central + 24)):
        struct.pack_into("<I", content, crc, zipfile.crc32(b" " * 16))
        struct.pack_into("<I", content, size, 16)
    path.write_bytes(content)
