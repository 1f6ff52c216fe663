"""Run folders of strangers: no code in them runs unless it is trusted, and honest ones need no trust."""

import contextlib
import gc
import io
import json
import os
import shutil
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

import rl_zoo3
import yaml
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attn import R2D2
from sb3_attn.recurrent_dqn.safe_loading import RefusedFileError, UnsafePickleError
from sb3_attn.zoo import ALGORITHMS, cli
from sb3_attn.zoo.run_folders import SafeAlgorithm, load_settings, make_run_env, safe_reading
from tests.helpers.environments import walks
from tests.helpers.hostile import Calls, let_header_lie, tampered, torch_file, touching

ENV = "CartPole-v1"
OFF_POLICY = {"buffer_size": 500, "learning_starts": 10, "batch_size": 8}
ON_POLICY = {"n_steps": 16, "batch_size": 8, "n_epochs": 1}
#: Hyperparameters in all forms that RL Zoo takes, by algorithm
HYPERPARAMETERS: dict[str, dict[str, object]] = {
    "dqn": OFF_POLICY
    | {"policy_kwargs": "dict(net_arch=[8], activation_fn=nn.Tanh)", "env_wrapper": "rl_zoo3.wrappers.FrameSkip"},
    "a2c": {"normalize": True, "learning_rate": "lin_7e-4", "frame_stack": 2},
    "ppo": ON_POLICY | {"normalize": "dict(norm_obs=True, norm_reward=False)", "clip_range": "lin_0.2"},
    "ppo_lstm": ON_POLICY | {"policy": "MlpLstmPolicy", "normalize": "{'norm_obs': True, 'norm_reward': False}"},
    "qrdqn": OFF_POLICY
    | {"normalize": {"norm_obs": True}, "vec_env_wrapper": [{"stable_baselines3.common.vec_env.VecCheckNan": {}}]},
    "rdqn": OFF_POLICY | {"policy_kwargs": {"core": "gru", "core_kwargs": {"hidden_size": 8}}},
}
#: On the command line values are Python, of which RL Zoo writes tuples and classes
PARAMETERS = ["train_freq:(2, 'step')", "policy_kwargs:dict(net_arch=[8], activation_fn=nn.Tanh)"]


def train(algo: str, root: Path, *arguments: str) -> None:
    config = root / f"{algo}.yml"
    config.write_text(yaml.safe_dump({ENV: {"policy": "MlpPolicy", "n_timesteps": 32} | HYPERPARAMETERS[algo]}))
    agent = ("--algo", algo, "--env", ENV, "-f", str(root), "--conf-file", str(config), "--device", "cpu")
    assert cli.main(["train", *agent, "--eval-freq", "-1", "--save-replay-buffer", *arguments]) == 0


def enjoy(algo: str, root: Path, *arguments: str) -> int:
    agent = ("--algo", algo, "--env", ENV, "-f", str(root), "--device", "cpu")
    return cli.main(["enjoy", *agent, "-n", "3", "--no-render", *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    for algo in HYPERPARAMETERS:
        train(algo, root, *(["-params", *PARAMETERS] if algo == "dqn" else []))
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy of stock DQN's and A2C's runs, to be made hostile."""
    for algo in ("dqn", "a2c"):
        shutil.copytree(trained / algo, tmp_path / "logs" / algo)
    return tmp_path / "logs"


@pytest.mark.parametrize("algo", HYPERPARAMETERS)
def test_honest_folders_need_no_trust(algo: str, trained: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(trained / algo, tmp_path / algo)
    assert enjoy(algo, tmp_path) == 0
    train(algo, tmp_path, "-i", str(tmp_path / algo / f"{ENV}_1" / f"{ENV}.zip"))
    output = capsys.readouterr().out
    assert ("Loading replay buffer" in output) == (algo in ("dqn", "qrdqn", "rdqn"))
    assert ("Loading running average" in output) == ("normalize" in HYPERPARAMETERS[algo])
    assert ("Loading saved VecNormalize stats" in output) == ("normalize" in HYPERPARAMETERS[algo])


def test_plots_of_honest_runs(tmp_path: Path, capsys) -> None:
    pytest.importorskip("seaborn")
    for number in (1, 2):
        run = tmp_path / "dqn" / f"{ENV}_{number}"
        run.mkdir(parents=True)
        np.savez(run / "evaluations.npz", results=np.full((3, 2), 7.0), timesteps=np.arange(3))
    results = str(tmp_path / "results")
    arguments = ["-a", "dqn", "-e", ENV, "-f", str(tmp_path), "--no-display", "--output", results]
    assert cli.main(["plot", "all-plots", *arguments]) == 0
    assert cli.main(["plot", "plot-from-file", "--input", results, "--output", f"{results}.svg"]) == 0
    assert capsys.readouterr().out.count("7 +/- 0") == 2


def test_settings_are_read_as_rl_zoo_does(trained: Path) -> None:
    for algo in HYPERPARAMETERS:
        folder = trained / algo / f"{ENV}_1" / ENV
        for name in ("config.yml", "args.yml"):
            expected = yaml.load((folder / name).read_text(), Loader=yaml.UnsafeLoader)
            if isinstance(expected.get("normalize"), str):
                expected["normalize"] = eval(expected["normalize"])
            assert load_settings(folder / name) == expected
    settings = (trained / "dqn" / f"{ENV}_1" / ENV / "config.yml").read_text()
    assert "python/tuple" in settings and "python/name:torch" in settings and "OrderedDict" in settings


def test_all_shipped_hyperparameters_are_read(tmp_path: Path) -> None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    folders = Path(rl_zoo3.__file__).parent / "hyperparams", Path(__file__).parents[2] / "zoo_configs"
    entries = [
        entry
        for folder in folders
        for path in sorted(folder.glob("*.yml"))
        for entry in yaml.load(path.read_text(), loader).values()
    ]
    # One file of all that differ in what is more than plain values
    special = {
        str(sorted(found.items())): found for entry in entries if (found := {k: v for k, v in entry.items() if k in KEYS})
    }
    assert len(special) > 15
    refused = set()
    for found in special.values():
        (tmp_path / "config.yml").write_text(yaml.dump(OrderedDict(sorted(found.items()))))
        try:
            settings = load_settings(tmp_path / "config.yml")
            assert settings.keys() == found.keys() and not isinstance(settings.get("normalize"), str)
        except UnsafePickleError as error:
            refused.add(error.name)
    assert refused == {"ae.wrapper.AutoencoderWrapper"}  # of a package that has to be cloned


KEYS = ("normalize", "env_wrapper", "vec_env_wrapper", "policy_kwargs", "train_freq", "replay_buffer_class", "env_kwargs")

# ---------------------------------------------------------------- hostile


def run_of(root: Path, algo: str = "dqn") -> Path:
    return root / algo / f"{ENV}_1"


def settings(name: str, content: str) -> Callable[[Path, Path], Path]:
    """Add a line to a YAML file; ``MARKER`` is the file that it would create."""

    def write(root: Path, marker: Path) -> Path:
        path = run_of(root) / ENV / name
        values = {"env_kwargs": None, "env": ENV} if name == "args.yml" else {}
        path.write_text(yaml.safe_dump(values or {"policy": "MlpPolicy"}) + content.replace("MARKER", str(marker)))
        return path

    return write


def vec_normalize(content: Callable[[Path], bytes]) -> Callable[[Path, Path], Path]:
    def write(root: Path, marker: Path) -> Path:
        path = run_of(root, "a2c") / ENV / "vecnormalize.pkl"
        path.write_bytes(content(marker))
        return path

    return write


def in_data(key: str, name: str, algo: str = "dqn") -> Callable[[Path, Path], Path]:
    def write(root: Path, marker: Path) -> Path:
        path = run_of(root, algo) / f"{ENV}.zip"
        tampered(shutil.copy(path, root / "honest.zip"), path, key, touching(marker)[name])
        return path

    return write


def member(name: str, content: Callable[[Path], bytes], compression: int = zipfile.ZIP_STORED) -> Callable[[Path, Path], Path]:
    """Replace a member of the zip, or add one."""

    def write(root: Path, marker: Path) -> Path:
        path = run_of(root) / f"{ENV}.zip"
        members = {}
        with zipfile.ZipFile(path) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for each, old in (members | {name: b""}).items():
                archive.writestr(each, content(marker) if each == name else old, compression if each == name else None)
        return path

    return write


def twice(root: Path, marker: Path) -> Path:
    path = run_of(root) / f"{ENV}.zip"
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("data", json.dumps({}))
    return path


def lying(root: Path, marker: Path) -> Path:
    path = member("data", lambda _: b" " * 2**25, zipfile.ZIP_DEFLATED)(root, marker)
    let_header_lie(path, "data")
    return path


def bomb_in_tensors(marker: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 2**25)
    return file.getvalue()


def link(root: Path, marker: Path) -> Path:
    path = run_of(root, "a2c") / ENV / "vecnormalize.pkl"
    path.unlink()
    os.mkfifo(root / "fifo")
    path.symlink_to(root / "fifo")  # whoever opens it waits for good
    return path


BUILD = b"\x80\x04cstable_baselines3.common.vec_env\nVecNormalize\n}\x8c\x06hackedK\x01sb."
APPLY = "!!python/object/apply:os.system ['touch MARKER']"
#: What makes a folder hostile, and whether RL Zoo itself would run it
HOSTILE: dict[str, tuple[Callable[[Path, Path], Path], bool]] = {
    "config: call": (settings("config.yml", f"n_envs: {APPLY}"), True),
    "config: call with state": (
        settings("config.yml", "x: !!python/object/apply:subprocess.call\n  args: [[touch, MARKER]]\n  state: {a: 1}"),
        True,
    ),
    "config: new object": (settings("config.yml", "x: !!python/object/new:subprocess.Popen [[touch, MARKER]]"), False),
    "config: name of a module": (settings("config.yml", "x: !!python/name:evil.thing"), True),
    "config: module": (settings("config.yml", "x: !!python/module:evil"), True),
    "config: as a key": (settings("config.yml", f"? {APPLY}\n: 1"), True),
    "config: normalize": (settings("config.yml", "normalize: __import__('os').system('touch MARKER')"), True),
    "config: normalize with dict": (
        settings("config.yml", "normalize: dict(a=__import__('os').system('touch MARKER'))"),
        True,
    ),
    "config: normalize with **": (settings("config.yml", "normalize: \"dict(**{'a': open('MARKER', 'w')})\""), True),
    "config: wrapper that runs a command": (
        settings("config.yml", "env_wrapper: [pydoc.pipepager: {cmd: touch MARKER}]"),
        True,
    ),
    "config: wrapper in a module": (settings("config.yml", "env_wrapper: evil.Wrapper"), True),
    "config: wrapper with dots": (settings("config.yml", "env_wrapper: gymnasium.wrappers.common.np.os.system"), False),
    "config: wrapper that writes": (
        settings("config.yml", "env_wrapper: [gymnasium.wrappers.RecordVideo: {video_folder: x}]"),
        False,
    ),
    "config: wrapper of all": (settings("config.yml", "vec_env_wrapper: [evil.Wrapper, evil.Wrapper]"), True),
    "config: no mapping": (lambda root, marker: _written(run_of(root) / ENV / "config.yml", b"[1, 2]"), False),
    "config: no text": (lambda root, marker: _written(run_of(root) / ENV / "config.yml", b"\xff\x00"), False),
    "config: control characters": (lambda root, marker: _written(run_of(root) / ENV / "config.yml", b"a: \x1b"), False),
    "config: large": (settings("config.yml", "#" * 2**20), False),
    "args: call": (settings("args.yml", f"x: {APPLY}"), True),
    "args: function as an argument": (
        settings("args.yml", "env_kwargs: {x: [!!python/name:torch._utils._rebuild_tensor_v2 ]}"),
        False,
    ),
    "config: class as an argument": (
        settings("config.yml", "env_kwargs: {x: {y: !!python/name:torch.nn.modules.activation.Tanh }}"),
        False,
    ),
    "config: object as an argument": (
        settings("config.yml", "env_kwargs: {x: !!python/object/apply:collections.deque [[]]}"),
        False,
    ),
    "args: call in arguments": (settings("args.yml", f"env_kwargs: {{x: {APPLY}}}"), True),
    "vecnormalize: call": (vec_normalize(lambda marker: touching(marker)["os.system"]), True),
    "vecnormalize: dots": (vec_normalize(lambda marker: touching(marker)["dotted name"]), True),
    "vecnormalize: change of a class": (vec_normalize(lambda marker: BUILD), False),
    "vecnormalize: something else": (vec_normalize(lambda marker: b"\x80\x04]."), False),
    "vecnormalize: link": (link, False),
    "zip: data": (in_data("anything", "os.system"), True),
    "zip: data of A2C": (in_data("anything", "as a state", "a2c"), True),
    "zip: policy": (in_data("policy_class", "getattr"), False),
    "zip: lambda": (in_data("exploration_schedule", "lambda"), False),
    "zip: dots": (in_data("policy_kwargs", "dotted name"), True),
    "zip: parameters": (member("policy.pth", lambda marker: torch_file(Calls(os.system, f"touch {marker}"))), False),
    "zip: PyTorch's variables": (member("pytorch_variables.pth", lambda marker: touching(marker)["os.system"]), False),
    "zip: damaged tensors beside code": (
        lambda root, marker: member("x.pth", lambda _: b"PK\5\6" + bytes(9) + b"\xff" * 9)(
            root, in_data("anything", "os.system")(root, marker) and marker
        ),
        False,
    ),
    "zip: bomb": (member("data", lambda _: b" " * 2**25, zipfile.ZIP_DEFLATED), False),
    "zip: bomb in tensors": (member("policy.pth", bomb_in_tensors), False),
    "zip: lying headers": (lying, False),
    "zip: other compression": (member("data", lambda _: b"{}", zipfile.ZIP_LZMA), False),
    "zip: one name twice": (twice, False),
    "zip: id of an environment": (member("data", lambda _: b'{"env": "evil:CartPole-v1"}'), False),
    "zip: path": (member("../../../evil.pth", lambda _: torch_file({})), False),
    "zip: text": (lambda root, marker: _written(run_of(root) / f"{ENV}.zip", b"text"), False),
}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(name: str, root: Path, *command: str) -> None:
    """Make a folder hostile, and run a command on it."""
    marker = root / "marker"
    path = HOSTILE[name][0](root, marker)
    with pytest.raises(SystemExit) as error:
        cli.main([*command])
    assert not marker.exists() and not list(root.parent.glob("**/evil.pth"))
    sentence = str(error.value)
    assert sentence.startswith(f"sb3-attn {command[0]}: ") and "\n" not in sentence and str(path) in sentence


@pytest.fixture(autouse=True)
def evil_module(tmp_path: Path, monkeypatch) -> Iterator[None]:
    """A module of the stranger's can be found, as in a working directory."""
    (tmp_path / "evil.py").write_text(f"import os\nos.system('touch {tmp_path}/logs/marker')\nthing = Wrapper = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("evil", None)


def agent(name: str, root: Path) -> list[str]:
    algo = "a2c" if "vecnormalize" in name or "A2C" in name else "dqn"
    return ["--algo", algo, "--env", ENV, "-f", str(root), "--device", "cpu"]


@pytest.mark.parametrize("name", HOSTILE)
def test_enjoy_runs_no_code(name: str, root: Path) -> None:
    refused(name, root, "enjoy", *agent(name, root), "-n", "3", "--no-render")


@pytest.mark.parametrize("name", ["config: call", "config: normalize", "args: call", "vecnormalize: call", "zip: data"])
def test_record_video_runs_no_code(name: str, root: Path) -> None:
    refused(name, root, "record-video", *agent(name, root)[:-2], "-n", "3", "-o", str(root / "videos"))


@pytest.mark.parametrize("name", ["videos", "videos/final-model-dqn-CartPole-v1-step-0-to-step-3.mp4"])
def test_videos_are_not_written_through_links(name: str, root: Path) -> None:
    (root / "other").mkdir()
    path = run_of(root) / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(root / "other" if name == "videos" else root / "other" / "file")
    with pytest.raises(SystemExit, match=rf"^sb3-attn record-video: {path} is a link"):
        cli.main(["record-video", "--algo", "dqn", "--env", ENV, "-f", str(root), "-n", "3"])
    assert not list((root / "other").iterdir())


@pytest.mark.parametrize("name", ["link", "final-model$(touch MARKER).mp4"])
def test_names_of_videos_reach_no_shell(name: str, root: Path, monkeypatch) -> None:
    """RL Zoo removes them first, but neither those behind a link nor those in a folder that may not be changed."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    folder, run = root / "other", run_of(root)
    folder.mkdir()
    (run / f"{ENV}.zip").unlink()
    (folder / "final-model$(touch MARKER).mp4").touch()
    (run / "videos").symlink_to(folder) if name == "link" else folder.rename(run / "videos")
    with pytest.raises(SystemExit, match=r"^sb3-attn record-training: .* is a link, or has a name that"):
        cli.main(["record-training", "--algo", "dqn", "--env", ENV, "-f", str(root)])
    assert not (root / "MARKER").exists()


@pytest.fixture
def unclosed() -> Iterator[None]:
    """A refusal leaves RL Zoo's environments open."""
    yield
    gc.collect()


unclosed_files = pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")


@unclosed_files
@pytest.mark.usefixtures("unclosed")
@pytest.mark.parametrize(
    "name",
    ["vecnormalize: call", "vecnormalize: link", "zip: data", "zip: data of A2C", "zip: parameters", "zip: lying headers"],
)
def test_training_that_goes_on_runs_no_code(name: str, root: Path) -> None:
    algo = agent(name, root)[1]
    refused(name, root, "train", *agent(name, root), "-n", "8", "-i", str(run_of(root, algo) / f"{ENV}.zip"))


@unclosed_files
@pytest.mark.usefixtures("unclosed")
@pytest.mark.parametrize("algo", ["dqn", "rdqn"])
def test_training_that_goes_on_runs_no_code_of_a_replay(algo: str, trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "logs"
    shutil.copytree(trained / algo, root / algo)
    replay = run_of(root, algo) / "replay_buffer.pkl"
    replay.write_bytes(touching(tmp_path / "marker")["os.system"])
    arguments = ["--algo", algo, "--env", ENV, "-n", "8", "-f", str(root), "-i", str(replay.with_name(f"{ENV}.zip"))]
    with pytest.raises(SystemExit, match=rf"^sb3-attn train: {replay} needs posix.system"):
        cli.main(["train", *arguments, "--device", "cpu"])
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "name", ["config: call", "config: wrapper in a module", "args: call", "zip: data", "zip: lying headers"]
)
def test_show_runs_no_code(name: str, root: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = str(run_of(root) / f"{ENV}.zip")
    refused(name, root, "show", shown, "--env", ENV, "--algo", "dqn", "--no-render", "--out", str(root / "out"))


def test_show_runs_no_code_of_vec_normalize(root: Path) -> None:
    pytest.importorskip("matplotlib")
    path = HOSTILE["vecnormalize: call"][0](root, root / "marker")
    shown = str(shutil.copy(run_of(root) / f"{ENV}.zip", root / "model.zip"))
    with pytest.raises(SystemExit, match=r"^sb3-attn show: .*vecnormalize.pkl needs posix.system"):
        cli.main(["show", shown, "--env", ENV, "--vec-normalize", str(path), "--out", str(root / "out")])
    assert not (root / "marker").exists()


def test_benchmark_runs_no_code(root: Path, monkeypatch) -> None:
    monkeypatch.chdir(root)
    shutil.rmtree(root / "a2c")
    refused("args: call", root, "benchmark", "--log-dir", str(root), "--no-hub")


def test_benchmark_imports_no_module_that_an_id_names(root: Path, monkeypatch) -> None:
    monkeypatch.chdir(root)
    shutil.rmtree(root / "a2c")
    (run_of(root) / ENV / "args.yml").write_text(f"env: evil:{ENV}\nenv_kwargs: null\n")
    with pytest.raises(SystemExit, match=rf"^sb3-attn benchmark: The environment evil:{ENV} in args.yml needs evil, .*evil"):
        cli.main(["benchmark", "--log-dir", str(root), "--no-hub", "--n-timesteps", "9"])
    assert cli.our_command(["python", "enjoy.py", "--env", "evil:X"], ["evil"])[-1] == "evil:X"


@pytest.mark.parametrize("how", ["endless", "waits", "large"])
@pytest.mark.parametrize("name", ["0.monitor.csv", "evaluations.npz"])
def test_results_are_regular_files(name: str, how: str, tmp_path: Path) -> None:
    pytest.importorskip("seaborn")
    path = tmp_path / "dqn" / f"{ENV}_1" / name
    path.parent.mkdir(parents=True)
    if how == "endless":
        path.symlink_to("/dev/zero")
    elif how == "waits":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, 2**28 + 1)
    plot = ["all-plots", "--no-display"] if name == "evaluations.npz" else ["plot-train"]
    with pytest.raises(SystemExit, match=rf"^sb3-attn plot: {path} is no regular file of at most"):
        cli.main(["plot", *plot, "-a", "dqn", "-e", ENV, "-f", str(tmp_path)])


def test_plots_run_no_code(tmp_path: Path) -> None:
    pytest.importorskip("seaborn")
    path = _written(tmp_path / "results.pkl", touching(tmp_path / "marker")["os.system"])
    with pytest.raises(SystemExit, match=rf"^sb3-attn plot: {path} needs posix.system"):
        cli.main(["plot", "plot-from-file", "--input", str(path)])
    assert not (tmp_path / "marker").exists()
    for number in (1, 2):
        run = tmp_path / "dqn" / f"{ENV}_{number}"
        run.mkdir(parents=True)
        np.savez_compressed(run / "evaluations.npz", results=np.zeros((2**20, 8)), timesteps=np.zeros(2**20))
    with pytest.raises(SystemExit, match=r"^sb3-attn plot: .*evaluations.npz would have \d+ bytes when unpacked"):
        cli.main(["plot", "all-plots", "-a", "dqn", "-e", ENV, "-f", str(tmp_path), "--no-display"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, (_, runs) in HOSTILE.items() if runs])
def test_trusted_folders_run(name: str, root: Path) -> None:
    """Or the tests above could not fail."""
    HOSTILE[name][0](root, root / "marker")
    with contextlib.suppress(Exception, SystemExit):
        cli.main(["enjoy", *agent(name, root), "-n", "3", "--no-render", "--trust"])
    for _ in range(100):  # some start a process
        if (root / "marker").exists():
            break
        time.sleep(0.05)
    assert (root / "marker").exists()


# ---------------------------------------------------------------- one at a time


def test_names_may_be_trusted(root: Path) -> None:
    folder = run_of(root) / ENV
    (folder / "config.yml").write_text("x: !!python/object/apply:datetime.timedelta [1]\nnormalize: false\n")
    assert load_settings(folder / "config.yml", ["datetime.timedelta"])["x"].days == 1
    with pytest.raises(
        SystemExit, match=r"config.yml needs datetime.timedelta, .* add --trust=datetime.timedelta, or --trust"
    ):
        enjoy("dqn", root)
    assert enjoy("dqn", root, "--trust=datetime.timedelta") == 0
    in_data("anything", "os.system")(root, root / "marker")
    with pytest.raises(SystemExit, match=r"'anything' in .* needs posix\.system"):
        enjoy("dqn", root, "--trust=datetime.timedelta,os.getpid")
    assert not (root / "marker").exists()
    assert enjoy("dqn", root, "--trust=datetime.timedelta", "--trust=posix.system") == 0
    assert (root / "marker").exists()


@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.parametrize("trust", [True, ["os.system", "posix.system"]])
def test_replays_of_ours_may_be_trusted(trust: bool | list[str], trained: Path, tmp_path: Path) -> None:
    folder = run_of(trained, "rdqn")
    (tmp_path / "replay_buffer.pkl").write_bytes(touching(tmp_path / "marker")["os.system"])
    with safe_reading(trust):
        model = ALGOS["rdqn"].load(str(folder / f"{ENV}.zip"), device="cpu")
        with pytest.raises(ValueError, match="but this model needs"):
            model.load_replay_buffer(tmp_path / "replay_buffer.pkl")
    assert (tmp_path / "marker").exists()


def test_rl_zoo_is_left_as_it_was() -> None:
    before = yaml.UnsafeLoader, vars(VecNormalize)["load"], dict(ALGOS)
    with contextlib.suppress(RefusedFileError), safe_reading(False):
        assert isinstance(ALGOS["dqn"], SafeAlgorithm)
        raise RefusedFileError
    assert before == (yaml.UnsafeLoader, vars(VecNormalize)["load"], dict(ALGOS))
    assert ALGOS["rdqn"] is ALGORITHMS["rdqn"].model_class


def test_a_zip_does_not_choose_the_ray_cluster(tmp_path: Path) -> None:
    options = {"address": "10.0.0.1:6379", "allow_unauthenticated": True}
    model = R2D2("MlpPolicy", walks(), buffer_size=300, device="cpu", policy_kwargs=dict(core_kwargs=dict(hidden_size=8)))
    model.n_actors, model.backend, model.backend_kwargs = 1, "ray", options
    model.save(tmp_path / "model")
    with pytest.raises(RefusedFileError, match=r"actors run on the Ray cluster at '10.0.0.1:6379'"):
        SafeAlgorithm(R2D2, False).load(str(tmp_path / "model.zip"), device="cpu", tensorboard_log=None)
    learns = {"tensorboard_log": None}
    for trust, given in ((True, learns), (False, learns | {"backend_kwargs": {}}), (False, {})):
        assert SafeAlgorithm(R2D2, trust).load(str(tmp_path / "model.zip"), device="cpu", **given)


def test_the_terminal_is_safe_from_names(root: Path, capsys) -> None:
    (run_of(root) / ENV / "config.yml").write_text('x: !<tag:yaml.org,2002:python/name:a.%1B[2J%0Ab> ""\n')
    with pytest.raises(SystemExit) as error:
        enjoy("dqn", root)
    assert str(error.value).isprintable() and "add --trust for everything" in str(error.value)


def test_trust_reaches_the_processes_of_rl_zoo() -> None:
    command = cli.our_command(["python", "enjoy.py", "-n", "5"], ["a.B", "c.D"])
    assert command[3:] == ["enjoy", "--trust=a.B", "--trust=c.D", "-n", "5"]
    assert "--trust" in cli.our_command(["python", "-m", "rl_zoo3.record_video"], True)
    assert cli.split_trust(command[4:]) == (["a.B", "c.D"], ["-n", "5"])


def test_a_run_renders_also_where_a_function_makes_the_environment(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("!!python/object/apply:collections.OrderedDict\n- []\n")
    assert make_run_env(tmp_path, "CartPoleNoVel-v1", {}, seed=0).render_mode == "rgb_array"
