"""
What happens to stock DQN, RecurrentDQN and R2D2 when something goes wrong: processes that are killed, full disks, damaged and
hostile files, NaN, signals, interruptions.

What may crash runs in a forked process, so that a signal is an outcome like any other.
"""

import base64
import builtins
import io
import json
import os
import pickle
import resource
import runpy
import shutil
import signal
import subprocess
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.reliability.disk import may_mount, mounted, new_disk
from benchmarks.reliability.forks import in_fork, kill, stopped
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants
from sb3_attn import R2D2, RecurrentDQN, SaveCheckpoints

ALGORITHMS: dict[str, type[DQN]] = {"DQN": DQN, "RecurrentDQN": RecurrentDQN, "R2D2": R2D2}
#: Number of environment steps of learning before something happens, and after it
N_STEPS = 400

#: Yields the outcome of each of n tries: ``fault(algorithm, folder, n, rng)``
Fault = Callable[[str, Path, int, np.random.Generator], Iterator[str]]


class NaNAt(gym.Wrapper):
    """Returns an observation of NaN at one step of all, if that is not 0."""

    def __init__(self, env: gym.Env, step: int = 0) -> None:
        super().__init__(env)
        self.n_steps, self.nan_step = 0, step

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, *rest = self.env.step(action)
        self.n_steps += 1
        return (obs * np.nan if self.n_steps == self.nan_step else obs), *rest


def make_env(nan_step: int = 0) -> VecEnv:
    return make_vec_env(lambda: NaNAt(gym.make("CartPole-v1"), nan_step), n_envs=2, seed=0)


def make(algorithm: str, env: VecEnv | None = None) -> Any:
    kwargs: dict[str, Any] = dict(buffer_size=2000, learning_starts=100, seed=0, device="cpu")
    if algorithm != "DQN":
        kwargs |= dict(trace_length=16)
    if algorithm == "R2D2":
        kwargs |= dict(settings="small")
    return ALGORITHMS[algorithm]("MlpPolicy", env or make_env(), **kwargs)


# ---------------------------------------------------------------- files: what is saved, and what is loaded


class File:
    """
    A file of a model that has learned a little, or a checkpoint, which is a folder.

    :param kind: "model", "replay" or "checkpoint"
    :param algorithm: a key of ``ALGORITHMS``
    :param folder: where it is
    """

    def __init__(self, kind: str, algorithm: str, folder: Path) -> None:
        self.kind, self.algorithm = kind, algorithm
        self.model: Any = make(algorithm).learn(N_STEPS)
        names = {"model": "model.zip", "replay": "replay.pkl", "checkpoint": f"checkpoint_{self.model.num_timesteps}"}
        self.path = folder / names[kind]
        self.save()
        self.content = self.load()

    def save(self) -> None:
        if self.kind == "model":
            self.model.save(self.path)
        elif self.kind == "replay":
            self.model.save_replay_buffer(self.path)
        else:
            self.model.save_checkpoint(self.path.parent)

    def load(self) -> dict[str, np.ndarray]:
        """All numbers in it."""
        algorithm: Any = ALGORITHMS[self.algorithm]
        if self.kind == "model":
            return numbers_of(algorithm.load(self.path, device="cpu"))
        if self.kind == "replay":
            self.model.load_replay_buffer(self.path)
            return numbers_of(self.model.replay_buffer)
        model = algorithm.load_checkpoint(self.path, make_env(), device="cpu")
        return numbers_of(model) | numbers_of(model.replay_buffer) | {"random": np.random.rand(9)}

    def outcome(self) -> str:
        """What happens when it is loaded."""
        try:
            content = self.load()
        except Exception as error:
            return f"error that {'names the file' if self.path.name in str(error) else 'does not name the file'}"
        same = content.keys() == self.content.keys() and all(map(_equal, content.values(), self.content.values()))
        return "loads the same" if same else "loads different"


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def numbers_of(thing: Any) -> dict[str, np.ndarray]:
    """All numbers of a model or a replay buffer, by name."""
    numbers = {name: np.asarray(value) for name, value in vars(thing).items() if isinstance(value, int | float | np.ndarray)}
    numbers.pop("start_time", None)
    if isinstance(thing, BaseAlgorithm):
        for group, state in thing.get_parameters().items():
            parts = state.get("state", {"": state})  # of an optimizer, by parameter; or of a network
            numbers |= {f"{group}/{i}/{key}": np.asarray(value) for i, part in parts.items() for key, value in part.items()}
    elif hasattr(thing, "state_arrays"):
        numbers |= thing.state_arrays()
    return numbers


def weights(model: DQN) -> np.ndarray:
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in model.q_net.parameters()])


def killed(kind: str) -> Fault:
    """Saving again and again ends by SIGKILL at a random moment."""

    def fault(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
        file = File(kind, algorithm, folder)
        start = time.monotonic()
        file.save()
        seconds = time.monotonic() - start
        for _ in range(n):
            kill(file.save, rng.uniform(0, 3 * seconds))
            if (outcome := file.outcome()) != "loads the same":
                outcome = "unreadable"
                file.save()
            yield outcome
        for _ in range(len(list(folder.iterdir())) - 1):
            yield "temporary file left at the end"

    return fault


def power_lost(after_first_save: bool) -> Fault:
    """
    The power fails right after the first save has returned, or at a random moment while a file is saved again and again.

    What is on the disk then is a copy of the file that a file system lies in, without what the system has not written yet.
    """

    def fault(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
        if not may_mount():
            yield "not tried, since only root may mount a file system"
            return
        file = File("model", algorithm, folder)
        name, disk, copy, saved = file.path.name, folder / "disk", folder / "copy", folder / "saved"
        for _ in range(n):
            saved.unlink(missing_ok=True)
            with new_disk(disk) as mount:
                file.path = mount / name

                def save() -> None:
                    file.save()
                    saved.touch()

                with stopped(save, until=saved.exists, seconds=0 if after_first_save else rng.uniform(0, 0.5)):
                    shutil.copyfile(disk, copy)
            with mounted(copy) as mount:
                file.path = mount / name
                yield file.outcome() if file.path.exists() else "no file"

    return fault


def full_disk(kind: str) -> Fault:
    """A limit of the size of files at half of what is needed, over a good file."""

    def fault(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
        file = File(kind, algorithm, folder)
        before = file.path.read_bytes()

        def save() -> str:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2,) * 2)
            try:
                file.save()
            except OSError as error:
                return f"OSError with{'' if file.path.name in str(error) else 'out'} the path"
            return "no error"

        yield f"{in_fork(save)}, the old file is {'kept' if file.path.read_bytes() == before else 'destroyed'}"

    return fault


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a byte, or a block to zeros or other bytes; leave a block out, or repeat it; or leave the end out."""
    start = int(rng.integers(len(content)))
    end = start + int(2 ** rng.uniform(0, 12))
    before, block, after = content[:start], content[start:end], content[end:]
    return [
        before + bytes([content[start] ^ int(rng.integers(1, 256))]) + content[start + 1 :],
        before + bytes(len(block)) + after,
        before + rng.bytes(len(block)) + after,
        before + after,
        before + block + block + after,
        before,
    ][rng.integers(6)]


def damaged(kind: str) -> Fault:
    """Loading a file that is not as it was written."""

    def fault(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
        file = File(kind, algorithm, folder)
        files = [path for path in file.path.rglob("*") if path.is_file()] or [file.path]
        for _ in range(n):
            path = files[rng.integers(len(files))]
            good = path.read_bytes()
            while (bad := mutate(good, rng)) == good:
                pass
            path.write_bytes(bad)
            yield in_fork(file.outcome)
            path.write_bytes(good)

    return fault


# ---------------------------------------------------------------- numbers that are none


def _after_learning(model: DQN) -> str:
    try:
        model.learn(N_STEPS)
        error = "no error"
    except Exception as exception:
        error = type(exception).__name__
    share = np.isnan(weights(model)).mean()
    return f"{error}, {'weights are good' if share == 0 else f'{100 * share:.0f} % of the weights are NaN'}"


def nan_observation(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
    """An environment returns an observation of NaN."""
    yield in_fork(lambda: _after_learning(make(algorithm, make_env(nan_step=100))))


def nan_gradient(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
    """One number of one gradient is NaN."""
    model = make(algorithm)
    calls: list[int] = []

    def spoil(gradient: th.Tensor) -> th.Tensor:
        calls.append(1)
        gradient = gradient.clone()
        if len(calls) == 10:
            gradient.view(-1)[0] = th.nan
        return gradient

    next(iter(model.q_net.parameters())).register_hook(spoil)
    yield in_fork(lambda: _after_learning(model))


def _nan_model(algorithm: str) -> DQN:
    model = make(algorithm)
    with th.no_grad():
        next(iter(model.q_net.parameters())).view(-1)[0] = th.nan
    return model


def nan_saved(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
    """A model with a weight of NaN is saved."""

    def save() -> str:
        _nan_model(algorithm).save(folder / "model")
        return "is saved"

    yield in_fork(save)


def nan_loaded(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
    """A zip with a weight of NaN is loaded."""
    BaseAlgorithm.save(_nan_model(algorithm), folder / "model")

    def load() -> str:
        ALGORITHMS[algorithm].load(folder / "model", device="cpu")
        return "is loaded"

    yield in_fork(load)


def other_moments(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
    """The moments of Adam in a zip have other shapes than the parameters; learning goes on from it."""
    model = make(algorithm).learn(N_STEPS)
    for state in model.policy.optimizer.state.values():
        state["exp_avg"], state["exp_avg_sq"] = th.zeros(1), th.zeros(1)
    BaseAlgorithm.save(model, folder / "model")

    def go_on() -> str:
        try:
            loaded = ALGORITHMS[algorithm].load(folder / "model", env=make_env(), device="cpu")
        except Exception as error:
            return f"{type(error).__name__} at load()"
        return _after_learning(loaded)

    for _ in range(n):
        yield in_fork(go_on)


# ---------------------------------------------------------------- hostile files


class _Call:
    """Is pickled as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call[0], self.call[1:]


def payloads(marker: Path) -> dict[str, bytes]:
    """Pickles that create a file when they are loaded, by what they call."""
    code, command = f"open({str(marker)!r}, 'w').close()", f"touch {marker}"
    script = marker.with_suffix(".py")
    script.write_text(code)
    tensors = io.BytesIO()
    th.save(_Call(os.system, command), tensors)
    found, argument = b"\x8c\x1dstable_baselines3.common.utils\x8c\tos.system\x93", command.encode()
    dotted = b"\x80\x04" + found + b"\x8c" + bytes([len(argument)]) + argument + b"\x85R."
    calls = {
        "os.system": _Call(os.system, command),
        "exec": _Call(builtins.exec, code),
        "eval": _Call(builtins.eval, code),
        "subprocess": _Call(subprocess.check_call, ["touch", str(marker)]),
        "Path.touch": _Call(Path.touch, marker),
        "runpy": _Call(runpy.run_path, str(script)),
        "torch": _Call(th.storage._load_from_bytes, tensors.getvalue()),
    }
    return {name: pickle.dumps(call, protocol=4) for name, call in calls.items()} | {"dotted": dotted}


def _with_pickle(path: Path, key: str, payload: bytes) -> None:
    """Put a pickle into a zip of SB3 under a key of its data."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members.pop("settings.json", None)  # which ours would read in place of the pickle
    data = json.loads(members["data"])
    data[key] = {":type:": "<class 'object'>", ":serialized:": base64.b64encode(payload).decode()}
    members["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)


def hostile(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
    """Files with pickles that call functions: in three places of a zip, and as a replay buffer."""
    model = make(algorithm)
    path, marker = folder / "file", folder / "marker"

    def load() -> str:
        if is_replay:
            model.load_replay_buffer(path)
        else:
            ALGORITHMS[algorithm].load(path, device="cpu")
        return "is loaded"

    for payload, key in islice(product(payloads(marker).values(), ("policy_class", "lr_schedule", "unknown", None)), n):
        is_replay = key is None
        if key is None:
            path.write_bytes(payload)
        else:
            with open(path, "wb") as file:
                model.save(file)
            _with_pickle(path, key, payload)
        in_fork(load)
        yield "code ran" if marker.exists() else "no code ran"
        marker.unlink(missing_ok=True)


# ---------------------------------------------------------------- interruptions


def interrupted(number: signal.Signals) -> Fault:
    """A signal in the middle of learning, with SB3's CheckpointCallback, which is not due."""

    def fault(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
        def learn() -> str:
            def send(local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
                if local_variables["self"].num_timesteps == N_STEPS // 2:
                    signal.raise_signal(number)
                return True

            callbacks = [ConvertCallback(send), CheckpointCallback(10**9, str(folder), save_replay_buffer=True)]
            make(algorithm).learn(N_STEPS, callbacks)
            return "goes on"

        outcome = in_fork(learn)
        kinds = sorted({path.suffix for path in folder.iterdir()})
        saved = {"": "nothing is saved", ".pkl.zip": "model and replay are saved"}["".join(kinds)]
        yield f"{outcome}, {saved}"

    return fault


class _SaveOnce(BaseCallback):
    """Saves model and replay once, between two rollouts, so that both are of one moment."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path, self.replay_path = folder / "model.zip", folder / "replay.pkl"

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= N_STEPS and not self.path.exists():
            self.model.save(self.path)
            self.model.save_replay_buffer(self.replay_path)  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


def _difference(first: DQN, second: DQN) -> str:
    return f"{np.abs(weights(first) - weights(second)).max():.2g}"


def resumed(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
    """Save model and replay in the middle, load both, go on: the largest difference of a weight from the run that went on."""
    saved = _SaveOnce(folder)
    expected = make(algorithm).learn(2 * N_STEPS, saved)
    loaded = ALGORITHMS[algorithm].load(saved.path, env=make_env(), device="cpu")
    loaded.load_replay_buffer(saved.replay_path)
    loaded.learn(2 * N_STEPS - loaded.num_timesteps, reset_num_timesteps=False)
    yield _difference(loaded, expected)


def resumed_exactly(algorithm: str, folder: Path, n: int, rng: np.random.Generator) -> Iterator[str]:
    """The same with a checkpoint."""
    expected = make(algorithm).learn(2 * N_STEPS, SaveCheckpoints(folder / "checkpoints", N_STEPS))
    loaded = ALGORITHMS[algorithm].load_checkpoint(folder / "checkpoints", make_env(), device="cpu")  # type: ignore[attr-defined]
    callback = SaveCheckpoints(folder / "again", N_STEPS)
    loaded.learn(2 * N_STEPS - loaded.num_timesteps, callback, reset_num_timesteps=False)
    yield _difference(loaded, expected)


#: Each fault with its number of tries
FAULTS: dict[str, tuple[Fault, int]] = {
    "kill -9 while a model is saved": (killed("model"), 300),
    "kill -9 while a replay is saved": (killed("replay"), 300),
    "power lost after the first save": (power_lost(after_first_save=True), 20),
    "power lost while a model is saved": (power_lost(after_first_save=False), 20),
    "disk full while a model is saved": (full_disk("model"), 1),
    "disk full while a replay is saved": (full_disk("replay"), 1),
    "damaged zip": (damaged("model"), 300),
    "damaged replay": (damaged("replay"), 300),
    "damaged checkpoint": (damaged("checkpoint"), 300),
    "NaN observation": (nan_observation, 1),
    "NaN in one gradient": (nan_gradient, 1),
    "NaN weight, saved": (nan_saved, 1),
    "NaN weight, loaded": (nan_loaded, 1),
    "Adam's moments of other shapes": (other_moments, 3),
    "hostile pickles": (hostile, 32),
    "SIGTERM while learning": (interrupted(signal.SIGTERM), 1),
    "Ctrl-C while learning": (interrupted(signal.SIGINT), 1),
    "SIGHUP while learning": (interrupted(signal.SIGHUP), 1),
    "resume from model and replay: difference": (resumed, 1),
    "resume from a checkpoint: difference": (resumed_exactly, 1),
}


def settings(options: Options) -> Settings:
    """A variant for each fault and algorithm; stock DQN has no checkpoints."""
    return {
        f"{fault}, {algorithm}": {"fault": fault, "algorithm": algorithm, "n": options.scaled(n) if n > 100 else n}
        for fault, (_, n) in FAULTS.items()
        for algorithm in ALGORITHMS
        if algorithm != "DQN" or "checkpoint" not in fault
    }


def measure(context: Context, fault: str, algorithm: str, n: int) -> dict[str, Any]:
    """Let a fault happen n times; returns how often there was each outcome."""
    with TemporaryDirectory() as folder:
        outcomes = Counter(FAULTS[fault][0](algorithm, Path(folder), n, np.random.default_rng(context.seed)))
    return {"outcomes": dict(outcomes.most_common())}


def rows(variants: Variants) -> Iterator[Row]:
    """A row for each fault, a column for each algorithm."""
    outcomes: dict[tuple[str, str], Counter[str]] = {}
    for runs in variants.values():
        for run in runs:
            key = run.settings["fault"], run.settings["algorithm"]
            outcomes.setdefault(key, Counter()).update(run.result["outcomes"])
    for fault in FAULTS:
        if any((fault, algorithm) in outcomes for algorithm in ALGORITHMS):
            yield {"fault": fault} | {algorithm: cell(outcomes.get((fault, algorithm), Counter())) for algorithm in ALGORITHMS}


def cell(outcomes: Counter[str]) -> str:
    """Outcomes with their numbers; without, if there is only one of one try."""
    if outcomes.total() == 1:
        return next(iter(outcomes))
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()) or "-"


BENCHMARK = Benchmark(settings, measure, rows, seeds=1)
