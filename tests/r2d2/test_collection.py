"""Step accounting, and values that are not finite."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn.r2d2.actors import LocalActors
from sb3_attn.r2d2.collection import StepLedger
from sb3_attn.r2d2.trajectory import InsertResult, Trajectory
from tests.helpers.actors import make_actor
from tests.helpers.environments import POLICIES, SPACES, Walk
from tests.helpers.models import make_r2d2


def trajectories(*lengths: int, **kwargs: Any) -> list[Trajectory]:
    actor = make_actor(make_r2d2(n_actors=1), **kwargs)
    return [actor.collect(n) for n in lengths]


def inserted(trajectory: Trajectory) -> InsertResult:
    return InsertResult(trajectory.n_steps, Counter(), 0)


def test_an_empty_ledger_is_valid() -> None:
    StepLedger().check()


def test_all_steps_are_accounted_for() -> None:
    ledger = StepLedger()
    for trajectory in trajectories(3, 5, 2):
        ledger.record(trajectory, InsertResult(trajectory.n_steps - 1, Counter({"lost": 1}), 0))
    ledger.check()
    assert (ledger.n_steps_received, ledger.n_steps_inserted, ledger.n_steps_rejected) == (20, 17, {"lost": 3})
    assert "n_steps_inserted=17, n_steps_rejected=Counter({'lost': 3})" in repr(ledger)


@pytest.mark.parametrize("recorded", [[0, 1, 1], [0, 0, 1], [1], [0, 2], [0, 1, 2, 2]], ids=str)
def test_a_trajectory_recorded_twice_or_missing_is_noticed(recorded: list[int]) -> None:
    sent, ledger = trajectories(3, 5, 2), StepLedger()
    with pytest.raises(RuntimeError, match=r"sent \d+ steps, .*please report it"):  # noqa: PT012  now or in the end
        for i in recorded:
            ledger.record(sent[i], inserted(sent[i]))
        ledger.check()


def test_steps_that_are_neither_inserted_nor_rejected_are_noticed() -> None:
    ledger = StepLedger()
    for trajectory in trajectories(3):
        ledger.record(trajectory, InsertResult(trajectory.n_steps - 2, Counter({"lost": 1}), 0))
    with pytest.raises(RuntimeError, match=r"6 were received, 4 inserted and 1 rejected \{'lost': 1\}"):
        ledger.check()


def test_every_incarnation_of_an_actor_has_its_own_count() -> None:
    ledger = StepLedger()
    for incarnation in (trajectories(3, 5), trajectories(2, is_restart=True), trajectories(1, is_restart=True)):
        for trajectory in incarnation:
            ledger.record(trajectory, inserted(trajectory))
    ledger.check()
    assert ledger.n_restarts == 2 and len(ledger.n_steps_sent) == 3


@pytest.mark.parametrize("fault", ["twice", "never"])
def test_learn_checks_its_ledger(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_r2d2(n_actors=1)
    record, calls = StepLedger.record, []

    def record_wrongly(self: StepLedger, *args: Any) -> None:
        calls.append(args)
        for _ in range({"twice": 2, "never": 0}[fault] if len(calls) == 2 else 1):
            record(self, *args)

    monkeypatch.setattr(StepLedger, "record", record_wrongly)
    with pytest.raises(RuntimeError, match="please report it"):
        model.learn(40)


def test_trajectories_that_arrive_after_the_end_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalActors, "drain", lambda self: [self.receive()])
    model = make_r2d2(n_actors=1).learn(40)
    assert model.step_ledger.n_steps_received == model.step_ledger.n_steps_inserted == 50
    assert model.num_timesteps == 40


def test_every_call_of_learn_has_its_own_ledger() -> None:
    model = make_r2d2(n_actors=2).learn(40)
    first = model.step_ledger
    model.learn(20, reset_num_timesteps=False)
    assert model.step_ledger is not first and model.step_ledger.n_steps_received == 20


# ---------------------------------------------------------------- values that are not finite


class Broken(Walk):
    """The reward of its eighth step is NaN or infinite."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number, self.n_steps = number, 0

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        self.n_steps += 1
        return obs, self.number if self.n_steps == 8 else reward, *rest


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("n_actors", [0, 1])
def test_values_that_are_not_finite_are_refused_and_not_stored(n_actors: int, number: float, tmp_path: Path) -> None:
    """The eighth step lies in the second trajectory of five."""
    model = make_r2d2(DummyVecEnv([partial(Broken, number)] * 2), n_actors=n_actors, learning_starts=0)
    with pytest.raises(ValueError, match=r"environment 0 returned a non-finite reward \(actor 0\) at step 10: .*; fix"):
        model.learn(60, CheckpointCallback(1, str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 5
    assert model.num_timesteps == 10 and model.replay_buffer.pos.tolist() == [5, 5]
    assert np.isfinite(model.replay_buffer.observations).all() and np.isfinite(model.replay_buffer.rewards).all()


def test_actor_and_environment_are_named() -> None:
    first, second = (make_actor(make_r2d2(n_actors=2), index).collect(5) for index in range(2))
    first.check_finite(0)
    second.rewards[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"environment 1 returned a non-finite reward \(actor 1\) at step 70: nan"):
        second.check_finite(70)


def test_the_key_of_a_dict_is_named() -> None:
    env = partial(Walk, "dict")
    trajectory = make_actor(make_r2d2(env, POLICIES["dict"], n_actors=1, envs_per_actor=3)).collect(5)
    trajectory.check_finite(0)
    trajectory.next_observations["a"][2] = np.inf
    with pytest.raises(ValueError, match=r"environment 2 returned a non-finite observation 'a' \(actor 0\)"):
        trajectory.check_finite(0)


@pytest.mark.parametrize("kind", SPACES)
def test_final_observations_are_checked(kind: str) -> None:
    model = make_r2d2(partial(Walk, kind), POLICIES[kind], n_actors=1, envs_per_actor=2)
    trajectory = make_actor(model).collect(20)
    trajectory.check_finite(0)
    for key, array in trajectory.final_observations[-1].items():
        if array.dtype.kind == "f":
            array[...] = np.nan
            with pytest.raises(ValueError, match=f"non-finite final observation {key!r}"):
                trajectory.check_finite(0)
