"""Checkpoints: a run that is resumed equals the one that went on, bit for bit, and what is damaged is not loaded."""

import hashlib
import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.dqn import DQN

from sb3_attn import RecurrentDQN
from sb3_attn.recurrent_dqn.checkpoints import SaveCheckpoints, checkpoints, newest_valid
from sb3_attn.recurrent_dqn.stopping import SIGNALS
from tests.helpers.environments import Walk
from tests.helpers.models import make_rdqn

KINDS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "prioritized": dict(prioritized_replay=True),
    "key-value": dict(policy_kwargs=dict(core="key_value", core_kwargs=dict(hidden_size=6, n_slots=4))),
    "ntm": dict(policy_kwargs=dict(core="ntm", core_kwargs=dict(hidden_size=6, n_slots=5, word_size=4))),
    "whole episodes": dict(trace_length=None, burn_in_length=0, batch_size=None),
    "dict": dict(policy="MultiInputPolicy"),
}


def make_env(kind: str = "vector", seed: int = 0, normalized: bool = False) -> DummyVecEnv | VecNormalize:
    env = DummyVecEnv([lambda: Walk(kind)] * 2)
    env.seed(seed)
    return VecNormalize(env, norm_obs_keys=["a"] if kind == "dict" else None) if normalized else env


def everything(model: RecurrentDQN) -> dict[str, np.ndarray]:
    """All numbers that learning depends on."""
    parts = {f"policy/{name}": tensor.numpy() for name, tensor in model.policy.state_dict().items()}
    moments = enumerate(model.policy.optimizer.state.values())
    parts |= {f"optimizer/{i}/{key}": np.asarray(tensor) for i, state in moments for key, tensor in state.items()}
    parts |= {f"replay/{name}": array for name, array in model.replay_buffer.state_arrays().items()}
    counts = (model.num_timesteps, model._n_updates, model._n_calls, model.exploration_rate, model.return_scale.value)
    generators = np.random.get_state()[1], th.get_rng_state().numpy(), np.array(random.getstate()[1])
    return parts | {"counts": np.array(counts)} | {f"generator {i}": array for i, array in enumerate(generators)}


def assert_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not np.array_equal(first[name], second[name], equal_nan=name.startswith("replay"))]


@pytest.mark.parametrize(("kind", "normalized"), [*((kind, False) for kind in KINDS), ("lstm", True), ("dict", True)])
def test_a_resumed_run_equals_the_one_that_went_on(kind: str, normalized: bool, tmp_path: Path) -> None:
    space = "dict" if kind == "dict" else "vector"
    model = make_rdqn(make_env(space, normalized=normalized), **KINDS[kind])
    model.learn(400, callback=SaveCheckpoints(tmp_path, save_freq=100, keep_last=9))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_104", "checkpoint_200", "checkpoint_304"]
    expected = everything(model)

    shutil.rmtree(tmp_path / "checkpoint_304")
    np.random.rand(7), random.random(), th.rand(3)
    resumed = RecurrentDQN.load_checkpoint(tmp_path, make_env(space, seed=5, normalized=normalized), device="cpu")
    assert resumed.num_timesteps == 200
    resumed.learn(200, callback=SaveCheckpoints(tmp_path, save_freq=100), reset_num_timesteps=False)
    assert_equal(everything(resumed), expected)
    resumed.replay_buffer.check_valid()
    if normalized:
        assert model.get_vec_normalize_env().ret_rms.var == resumed.get_vec_normalize_env().ret_rms.var


def trained(folder: Path, steps: int = 200, **kwargs: Any) -> RecurrentDQN:
    return make_rdqn(make_env()).learn(steps, callback=SaveCheckpoints(folder, **(dict(save_freq=40) | kwargs)))


@pytest.mark.parametrize("part", ["numpy", "seed", "replay", "total_timesteps"])
def test_every_part_matters(part: str, tmp_path: Path) -> None:
    """Without one the parameters are not the same. Nothing here draws from the other generators, which are compared above."""
    expected = everything(trained(tmp_path))
    folder = tmp_path / "checkpoint_120"
    resumed = RecurrentDQN.load_checkpoint(folder, make_env(), device="cpu")
    if part == "numpy":
        np.random.rand()
    elif part == "seed":
        resumed.env.seed(0)
    elif part == "replay":
        resumed.replay_buffer.reset()
    remaining = 180 if part == "total_timesteps" else 80
    callback = [SaveCheckpoints(tmp_path / "again", 40), ConvertCallback(lambda *_: resumed.num_timesteps < 200)]
    resumed.learn(remaining, callback, reset_num_timesteps=False)
    found = everything(resumed)
    assert any(not np.array_equal(found[name], expected[name]) for name in expected if name.startswith("policy"))


@pytest.mark.parametrize("number", SIGNALS, ids=str)
def test_an_interrupted_run_resumes_where_it_was(number: signal.Signals, tmp_path: Path) -> None:
    def interrupt(local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if local_variables["self"].num_timesteps == 54:
            signal.raise_signal(number)
        return True

    callbacks = [ConvertCallback(interrupt), SaveCheckpoints(tmp_path, save_freq=1000)]
    with pytest.raises(KeyboardInterrupt):
        make_rdqn(make_env()).learn(200, callbacks)
    (path,) = checkpoints(tmp_path)
    resumed = RecurrentDQN.load_checkpoint(tmp_path, make_env(), device="cpu")
    assert path.name == "checkpoint_56" and resumed.num_timesteps == 56
    resumed.learn(144, reset_num_timesteps=False)
    assert resumed.num_timesteps == 200


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if how == "cut" else content[:-9] + b"?" + content[-8:])


@pytest.mark.parametrize("how", ["missing", "cut", "changed"])
@pytest.mark.parametrize("name", ["model.zip", "replay.npz", "generators.npz", "manifest.json"])
def test_the_checkpoint_before_a_damaged_one_is_loaded(name: str, how: str, tmp_path: Path) -> None:
    trained(tmp_path)
    newest, before = checkpoints(tmp_path)[-1], checkpoints(tmp_path)[-2]
    damage(newest / name, how)
    what = "" if name == "manifest.json" else name  # a manifest with another checksum makes another file look damaged
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged: {what}.* It is left out"):
        model = RecurrentDQN.load_checkpoint(tmp_path, make_env(), device="cpu")
    assert before.name == f"checkpoint_{model.num_timesteps}"


def test_without_a_whole_checkpoint_there_is_a_sentence(tmp_path: Path) -> None:
    trained(tmp_path, keep_last=1)
    (path,) = checkpoints(tmp_path)
    damage(path / "model.zip", "cut")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="no checkpoint that is whole; 1 are damaged"),
    ):
        RecurrentDQN.load_checkpoint(tmp_path, make_env(), device="cpu")
    with pytest.raises(ValueError, match="has no checkpoint; give one, or the folder given to SaveCheckpoints"):
        RecurrentDQN.load_checkpoint(tmp_path / "elsewhere", make_env(), device="cpu")


@pytest.mark.parametrize("key", ["algorithm", "format", "sb3_attn", "sha256"])
def test_a_manifest_that_lacks_something_is_damaged(key: str, tmp_path: Path) -> None:
    trained(tmp_path)
    newest, before = checkpoints(tmp_path)[-1], checkpoints(tmp_path)[-2]
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest[key]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged: manifest.json \('{key}'\)"):
        assert newest_valid(tmp_path, "RecurrentDQN") == before


@pytest.mark.parametrize("how", ["link", "device", "waits"])
@pytest.mark.parametrize("name", ["replay.npz", "episodes.json", "normalization.npz", "manifest.json"])
def test_only_regular_files_are_read(name: str, how: str, tmp_path: Path) -> None:
    trained(tmp_path)
    newest, before = checkpoints(tmp_path)[-1], checkpoints(tmp_path)[-2]
    path, elsewhere = newest / name, tmp_path / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.write_text("{}")
    if how == "waits":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere if how == "link" else os.devnull)
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged: .*{name} is missing, a link, or not a regular file"):
        assert newest_valid(tmp_path, "RecurrentDQN") == before


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", [os.devnull, "../other", "other", "episodes.json"])
def test_a_manifest_lists_the_members_that_are_there_and_no_others(name: str, listed: bool, tmp_path: Path) -> None:
    trained(tmp_path)
    newest, before = checkpoints(tmp_path)[-1], checkpoints(tmp_path)[-2]
    manifest = json.loads((newest / "manifest.json").read_text())
    if name != os.devnull:
        (newest / name).write_text("{}")
    if listed:
        manifest["sha256"][name] = hashlib.sha256(b"{}").hexdigest()
        (newest / "manifest.json").write_text(json.dumps(manifest))
    if listed == (name == "episodes.json"):
        assert newest_valid(tmp_path, "RecurrentDQN") == newest
        return
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged: {name}. It is left out"):
        assert newest_valid(tmp_path, "RecurrentDQN") == before


@pytest.mark.parametrize(("key", "value"), [("algorithm", "DQN"), ("format", 3)])
def test_a_checkpoint_of_another_kind_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    trained(tmp_path)
    path = checkpoints(tmp_path)[-1] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=r"was written by .* not by RecurrentDQN in format 2; load it with"):
        RecurrentDQN.load_checkpoint(tmp_path, make_env(), device="cpu")


def test_checkpoints_of_the_former_format_are_loaded(tmp_path: Path) -> None:
    trained(tmp_path)
    path = checkpoints(tmp_path)[-1] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    assert RecurrentDQN.load_checkpoint(tmp_path, make_env(), device="cpu").num_timesteps == 160


def test_other_environments_are_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(ValueError, match="by a model without VecNormalize; wrap env likewise"):
        RecurrentDQN.load_checkpoint(tmp_path, make_env(normalized=True), device="cpu")
    with pytest.raises(ValueError, match="written with 2 environments, but now there are 1; give as many"):
        RecurrentDQN.load_checkpoint(tmp_path, DummyVecEnv([Walk]), device="cpu")


def test_a_folder_is_that_of_one_run(tmp_path: Path) -> None:
    """A new run would otherwise remove its own checkpoints, which have fewer steps, and load those of the other one."""
    trained(tmp_path)
    with pytest.raises(ValueError, match=r"has checkpoint_160 of another run; go on .* reset_num_timesteps=False\)"):
        trained(tmp_path)
    assert checkpoints(tmp_path)[-1].name == "checkpoint_160"


def test_a_run_that_goes_on_from_an_earlier_checkpoint_is_not_mixed_with_what_followed_it(tmp_path: Path) -> None:
    """Later checkpoints of the old run would be loaded instead of its own; damaged ones are ignored."""
    model = trained(tmp_path, keep_last=9)
    earlier = RecurrentDQN.load_checkpoint(tmp_path / "checkpoint_120", make_env(), device="cpu")
    with pytest.raises(ValueError, match="has checkpoint_160 of another run"):
        earlier.learn(80, SaveCheckpoints(tmp_path, 40), reset_num_timesteps=False)
    for path in checkpoints(tmp_path)[1:]:
        (path / "model.zip").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        earlier = RecurrentDQN.load_checkpoint(tmp_path, make_env(), device="cpu")
    assert earlier.num_timesteps < 80 < model.num_timesteps
    earlier.learn(48, SaveCheckpoints(tmp_path, 20, keep_last=2), reset_num_timesteps=False)
    with pytest.warns(UserWarning, match="is damaged"):
        resumed = RecurrentDQN.load_checkpoint(tmp_path, make_env(), device="cpu")
    assert earlier.num_timesteps - 20 <= resumed.num_timesteps < earlier.num_timesteps


def test_only_algorithms_with_checkpoints_write_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SaveCheckpoints is for RecurrentDQN and R2D2, not DQN; use SaveOnSignal"):
        DQN("MlpPolicy", "CartPole-v1", device="cpu").learn(5, SaveCheckpoints(tmp_path, 40))


def test_the_callback_has_a_model_from_learn_on(tmp_path: Path) -> None:
    callback = SaveCheckpoints(tmp_path, 1000)
    with pytest.raises(RuntimeError, match=r"has no model before learn\(\); call model\.save_checkpoint\(folder\)"):
        callback.save()
    make_rdqn(make_env()).learn(40, callback)
    callback.save()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_40"]


def test_a_checkpoint_of_the_same_step_is_there_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_rdqn(make_env()).learn(60)
    path = model.save_checkpoint(tmp_path)
    old = (path / "manifest.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr("sb3_attn.recurrent_dqn.checkpoints.np.savez", _fail)
        with pytest.raises(OSError, match="broken"):
            model.save_checkpoint(tmp_path)
    assert (path / "manifest.json").read_text() == old
    assert model.save_checkpoint(tmp_path) == path and (path / "manifest.json").read_text() != old
    assert list(tmp_path.iterdir()) == [path]
    RecurrentDQN.load_checkpoint(path, make_env(), device="cpu")


def _fail(*args: Any, **kwargs: Any) -> None:
    raise OSError("broken")


def test_the_newest_are_kept(tmp_path: Path) -> None:
    trained(tmp_path, keep_last=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_120", "checkpoint_160"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_120", "checkpoint_160"}


@pytest.mark.parametrize("kwargs", [dict(save_freq=0), dict(keep_last=0)])
def test_numbers_must_be_positive(kwargs: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="=0 must be at least 1"):
        SaveCheckpoints(tmp_path, **(dict(save_freq=10) | kwargs))


def test_a_checkpoint_that_cannot_be_written_does_not_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sb3_attn.recurrent_dqn.checkpoints.np.savez", fail)
    with pytest.warns(UserWarning, match=r"no checkpoint was written at step 40: .*No space left.* Training goes on"):
        model = trained(tmp_path, steps=60)
    assert model.num_timesteps == 64 and not list(tmp_path.iterdir())
