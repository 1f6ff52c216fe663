"""Checkpoints of R2D2: a run that is resumed equals the one that went on, bit for bit."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attn import R2D2, SaveCheckpoints
from sb3_attn.r2d2.actors import LocalActors
from sb3_attn.recurrent_dqn.checkpoints import checkpoints
from sb3_attn.recurrent_dqn.stopping import SIGNALS
from tests.helpers.environments import walks
from tests.helpers.models import make_r2d2
from tests.recurrent_dqn.test_checkpoints import assert_equal, everything

KINDS: dict[str, dict[str, Any]] = {
    "uniform": dict(prioritized_replay=False),
    "prioritized": {},
    "without a seed": dict(seed=None),
    "one schedule of epsilon": dict(per_env_epsilons=False, samples_per_insert=None),
    "returns scaled": dict(value_rescaling=False, reward_scaling=True, samples_per_insert=0.5),
}
COUNTERS = ("n_windows_inserted", "n_windows_sampled", "n_steps_since_start", "_episode_num")


def all_of(model: R2D2) -> dict[str, np.ndarray]:
    """All numbers that learning depends on."""
    return everything(model) | {"counters": np.array([getattr(model, name) for name in COUNTERS])}


def load(folder: Path, **kwargs: Any) -> R2D2:
    """Into environments that are elsewhere in their random streams."""
    env = walks(2)
    env.seed(9)
    return R2D2.load_checkpoint(folder, VecNormalize(env) if kwargs.get("normalized") else env, device="cpu")


@pytest.mark.parametrize(("kind", "n_actors"), [*((kind, 2) for kind in KINDS), ("uniform", 0), ("without a seed", 0)])
def test_a_resumed_run_equals_the_one_that_went_on(kind: str, n_actors: int, tmp_path: Path) -> None:
    """With trajectories of 10 steps, of which the actors' parameters last for 1 or 3."""
    kwargs = dict(actor_update_interval=30) | KINDS[kind]
    model = make_r2d2(walks(2), n_actors=n_actors, **kwargs)
    model.learn(160, SaveCheckpoints(tmp_path, save_freq=40, keep_last=9))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_40", "checkpoint_80", "checkpoint_120"]
    assert model.step_ledger.n_steps_inserted == 160 and model.step_ledger.n_restarts == 0

    np.random.rand(7)
    resumed = load(tmp_path / "checkpoint_80")
    resumed.learn(80, SaveCheckpoints(tmp_path / "again", save_freq=40), reset_num_timesteps=False)
    assert resumed.step_ledger.n_steps_inserted == 80
    assert_equal(all_of(resumed), all_of(model))
    resumed.replay_buffer.check_valid()


def test_with_running_statistics(tmp_path: Path) -> None:
    model = make_r2d2(VecNormalize(walks(2))).learn(120, SaveCheckpoints(tmp_path, save_freq=60))
    resumed = load(tmp_path / "checkpoint_60", normalized=True)
    resumed.learn(60, SaveCheckpoints(tmp_path / "again", save_freq=60), reset_num_timesteps=False)
    assert_equal(all_of(resumed), all_of(model))
    assert model.get_vec_normalize_env().ret_rms.var == resumed.get_vec_normalize_env().ret_rms.var


@pytest.mark.parametrize("n_actors", [0, 2])
def test_outside_of_learning(n_actors: int, tmp_path: Path) -> None:
    model = make_r2d2(walks(2), n_actors=n_actors).learn(60)
    path = model.save_checkpoint(tmp_path)
    model.learn(60, reset_num_timesteps=False)
    assert_equal(all_of(load(path).learn(60, reset_num_timesteps=False)), all_of(model))


class LeaveOut(BaseCallback):
    """Restores one part of the actors right after the checkpoint at step 60."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def _on_rollout_start(self) -> None:
        actors = self.model._collection.actors
        assert isinstance(actors, LocalActors)
        if self.model.num_timesteps != 60:
            return
        if self.part == "streams":
            actors.actors[0].rng = np.random.default_rng(0)
        elif self.part == "environments":
            actors.actors[0].env.seed(0)
        elif self.part == "turn":
            actors._next = 1
        elif self.part == "schedule":
            actors._schedule._n_steps[0] = 0
        else:
            setattr(self.model, self.part, 1)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("part", ["streams", "environments", "turn", "schedule", "n_windows_inserted", "n_windows_sampled"])
def test_every_part_matters(part: str, tmp_path: Path) -> None:
    model = make_r2d2(walks(2), n_actors=2, actor_update_interval=30)
    model.learn(120, [SaveCheckpoints(tmp_path, save_freq=60), LeaveOut(part)])
    resumed = load(tmp_path / "checkpoint_60")
    resumed.learn(60, SaveCheckpoints(tmp_path / "again", save_freq=60), reset_num_timesteps=False)
    found, expected = everything(resumed), everything(model)
    assert any(not np.array_equal(found[name], expected[name]) for name in expected if name.startswith("policy"))


@pytest.mark.parametrize(("number", "n_actors"), [(number, i) for i, number in enumerate(SIGNALS)], ids=str)
def test_an_interrupted_run_resumes_where_it_was(number: signal.Signals, n_actors: int, tmp_path: Path) -> None:
    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 54:
                signal.raise_signal(number)
            return True

    with pytest.raises(KeyboardInterrupt):
        make_r2d2(walks(2), n_actors=n_actors).learn(200, [Interrupt(), SaveCheckpoints(tmp_path, save_freq=1000)])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_60"]
    resumed = load(tmp_path)
    assert resumed.learn(140, reset_num_timesteps=False).num_timesteps == 200
    assert resumed.step_ledger.n_steps_inserted == 140


def test_a_plain_zip_keeps_no_seed_of_a_checkpoint(tmp_path: Path) -> None:
    """Loaded twice with other seeds, it explores differently."""
    model = make_r2d2(walks(2)).learn(60, SaveCheckpoints(tmp_path, save_freq=20))
    model.save(tmp_path / "model")
    first, second = (R2D2.load(tmp_path / "model", walks(2), device="cpu", seed=seed) for seed in (1, 2))
    assert first.actor_spec().seed != second.actor_spec().seed
