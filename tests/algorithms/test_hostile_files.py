"""Files of strangers: no code in them runs, memory is bounded, and honest files need no trust."""

import io
import json
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.utils import LinearSchedule

from sb3_attn import R2D2, RecurrentDQN
from sb3_attn.common.files import CHECKSUM_MARK
from sb3_attn.recurrent_dqn.plain_settings import MEMBER
from sb3_attn.recurrent_dqn.safe_loading import RefusedFileError, SafeUnpickler, UnsafePickleError, read_data, safe_objects
from sb3_attn.zoo.loading import load_algorithm, load_model
from tests.helpers.environments import POLICIES, counters, walks
from tests.helpers.hostile import Calls, let_header_lie, tampered, touching, with_setting
from tests.helpers.models import Make, SumCore, make_rdqn
from tests.helpers.processes import run_python

NAMES = list(touching(Path("x")))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest")
    model = make_rdqn(counters(2)).learn(40)
    model.save(folder / "model")
    model.save_replay_buffer(folder / "replay")
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["policy_class", "anything"])
def test_no_code_in_a_zip_runs(name: str, key: str, honest: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    tampered(honest / "model.zip", tmp_path / "evil.zip", key, touching(marker)[name])
    with pytest.raises(ValueError, match=rf"'{key}' in .*evil.zip"):
        RecurrentDQN.load(tmp_path / "evil.zip", device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("name", NAMES)
def test_no_code_in_a_replay_runs(name: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pkl"
    path.write_bytes(touching(marker)[name])
    model = make_rdqn(counters(2))
    own = model.replay_buffer
    with pytest.raises(ValueError, match=r"evil\.pkl"):
        model.load_replay_buffer(path)
    assert not marker.exists() and model.replay_buffer is own


def test_the_examples_would_run_code(tmp_path: Path) -> None:
    """Or these tests could not fail."""
    markers = {}
    for name in ("os.system", "eval", "in a list", "as a state", "dotted name", "old protocol", "INST", "torch's storages"):
        markers[name] = tmp_path / name.replace(" ", "_").replace("'", "")
        markers[name].with_suffix(".pickle").write_bytes(touching(markers[name])[name])
    program = (
        "import contextlib, pathlib, pickle\n"
        "for path in pathlib.Path().glob('*.pickle'):\n"
        "    with contextlib.suppress(Exception):\n"
        "        pickle.loads(path.read_bytes())\n"
    )
    run_python("-c", program, cwd=tmp_path)
    assert [name for name, marker in markers.items() if not marker.exists()] == []


@pytest.mark.parametrize("form", ["JSON", "a pickle", "a setting"])
@pytest.mark.parametrize("algorithm", [DQN, RecurrentDQN])
def test_no_environment_is_made_from_its_name(algorithm: type, form: str, tmp_path: Path, monkeypatch) -> None:
    """The name may have a module in front, which Gymnasium imports."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    model, name = algorithm("MlpPolicy", counters(), buffer_size=300, device="cpu"), "evil:CartPole-v1"
    model.env, path = name, tmp_path / "model.zip"
    model.save(path, include=["env"])
    if form != "JSON":
        tampered(path, tmp_path / "pickled.zip", "env", pickle.dumps(name))
        path = tmp_path / "pickled.zip"
    if form == "a setting":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(MEMBER, json.dumps({"env": name}))
    with pytest.raises(ValueError, match=r"'env' in .* names an environment"):
        load_algorithm(algorithm, path, device="cpu")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ({"class": ["os", "system"]}, r"needs os\.system"),
        ({"class": ["builtins", "eval"]}, r"needs builtins\.eval"),
        ({"tuple": [{"class": ["subprocess", "Popen"]}]}, r"needs subprocess\.Popen"),
        ({"class": ["sb3_attn.common.files", "os.system"]}, r"needs sb3_attn"),
        ({"Popen": [["touch", "marker"]]}, r"cannot be read \(KeyError"),
        ({"array": ["<f4", [1000, 1000], ""]}, r"cannot be read \(ValueError"),
        ({"array": ["O", [1], "AAAAAAAAAAA="]}, r"cannot be read \(ValueError"),
    ],
)
def test_no_code_in_settings_runs(setting: Any, fault: str, honest: Path, tmp_path: Path) -> None:
    with_setting(honest / "model.zip", tmp_path / "evil.zip", "policy_class", setting)
    with pytest.raises(RefusedFileError, match=rf"'policy_class' in .*evil.zip {fault}"):
        RecurrentDQN.load(tmp_path / "evil.zip", device="cpu")


def test_classes_are_not_changed() -> None:
    """BUILD sets attributes of what lies on the stack, and the unpickler in C does not care whether that is a class."""
    build = pickle.PROTO + b"\x04" + b"cstable_baselines3.common.buffers\nReplayBuffer\n}\x8c\x06hackedK\x01sb."
    with pytest.raises(UnsafePickleError, match=r"to change <class .*ReplayBuffer"):
        SafeUnpickler(io.BytesIO(build)).load()
    assert not hasattr(ReplayBuffer, "hacked")


def test_memory_is_bounded(honest: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("data", b" " * 2**27)
    with pytest.raises(ValueError, match=r"bomb.zip would have 134217728 bytes when unpacked"):
        RecurrentDQN.load(tmp_path / "bomb.zip", device="cpu")
    let_header_lie(tmp_path / "bomb.zip", "data")
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"data in .*bomb.zip is not of the size that its header states"):
        RecurrentDQN.load(tmp_path / "bomb.zip", device="cpu")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    tensor = pickle.dumps(Calls(th.storage._load_from_bytes, (tmp_path / "bomb.zip").read_bytes()))
    with pytest.raises(ValueError, match="data in A tensor is not of the size"):
        SafeUnpickler(io.BytesIO(tensor)).load()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_may_be_there_only_once(honest: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(honest / "model.zip") as archive, zipfile.ZipFile(tmp_path / "twice.zip", "w") as copy:
        for name in [*archive.namelist(), "data"]:
            copy.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match=r"twice.zip has two members of one name"):
        RecurrentDQN.load(tmp_path / "twice.zip", device="cpu")


@pytest.mark.parametrize("suffix", ["zip", "pkl"])
def test_nothing_that_is_damaged_loads_different(suffix: str, honest: Path, tmp_path: Path) -> None:
    """A zip has a checksum of each member, a replay one at its end."""
    source = honest / ("model.zip" if suffix == "zip" else "replay.pkl")
    path, content, rng, n_refused = tmp_path / source.name, source.read_bytes(), np.random.default_rng(0), 0
    model = RecurrentDQN.load(honest / "model", env=counters(2), device="cpu")
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            if suffix == "zip":
                found = RecurrentDQN.load(path, device="cpu").policy.state_dict()
                assert all(map(th.equal, model.policy.state_dict().values(), found.values()))
            else:
                model.load_replay_buffer(path)
                assert damaged[: -len(CHECKSUM_MARK) - 64] == content[: -len(CHECKSUM_MARK) - 64]
        except ValueError as error:
            n_refused += str(path) in str(error) or suffix in str(error)
    assert n_refused > 90


def test_a_replay_of_an_earlier_version_has_no_checksum(honest: Path, tmp_path: Path) -> None:
    content = (honest / "replay.pkl").read_bytes()
    (tmp_path / "replay.pkl").write_bytes(content[: -len(CHECKSUM_MARK) - 64])
    model = RecurrentDQN.load(honest / "model", env=counters(2), device="cpu")
    model.load_replay_buffer(tmp_path / "replay.pkl")
    assert model.replay_buffer.n_windows > 0
    with open(honest / "replay.pkl", "rb") as file:  # as SB3 reads it
        assert pickle.load(file).n_windows == model.replay_buffer.n_windows


# ---------------------------------------------------------------- trust


@pytest.mark.parametrize("kind", POLICIES)
def test_honest_files_need_no_trust(make: Make, kind: str, tmp_path: Path) -> None:
    model = make(walks(2, kind=kind), POLICIES[kind], learning_rate=LinearSchedule(1e-2, 0.0, 1.0)).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = type(model).load(tmp_path / "model", env=walks(2, kind=kind), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay")
    loaded.learn(40, reset_num_timesteps=False)
    loaded.replay_buffer.check_valid()
    with open(tmp_path / "model.zip", "rb") as file:
        type(model).load(file, device="cpu")


def test_a_class_of_ones_own_needs_trust(tmp_path: Path) -> None:
    memory = dict(core=SumCore, core_kwargs={}, dueling=False, skip_connection=False)
    make_rdqn(policy_kwargs=memory).save(tmp_path / "model")
    name = "tests.helpers.models.SumCore"
    with pytest.raises(
        UnsafePickleError, match=rf"'policy_kwargs' in .* needs {name}.* pass trust=\['{name}'\], or trust=True"
    ):
        RecurrentDQN.load(tmp_path / "model", device="cpu")
    with pytest.raises(UnsafePickleError):  # a name is trusted as a whole
        RecurrentDQN.load(tmp_path / "model", device="cpu", trust=f"my_{name}")
    for trust in (True, name, [name], SumCore, [SumCore]):
        assert isinstance(RecurrentDQN.load(tmp_path / "model", device="cpu", trust=trust).q_net.core, SumCore)


def test_a_function_needs_trust_or_something_in_its_place(tmp_path: Path) -> None:
    model = make_rdqn(learning_rate=lambda progress: 1e-3 * progress)
    model.save(tmp_path / "model")
    with pytest.raises(
        UnsafePickleError, match=r"'learning_rate' .* cloudpickle.* custom_objects=\{'learning_rate': \.\.\.\}"
    ):
        RecurrentDQN.load(tmp_path / "model", device="cpu")
    custom = dict(learning_rate=1e-4, lr_schedule=LinearSchedule(1e-4, 0.0, 1.0))
    assert RecurrentDQN.load(tmp_path / "model", device="cpu", custom_objects=custom).learning_rate == 1e-4
    assert RecurrentDQN.load(tmp_path / "model", device="cpu", trust=True).lr_schedule(0.5) == 5e-4


def test_settings_of_sb3_and_torch_need_no_trust(tmp_path: Path) -> None:
    log, policy_kwargs = tmp_path / "log", dict(optimizer_class=th.optim.RAdam)
    make_rdqn(policy_kwargs=policy_kwargs, tensorboard_log=log).save(tmp_path / "model")
    assert RecurrentDQN.load(tmp_path / "model", device="cpu").tensorboard_log == log


def test_a_checkpoint_takes_something_in_place_of_a_function(tmp_path: Path) -> None:
    make_rdqn(walks(2), learning_rate=lambda progress: 1e-3 * progress).save_checkpoint(tmp_path)
    custom = dict(learning_rate=1e-4, lr_schedule=LinearSchedule(1e-4, 0.0, 1.0))
    assert RecurrentDQN.load_checkpoint(tmp_path, walks(2), "cpu", custom_objects=custom).learning_rate == 1e-4


def test_what_is_given_is_not_read(honest: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    tampered(honest / "model.zip", tmp_path / "evil.zip", "seed", touching(marker)["os.system"])
    RecurrentDQN.load(tmp_path / "evil.zip", device="cpu", custom_objects={"seed": 3})
    assert not marker.exists()


def test_r2d2_loads_as_safely(tmp_path: Path) -> None:
    model = R2D2("MlpPolicy", walks(2), buffer_size=1000, policy_kwargs=dict(core_kwargs=dict(hidden_size=8)), device="cpu")
    model.save(tmp_path / "model")
    assert safe_objects(read_data(tmp_path / "model"), "model", {}).keys() >= {
        "policy_class",
        "observation_space",
        "return_scale",
    }
    marker = tmp_path / "marker"
    tampered(tmp_path / "model.zip", tmp_path / "evil.zip", "policy_class", touching(marker)["os.system"])
    with pytest.raises(UnsafePickleError, match=r"posix\.system"):
        R2D2.load(tmp_path / "evil.zip", device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("algorithm", [DQN, PPO, QRDQN, RecurrentDQN])
def test_show_loads_the_zips_of_all_algorithms_as_safely(algorithm: type, tmp_path: Path) -> None:
    kwargs = dict(n_steps=8, batch_size=8) if algorithm is PPO else dict(buffer_size=300)
    algorithm("MlpPolicy", counters(), device="cpu", **kwargs).save(tmp_path / "model")
    assert isinstance(load_model(tmp_path / "model", device="cpu"), algorithm)
    for name in ("os.system", "lambda", "as a state"):
        marker = tmp_path / "marker"
        tampered(tmp_path / "model.zip", tmp_path / "evil.zip", "anything", touching(marker)[name])
        with pytest.raises(UnsafePickleError, match="'anything' in"):
            load_model(tmp_path / "evil.zip", device="cpu")
        assert not marker.exists()


def test_show_may_trust_a_class_of_ones_own(tmp_path: Path) -> None:
    memory = dict(core=SumCore, core_kwargs={}, dueling=False, skip_connection=False)
    make_rdqn(policy_kwargs=memory).save(tmp_path / "model")
    with pytest.raises(UnsafePickleError, match="SumCore"):
        load_model(tmp_path / "model", device="cpu")
    assert isinstance(load_model(tmp_path / "model", device="cpu", trust=True), RecurrentDQN)
