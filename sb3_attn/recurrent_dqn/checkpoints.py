"""
Checkpoints from which training goes on exactly as it would have without the interruption.

A checkpoint is a folder: the model's zip, the replay as plain arrays, the random generators, the statistics of VecNormalize,
the states of environments that can give them, and a manifest with a checksum of each. Other environments are not saved.
Instead, both the run that goes on and the one that resumes begin new episodes at a checkpoint, seeded by a number from the
run's own generator.
"""

import hashlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attn.common.core_state import CoreState, state_from_arrays
from sb3_attn.common.files import replace_folder_on_success
from sb3_attn.common.plain_data import from_json, to_json
from sb3_attn.recurrent_dqn.diagnostics import Diagnostics
from sb3_attn.recurrent_dqn.environment_states import environment_states, set_environment_states
from sb3_attn.recurrent_dqn.policies import RecurrentQNetwork
from sb3_attn.recurrent_dqn.return_scale import ReturnScale
from sb3_attn.recurrent_dqn.safe_loading import check_own_file
from sb3_attn.recurrent_dqn.saving import SaveAndLoad
from sb3_attn.recurrent_dqn.step_checks import ResetWatch
from sb3_attn.replay import SequenceReplayBuffer
from sb3_attn.version import __version__

SelfCheckpoints = TypeVar("SelfCheckpoints", bound="Checkpoints")

#: Checkpoints of format 1 have no states of environments
FORMAT, FORMATS = 2, (1, 2)
PREFIX = "checkpoint_"
MODEL, REPLAY, GENERATORS, NORMALIZATION = "model.zip", "replay.npz", "generators.npz", "normalization.npz"
EPISODES, MANIFEST = "episodes.json", "manifest.json"


class Checkpoints(SaveAndLoad):
    """Mixin of ``RecurrentDQN``: exact checkpoints."""

    replay_buffer: SequenceReplayBuffer
    q_net: RecurrentQNetwork
    return_scale: ReturnScale
    diagnostics: Diagnostics
    #: The memory before the current observations; ``None`` before the first step
    _core_state: CoreState | None = None
    #: The memory before and after a step that is not stored yet; ``None`` between steps
    _step_states: tuple[CoreState, CoreState] | None = None
    #: Watches the environments since ``learn()`` has reset them
    _reset_watch: ResetWatch | None = None
    #: Seed of the episodes that began at the last checkpoint
    _episodes_seed: int | None = None

    def save_checkpoint(self, folder: str | Path) -> Path:
        """
        Save all that training needs to go on from here: model, replay, random generators, statistics of VecNormalize.

        On a CPU, a resumed run equals the one that goes on, bit for bit. If all environments have ``get_state`` and
        ``set_state``, their states are saved, and their episodes go on as they would have without the checkpoint. Otherwise
        all environments begin new episodes, now and again when the checkpoint is loaded, both times with the same seed, drawn
        from NumPy's generator; the two runs are then equal only if ``reset(seed=...)`` seeds all random numbers of the
        environments. The same happens, with a warning, if a state is not plain data or ``set_state`` does not restore it.

        Call it between two rollouts: from a callback's ``_on_rollout_start``, as ``SaveCheckpoints`` does, or outside
        ``learn()``.

        :param folder: where checkpoints are; this one is a folder in it that is named after the number of steps
        :return: the path of the checkpoint
        :raises OSError: if it cannot be written; existing checkpoints, including one of the same name, are left as they were
        """
        try:
            episodes = self._running_episodes()
        except ValueError as error:
            warnings.warn(f"all environments begin new episodes at step {self.num_timesteps}: {error}", stacklevel=2)
            episodes = None
        self._episodes_seed = seed = np.random.randint(2**31 - 1) if episodes is None else None
        path = write_checkpoint(self, folder, episodes)
        if seed is not None:
            self._begin_episodes(seed)
        return path

    @classmethod
    def load_checkpoint(
        cls: type[SelfCheckpoints],
        folder: str | Path,
        env: GymEnv,
        device: th.device | str = "auto",
        trust: bool | Collection[str | type] = False,
        custom_objects: dict[str, Any] | None = None,
    ) -> SelfCheckpoints:
        """
        Load a checkpoint, to go on by ``model.learn(total - model.num_timesteps, reset_num_timesteps=False)``.

        The random generators of Python, NumPy and torch become those of the checkpoint. No code in the files runs.

        :param folder: a checkpoint, or where checkpoints are: then the newest that is not damaged
        :param env: environments like those of the checkpoint, as many of them
        :param device: Device on which the code should run.
        :param trust: as for ``load``
        :param custom_objects: as for ``load``
        :return: the model
        :raises ValueError: if there is no checkpoint that is whole, or the environments do not fit
        """
        path = newest_valid(folder, cls.__name__)
        # Without a forced reset the last observations are those of the zip
        model = cls.load(path / MODEL, env, device, custom_objects, force_reset=not (path / EPISODES).exists(), trust=trust)
        restore(model, path)
        if model._episodes_seed is not None:
            model._seed_episodes(model._episodes_seed)
        return model

    def _was_reset(self) -> bool:
        """Whether someone else has reset the environments since the last observations."""
        return self._reset_watch is not None and self._reset_watch.noticed

    def _running_episodes(self) -> dict[str, Any] | None:
        """
        The state from which the running episodes can go on, as values of JSON; ``None`` if it is unknown, so that new ones
        have to begin.

        :raises ValueError: if it cannot be saved, or cannot be restored
        """
        # Where learn() ended in the middle of a step, or has not begun, the next one begins new episodes anyway
        if self.env is None or self._last_obs is None or self._step_states is not None or self._was_reset():
            return None
        if (environments := environment_states(self.env)) is None:
            return None
        own = {name: vars(part) for name, part in self._episode_statistics().items()}
        own["core_state"] = None if self._core_state is None else [field.cpu().numpy() for field in self._core_state]
        own["action_space"] = self.action_space.np_random.bit_generator.state
        return {"environments": environments, "model": to_json(own, "the model")}

    def _resume_episodes(self, episodes: dict[str, Any]) -> None:
        """Go on with the episodes of another model; with new ones, and a warning, if environments do not take their states."""
        assert self.env is not None, "load_checkpoint() was given it"
        are_set = set_environment_states(self.env, episodes["environments"])
        self._reset_watch = ResetWatch(self.env)
        own = from_json(episodes["model"])
        self.action_space.np_random.bit_generator.state = own["action_space"]  # loading has seeded it again
        if not are_set:  # then learn() resets them
            self._last_obs, self._episodes_seed = None, int(self.action_space.np_random.integers(2**31 - 1))
            return
        if own["core_state"] is not None:
            self._core_state = state_from_arrays(own["core_state"], self.q_net.initial_state(self.n_envs))
        for name, part in self._episode_statistics().items():
            vars(part).update(own[name])

    def _episode_statistics(self) -> dict[str, Any]:
        return {"return_scale": self.return_scale, "episode_values": self.diagnostics.episode_values}

    def _seed_episodes(self, seed: int) -> None:
        """Seed the episodes that begin at the next reset."""
        assert self.env is not None, "You must set the environment before calling learn()"
        self.env.seed(seed)
        self.action_space.seed(seed)

    def _begin_episodes(self, seed: int) -> None:
        """Begin new episodes in all environments."""
        self._seed_episodes(seed)
        assert self.env is not None, "it was seeded"
        self._last_obs, self._last_episode_starts = self.env.reset(), np.ones(self.n_envs, dtype=bool)  # type: ignore[assignment]
        self._reset_watch = ResetWatch(self.env)
        if self._vec_normalize_env is not None:
            self._last_original_obs = self._vec_normalize_env.get_original_obs()


def write_checkpoint(model: Checkpoints, folder: str | Path, episodes: dict[str, Any] | None) -> Path:
    """
    Write a checkpoint, complete or not at all.

    :param model: the model, between two rollouts
    :param folder: where checkpoints are
    :param episodes: what the running episodes go on from, if that is known
    :return: the checkpoint, a folder in it that is named after the number of steps
    """
    path = Path(folder) / f"{PREFIX}{model.num_timesteps}"
    with replace_folder_on_success(path) as temporary:
        model.save(temporary / MODEL)
        _save(temporary / REPLAY, model.replay_buffer.state_arrays())
        _save(temporary / GENERATORS, _generators())
        if model._vec_normalize_env is not None:
            _save(temporary / NORMALIZATION, _statistics(model._vec_normalize_env))
        if episodes is not None:
            (temporary / EPISODES).write_text(json.dumps(episodes), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "sb3_attn": __version__,
            "algorithm": type(model).__name__,
            "num_timesteps": model.num_timesteps,
            "sha256": {file.name: _sha256(file) for file in sorted(temporary.iterdir())},
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return path


def checkpoints(folder: str | Path) -> list[Path]:
    """
    The checkpoints in a folder.

    :param folder: where checkpoints are
    :return: oldest first
    """
    found = [path for path in Path(folder).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=_n_steps)


def _n_steps(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def newest_valid(folder: str | Path, algorithm: str) -> Path:
    """
    Find the newest checkpoint that is not damaged; a warning names those that are.

    :param folder: a checkpoint, or where checkpoints are
    :param algorithm: name of the algorithm that wrote it
    :return: the checkpoint
    :raises ValueError: if there is none, or it is one of another algorithm
    """
    candidates = [Path(folder)] if (Path(folder) / MANIFEST).exists() else checkpoints(folder)[::-1]
    for path in candidates:
        manifest, damaged = _examine(path)
        if damaged:
            warnings.warn(f"{path} is damaged: {', '.join(damaged)}. It is left out.", stacklevel=3)
            continue
        written_by, format_ = manifest["algorithm"], manifest["format"]
        if written_by != algorithm or format_ not in FORMATS:
            raise ValueError(
                f"{path} was written by {written_by} in format {format_}, not by {algorithm} in format {FORMAT}; load it with "
                f"the class and the version ({manifest['sb3_attn']}) that wrote it."
            )
        return path
    if not candidates:
        raise ValueError(f"folder={folder} has no checkpoint; give one, or the folder given to SaveCheckpoints.")
    raise ValueError(f"folder={folder} has no checkpoint that is whole; {len(candidates)} are damaged.")


def _examine(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest of a checkpoint, and the names of the files that are not as it says."""
    try:
        check_own_file(path / MANIFEST, path)
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        # A required file that the manifest does not list has None, which no checksum equals; an optional one has "", the
        # checksum of a missing file, so it counts as damaged if it is there nevertheless
        members = dict.fromkeys((MODEL, REPLAY, GENERATORS)) | dict.fromkeys((NORMALIZATION, EPISODES), "")
        checksums = members | manifest["sha256"]
        damaged = [name for name in checksums if name not in members or _sha256(path / name) != checksums[name]]
        return {key: manifest[key] for key in ("algorithm", "format", "sb3_attn")}, damaged
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, [f"{MANIFEST} ({error})"]


def restore(model: Checkpoints, path: Path) -> None:
    """
    Put all but the model's zip back, the generators last.

    :param model: the model that was loaded from the zip, with its environments
    :param path: the checkpoint
    :raises ValueError: if environments or replay do not fit
    """
    if ((path / NORMALIZATION).exists()) != (model._vec_normalize_env is not None):
        with_or_without = "with" if (path / NORMALIZATION).exists() else "without"
        raise ValueError(f"{path} was written by a model {with_or_without} VecNormalize; wrap env likewise.")
    if model._vec_normalize_env is not None:
        _set_statistics(model._vec_normalize_env, _load(path / NORMALIZATION))
    replay = _load(path / REPLAY)
    if (n_envs := len(replay["pos"])) != model.n_replay_envs:
        raise ValueError(
            f"{path} was written with {n_envs} environments, but now there are {model.n_replay_envs}; give as many."
        )
    model.replay_buffer.set_state_arrays(replay)
    if (path / EPISODES).exists():
        model._resume_episodes(json.loads((path / EPISODES).read_text(encoding="utf-8")))
    _set_generators(_load(path / GENERATORS))


class SaveCheckpoints(BaseCallback):
    """
    Writes a checkpoint every n steps, and when training is interrupted; at each, all environments begin new episodes, unless
    they have ``get_state`` and ``set_state``.

    :param folder: where checkpoints are
    :param save_freq: number of environment steps, of all environments together, between two checkpoints
    :param keep_last: number of checkpoints to keep; older ones are removed. Those with more steps than the model has done,
        which are damaged, are neither counted nor removed
    :param verbose: Verbosity level: 0 for no output, 2 to print each path
    :raises ValueError: if a number is not positive, and at the start of training if the algorithm has no checkpoints, the
        folder has those of another run or of more steps, or an environment does not take back the state that it gives
    """

    model: Checkpoints

    def __init__(self, folder: str | Path, save_freq: int, keep_last: int = 3, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, value in (("save_freq", save_freq), ("keep_last", keep_last)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.folder, self.save_freq, self.keep_last = Path(folder), save_freq, keep_last
        self._last = 0

    def _on_training_start(self) -> None:
        if not isinstance(self.model, Checkpoints):
            raise ValueError(
                f"SaveCheckpoints is for RecurrentDQN and R2D2, not {type(self.model).__name__}; use SaveOnSignal, and SB3's "
                "CheckpointCallback."
            )
        # load_checkpoint() takes the one with the most steps: another run's, instead of those that this run will write
        _, others = self._up_to_now_and_later()
        if others and self.num_timesteps > 0:
            others = [path for path in others if not _examine(path)[1]]  # load_checkpoint() has left out the damaged ones
        if others:
            raise ValueError(
                f"folder={self.folder} has {others[-1].name} of another run; go on with that by load_checkpoint() and "
                "learn(..., reset_num_timesteps=False), give another folder, or remove it."
            )
        self._last = self.num_timesteps
        self.model._running_episodes()  # raises now what would be a warning at the first checkpoint

    def _on_rollout_start(self) -> None:
        # Counted in absolute steps, so that a resumed run has its checkpoints where the other one has them
        if self.model.num_timesteps // self.save_freq > self._last // self.save_freq:
            self.save()

    def _on_step(self) -> bool:
        return True

    def save(self) -> None:
        """
        Write a checkpoint now, between two rollouts.

        :raises RuntimeError: before ``learn()``, which gives this callback its model
        """
        if not hasattr(self, "model"):
            raise RuntimeError(
                f"SaveCheckpoints(folder={str(self.folder)!r}) has no model before learn(); call "
                "model.save_checkpoint(folder)."
            )
        self._last = self.num_timesteps
        try:
            path = self.model.save_checkpoint(self.folder)
        except (ConnectionError, TimeoutError):
            raise  # it is written, but an environment does not answer
        except OSError as error:
            warnings.warn(f"no checkpoint was written at step {self._last}: {error}. Training goes on.", stacklevel=2)
            return
        for old in self._up_to_now_and_later()[0][: -self.keep_last]:
            shutil.rmtree(old)
        if self.verbose >= 2:
            print(f"Wrote {path}")

    def _up_to_now_and_later(self) -> tuple[list[Path], list[Path]]:
        """The checkpoints in the folder, oldest first: those with no more steps than done so far, and those with more."""
        found = checkpoints(self.folder)
        n_done = sum(_n_steps(path) <= self.num_timesteps for path in found)
        return found[:n_done], found[n_done:]


# ---------------------------------------------------------------- generators, statistics, files


def _generators() -> dict[str, np.ndarray]:
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    generators: dict[str, np.ndarray] = {
        "python": np.array(internal, np.uint64),
        "python_gauss": np.array([version, gauss is not None, gauss or 0.0]),
        "numpy": np.asarray(keys),
        "numpy_gauss": np.array([position, has_gauss, cached]),
        "torch": th.get_rng_state().numpy(),
    }
    if th.cuda.is_available():
        generators |= {f"cuda_{i}": state.numpy() for i, state in enumerate(th.cuda.get_rng_state_all())}
    return generators


def _set_generators(generators: dict[str, np.ndarray]) -> None:
    version, has_gauss, gauss = generators["python_gauss"].tolist()
    random.setstate((int(version), tuple(generators["python"].tolist()), gauss if has_gauss else None))
    position, has_cached, cached = generators["numpy_gauss"].tolist()
    np.random.set_state(("MT19937", generators["numpy"], int(position), int(has_cached), cached))
    th.set_rng_state(th.from_numpy(generators["torch"]))
    for i in range(th.cuda.device_count()):
        if f"cuda_{i}" in generators:
            th.cuda.set_rng_state(th.from_numpy(generators[f"cuda_{i}"]), i)


def _running_statistics(env: VecNormalize) -> Iterator[tuple[str, RunningMeanStd]]:
    yield "returns", env.ret_rms
    if env.norm_obs:
        if isinstance(env.obs_rms, dict):
            yield from ((f"observations/{key}", statistics) for key, statistics in env.obs_rms.items())
        else:
            yield "observations", env.obs_rms


def _statistics(env: VecNormalize) -> dict[str, np.ndarray]:
    statistics = {
        f"{name}/{field}": np.asarray(getattr(statistics, field))
        for name, statistics in _running_statistics(env)
        for field in ("mean", "var", "count")
    }
    return statistics | {"running_returns": env.returns}


def _set_statistics(env: VecNormalize, arrays: dict[str, np.ndarray]) -> None:
    for name, statistics in _running_statistics(env):
        statistics.mean, statistics.var = arrays[f"{name}/mean"], arrays[f"{name}/var"]
        statistics.count = float(arrays[f"{name}/count"])
    env.returns = arrays.get("running_returns", env.returns)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # no name is that of an argument


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _sha256(path: Path) -> str:
    """The checksum of a file; empty if there is none."""
    if not os.path.lexists(path):
        return ""
    check_own_file(path, path.parent)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
