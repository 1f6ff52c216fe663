"""The collection of one learn(): every step is accounted for, and the logs report rates, fill and lag."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_attn import R2D2
from sb3_attn.r2d2 import collection
from sb3_attn.r2d2.actors import LocalActors
from sb3_attn.r2d2.collection import Collection, Rates, StepLedger
from sb3_attn.r2d2.trajectory import InsertResult, Trajectory
from tests.helpers.actors import make_actor
from tests.helpers.callbacks import StopAt
from tests.helpers.environments import Walk
from tests.helpers.models import make_r2d2


def trajectories(*lengths: int, **kwargs: Any) -> list[Trajectory]:
    actor = make_actor(make_r2d2(n_actors=1), **kwargs)
    return [actor.collect(n) for n in lengths]


def inserted(trajectory: Trajectory) -> InsertResult:
    return InsertResult(trajectory.n_env_steps, Counter(), 0)


def test_an_empty_ledger_is_valid() -> None:
    StepLedger().check()


def test_all_steps_are_accounted_for() -> None:
    ledger = StepLedger()
    for trajectory in trajectories(3, 5, 2):
        ledger.record(trajectory, InsertResult(trajectory.n_env_steps - 1, Counter({"lost": 1}), 0))
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
        ledger.record(trajectory, InsertResult(trajectory.n_env_steps - 2, Counter({"lost": 1}), 0))
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


@pytest.mark.parametrize("n_actors", [0, 2])
def test_a_trajectory_in_which_a_callback_ends_learning_is_stored_whole(n_actors: int) -> None:
    model = make_r2d2(n_actors=n_actors).learn(1000, StopAt(13))
    assert model.num_timesteps == 26 and model.step_ledger.n_steps_inserted == 30


# ---------------------------------------------------------------- logs


class Memory(KVWriter):
    """Records what is logged."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.logs.append(dict(key_values) | {"step": step})

    def close(self) -> None: ...


def logged(model: R2D2, steps: int = 100, **kwargs: Any) -> list[dict[str, Any]]:
    memory = Memory()
    model.set_logger(Logger(None, [memory]))
    model.learn(steps, **kwargs)
    return memory.logs


@pytest.mark.parametrize("n_actors", [0, 2])
def test_the_logs_of_a_run(n_actors: int) -> None:
    model = make_r2d2(make_vec_env(Walk, 2), n_actors=n_actors)
    logs = logged(model, 200, log_interval=1)
    last = logs[-1]
    for key in ("time/fps", "time/updates_per_second", "time/bytes_per_second", "train/loss", "train/td_error"):
        assert last[key] > 0, key
    assert last["rollout/ep_len_mean"] == pytest.approx(np.mean([info["l"] for info in model.ep_info_buffer]))
    assert last["train/samples_per_insert"] == pytest.approx(4, rel=0.1)
    assert 0 < logs[0]["replay/fill"] < last["replay/fill"] <= 1
    assert last["replay/fill"] == pytest.approx(model.replay_buffer.size() / model.replay_buffer.buffer_size)
    assert last["replay/windows"] == model.replay_buffer.n_windows
    assert last["actors/restarts"] == 0 and last["time/total_timesteps"] == last["step"] <= 200
    assert logs[0]["train/samples_per_insert"] == 0  # before learning starts


@pytest.mark.parametrize(("interval", "expected"), [(1, None), (4, None), (None, 0), (10**6, 0)])
def test_logs_come_every_so_many_episodes(interval: int | None, expected: int | None) -> None:
    model = make_r2d2(n_actors=1, rollout_length=1)
    logs = logged(model, 100, log_interval=interval)
    if expected is None:  # two episodes may end in one trajectory
        assert model._episode_num // interval // 2 <= len(logs) <= model._episode_num // interval
        assert all(log["time/episodes"] // interval > i for i, log in enumerate(logs))
    else:
        assert len(logs) == expected


def test_policy_lag_is_the_mean_age_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    ages: list[int] = []
    insert = Collection.insert
    model = make_r2d2(n_actors=2, actor_update_interval=40)
    note = lambda self, t, *args: ages.append(model._n_updates - t.version) or insert(self, t, *args)  # noqa: E731
    monkeypatch.setattr(Collection, "insert", note)
    expected: list[float] = []
    dump = model.dump_logs
    monkeypatch.setattr(model, "dump_logs", lambda: expected.append(float(np.mean(ages[-100:]))) or dump())
    logs = logged(model, 300, log_interval=4)
    assert [log["actors/policy_lag"] for log in logs] == pytest.approx(expected)
    assert logs[-1]["actors/policy_lag"] > 5 and logs[0]["actors/policy_lag"] == 0


def test_rates_are_those_since_the_last_log(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 112.0])
    monkeypatch.setattr(collection.time, "monotonic", lambda: next(clock))
    memory = Memory()
    logger = Logger(None, [memory])
    rates = Rates(n_updates=50)
    rates.policy_lags.append(3)
    for n_updates, n_bytes in ((150, 2000), (154, 2600)):
        rates.log(logger, n_updates, n_bytes)
        logger.dump()
    assert [log["time/updates_per_second"] for log in memory.logs] == [10, 2]
    assert [log["time/bytes_per_second"] for log in memory.logs] == [200, 300]
