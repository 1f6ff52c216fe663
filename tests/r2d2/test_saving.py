"""Saving and loading that R2D2 does differently; the rest is tested for both algorithms in ``tests/algorithms``."""

import inspect
from pathlib import Path

import pytest

from sb3_attn import R2D2
from tests.helpers.environments import Walk, walks
from tests.helpers.models import make_r2d2


def test_the_replay_of_another_number_of_actors_is_refused(tmp_path: Path) -> None:
    make_r2d2(n_actors=3).save_replay_buffer(tmp_path / "replay")
    with pytest.raises(ValueError, match="n_envs=6, but this model needs n_envs=4"):
        make_r2d2(n_actors=2).load_replay_buffer(tmp_path / "replay")


def test_the_number_of_actors_may_change_at_load(tmp_path: Path) -> None:
    make_r2d2(n_actors=1).learn(40).save(tmp_path / "model")
    model = R2D2.load(tmp_path / "model", env=walks(3), device="cpu", n_actors=2)
    assert model.replay_buffer.n_envs == 6
    model.learn(60, reset_num_timesteps=False)
    assert model.replay_buffer.pos.min() > 0


def test_the_arguments_of_the_policy_may_be_repeated_at_load(tmp_path: Path) -> None:
    """The zip holds them completed by the paper's."""
    policy_kwargs = dict(core_kwargs=dict(hidden_size=6))
    R2D2("MlpPolicy", Walk, policy_kwargs=policy_kwargs, buffer_size=1000, device="cpu").save(tmp_path / "model")
    model = R2D2.load(tmp_path / "model", device="cpu", policy_kwargs=policy_kwargs)
    assert model.q_net.core.output_size == 6
    with pytest.raises(ValueError, match="do not equal the stored policy kwargs"):
        R2D2.load(tmp_path / "model", policy_kwargs=dict(core_kwargs=dict(hidden_size=7)))


def test_the_zip_holds_the_arguments_that_settings_chose(tmp_path: Path) -> None:
    policy_kwargs = dict(core_kwargs=dict(hidden_size=6))
    model = make_r2d2(settings="small", n_steps=1, exploration_final_eps=0.2, policy_kwargs=policy_kwargs)
    model.learn(60).save(tmp_path / "model")
    loaded = R2D2.load(tmp_path / "model", env=walks(2), device="cpu")
    for name in inspect.signature(R2D2).parameters.keys() & vars(model).keys() - {"policy", "env"}:
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.samples_per_insert is None and loaded.td_lambda == 0.95
    assert loaded.exploration_rate == model.exploration_rate == 0.2
    assert loaded.n_steps_since_start == model.n_steps_since_start > 0
    n_updates = loaded._n_updates
    assert loaded.learn(60, reset_num_timesteps=False)._n_updates == n_updates + 6


def test_settings_may_be_repeated_at_load(tmp_path: Path) -> None:
    policy_kwargs = dict(core_kwargs=dict(hidden_size=6))
    R2D2("MlpPolicy", Walk, settings="small", policy_kwargs=policy_kwargs, device="cpu").save(tmp_path / "model")
    model = R2D2.load(tmp_path / "model", settings="small", policy_kwargs=policy_kwargs, device="cpu")
    assert model.q_net.core.output_size == 6 and model.td_lambda == 0.95
    with pytest.raises(ValueError, match="settings='tiny' must be one of"):
        R2D2.load(tmp_path / "model", settings="tiny")


def test_bad_arguments_at_load_are_named(tmp_path: Path) -> None:
    make_r2d2().save(tmp_path / "model")
    with pytest.raises(ValueError, match="samples_per_insert=-1 must be positive"):
        R2D2.load(tmp_path / "model", samples_per_insert=-1)
