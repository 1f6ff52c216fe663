"""R2D2 as users of Stable-Baselines3 expect it: callbacks, logs, saving, loading, evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common import callbacks
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_attn import R2D2
from sb3_attn.common.exploration import ape_x_epsilons
from sb3_attn.r2d2.collection import Collection
from tests.helpers.environments import POLICIES, Walk
from tests.helpers.models import assert_same, make_r2d2, parameters


def monitored(n_envs: int = 2, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(Walk(**kwargs))] * n_envs)


class Recorder(BaseCallback):
    """What a callback sees at each step."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self.timesteps: list[int] = []
        self.starts = self.ends = 0
        self.last = last

    def _on_rollout_start(self) -> None:
        self.starts += 1

    def _on_rollout_end(self) -> None:
        self.ends += 1

    def _on_step(self) -> bool:
        self.seen.append(dict(self.locals))
        self.timesteps.append(self.num_timesteps)
        return self.n_calls != self.last


@pytest.mark.parametrize("n_actors", [0, 2])
def test_a_callback_is_called_for_every_step_of_n_envs(n_actors: int) -> None:
    recorder = Recorder()
    model = make_r2d2(n_actors=n_actors).learn(60, recorder)
    assert recorder.n_calls == 30 and recorder.timesteps == list(range(2, 61, 2)) and model.num_timesteps == 60
    assert recorder.starts == recorder.ends == 6


@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_what_callbacks_read(kind: str) -> None:
    """new_obs, rewards, dones and infos as a VecEnv returns them; compared with what the replay has."""
    recorder = Recorder()
    model = make_r2d2(DummyVecEnv([lambda: Walk(kind)] * 2), POLICIES[kind]).learn(60, recorder)
    rewards, dones = (np.array([seen[name] for seen in recorder.seen]) for name in ("rewards", "dones"))
    np.testing.assert_array_equal(rewards, model.replay_buffer.rewards[:30])
    np.testing.assert_array_equal(dones, model.replay_buffer.dones[:30])
    assert dones.any()
    for t, seen in enumerate(recorder.seen[:-1]):
        new_obs = seen["new_obs"] if kind == "dict" else {"observation": seen["new_obs"]}
        for key, ring in model.replay_buffer._observations.items():
            np.testing.assert_array_equal(np.reshape(new_obs[key], ring[t + 1].shape), ring[t + 1])
        assert len(seen["infos"]) == 2
        assert {"self", "env", "infos", "rewards", "dones", "new_obs", "callback"} <= seen.keys()


@pytest.mark.parametrize("n_actors", [0, 2])
def test_episodes_reach_the_statistics(n_actors: int) -> None:
    recorder = Recorder()
    model = make_r2d2(monitored(), n_actors=n_actors).learn(100, recorder)
    episodes = [info["episode"] for seen in recorder.seen for info in seen["infos"] if "episode" in info]
    assert len(episodes) == sum(seen["dones"].sum() for seen in recorder.seen) == model._episode_num > 10
    assert list(model.ep_info_buffer) == episodes


def test_success_reaches_the_statistics() -> None:
    class Lucky(Walk):
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return *rest, info | {"is_success": self.length % 2 == 0, "large": np.zeros(10**5)}

    recorder = Recorder()
    model = make_r2d2(Lucky, envs_per_actor=2, n_actors=1).learn(100, recorder)
    assert len(model.ep_success_buffer) == model._episode_num and set(model.ep_success_buffer) == {True, False}
    assert not any("large" in info for seen in recorder.seen for info in seen["infos"])  # nobody wants it


@pytest.mark.parametrize("n_actors", [0, 2])
def test_a_callback_ends_learning_in_the_middle_of_a_trajectory(n_actors: int) -> None:
    model = make_r2d2(n_actors=n_actors).learn(1000, Recorder(last=13))
    assert model.num_timesteps == 26 and model.step_ledger.n_steps_inserted == 30
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 36
    model.replay_buffer.check_valid()


def test_stop_training_on_max_episodes() -> None:
    callback = StopTrainingOnMaxEpisodes(3)
    model = make_r2d2(n_actors=1).learn(1000, callback)
    assert callback.n_episodes >= 6 and model.num_timesteps < 100  # SB3 counts 3 for each of 2 environments


def test_eval_callback_keeps_scores_and_the_best_model(tmp_path: Path) -> None:
    folder = str(tmp_path)
    stop = StopTrainingOnRewardThreshold(1e9)
    callback = EvalCallback(monitored(1), stop, None, 3, 20, folder, folder, warn=False, verbose=0)
    make_r2d2(n_actors=2).learn(80, callback)
    scores = np.load(tmp_path / "evaluations.npz")
    assert scores["timesteps"].tolist() == [40, 80] and scores["results"].shape == (2, 3)
    best = R2D2.load(tmp_path / "best_model", device="cpu")
    assert best.num_timesteps == scores["timesteps"][scores["results"].mean(axis=1).argmax()]


def test_evaluation_does_not_disturb_training() -> None:
    plain = make_r2d2(n_actors=1).learn(80)
    evaluated = make_r2d2(n_actors=1).learn(
        80, EvalCallback(monitored(1), eval_freq=7, n_eval_episodes=2, verbose=0, warn=False)
    )
    assert plain._n_updates > 10
    assert_same(parameters(plain), parameters(evaluated))


def test_every_n_timesteps() -> None:
    recorder = Recorder()
    make_r2d2(n_actors=1).learn(60, EveryNTimesteps(20, recorder))
    assert recorder.timesteps == [20, 40, 60]


@pytest.mark.parametrize("n_actors", [0, 2])
def test_training_goes_on_from_a_checkpoint(n_actors: int, tmp_path: Path) -> None:
    env = dict(env=DummyVecEnv([Walk] * 2), n_actors=n_actors)
    make_r2d2(**env).learn(60, CheckpointCallback(25, str(tmp_path), save_replay_buffer=True))
    model = R2D2.load(tmp_path / "rl_model_50_steps", env=env["env"], device="cpu")
    model.load_replay_buffer(tmp_path / "rl_model_replay_buffer_50_steps")
    n_windows, n_updates = model.replay_buffer.n_windows, model._n_updates
    assert n_windows > 10
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 90 and model._n_updates > n_updates > 0
    model.replay_buffer.check_valid()


@pytest.mark.parametrize("n_actors", [0, 1])
def test_the_progress_bar_counts_all_steps(n_actors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, total: int) -> None:
            self.total, self.n = total, 0
            bars.append(self)

        def update(self, n: int) -> None:
            self.n += n

        def refresh(self) -> None: ...
        def close(self) -> None: ...

    monkeypatch.setattr(callbacks, "tqdm", Bar)
    make_r2d2(n_actors=n_actors).learn(40, progress_bar=True)
    assert [(bar.total, bar.n) for bar in bars] == [(40, 40)]


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_the_real_progress_bar() -> None:
    pytest.importorskip("rich")
    assert make_r2d2(n_actors=1).learn(20, progress_bar=True).num_timesteps == 20


# ---------------------------------------------------------------- logs


class Memory(KVWriter):
    """Keeps what is logged."""

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
def test_what_is_logged(n_actors: int) -> None:
    model = make_r2d2(monitored(), n_actors=n_actors)
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
    from sb3_attn.r2d2 import collection

    clock = iter([100.0, 110.0, 112.0])
    monkeypatch.setattr(collection.time, "monotonic", lambda: next(clock))
    memory = Memory()
    logger = Logger(None, [memory])
    rates = collection.Rates(n_updates=50)
    rates.policy_lags.append(3)
    for n_updates, n_bytes in ((150, 2000), (154, 2600)):
        rates.log(logger, n_updates, n_bytes)
        logger.dump()
    assert [log["time/updates_per_second"] for log in memory.logs] == [10, 2]
    assert [log["time/bytes_per_second"] for log in memory.logs] == [200, 300]


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("n_actors", [0, 2])
def test_a_loaded_model_predicts_and_learns_as_the_saved_one(n_actors: int, tmp_path: Path) -> None:
    model = make_r2d2(n_actors=n_actors, samples_per_insert=2.0, envs_per_actor=2).learn(60)
    model.save(tmp_path / "model")
    loaded = R2D2.load(tmp_path / "model", device="cpu")
    assert_same(parameters(model), parameters(loaded))
    for name in (
        *("n_actors", "samples_per_insert", "backend", "rollout_length", "actor_update_interval"),
        *("max_env_restarts", "backend_kwargs", "n_windows_inserted", "n_windows_sampled", "policy_kwargs", "num_timesteps"),
        "_n_updates",
    ):
        assert getattr(loaded, name) == getattr(model, name), name
    obs, states = np.ones((3, 3), np.float32), [None, None]
    for _ in range(3):
        results = [
            m.predict(obs, state, np.zeros(3, bool), deterministic=True)
            for m, state in zip((model, loaded), states, strict=True)
        ]
        states = [state for _, state in results]
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(states[0][0], states[1][0])
    loaded.set_env(DummyVecEnv([Walk] * 2))
    n_updates = loaded._n_updates
    assert loaded.learn(60, reset_num_timesteps=False)._n_updates > n_updates
    assert loaded.num_timesteps == 120


def test_a_model_can_be_saved_while_it_learns_and_holds_no_live_things(tmp_path: Path) -> None:
    class Save(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 13:
                self.model.save(tmp_path / "model")
            return True

    make_r2d2(n_actors=2).learn(60, Save())
    data, _, _ = load_from_zip_file(tmp_path / "model")
    assert not {"_collection", "replay_buffer", "env"} & data.keys()


@pytest.mark.parametrize("n_actors", [0, 2])
def test_a_replay_comes_back_as_it_was(n_actors: int, tmp_path: Path) -> None:
    model = make_r2d2(n_actors=n_actors).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = R2D2.load(tmp_path / "model", env=DummyVecEnv([Walk] * 2), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay")
    for name in ("td_errors", "rewards", "window_ids", "open_lengths"):
        np.testing.assert_array_equal(getattr(loaded.replay_buffer, name), getattr(model.replay_buffer, name))
    pos = loaded.replay_buffer.pos.copy()
    loaded.learn(10 * max(n_actors, 1), reset_num_timesteps=False)
    assert (loaded.replay_buffer.episode_steps[pos, np.arange(model.n_replay_envs)] == 0).all()
    loaded.replay_buffer.check_valid()


def test_the_replay_of_another_number_of_actors_is_refused(tmp_path: Path) -> None:
    make_r2d2(n_actors=3).save_replay_buffer(tmp_path / "replay")
    with pytest.raises(ValueError, match="n_envs=6, but this model needs n_envs=4"):
        make_r2d2(n_actors=2).load_replay_buffer(tmp_path / "replay")


def test_the_number_of_actors_may_change_at_load(tmp_path: Path) -> None:
    make_r2d2(n_actors=1).learn(40).save(tmp_path / "model")
    model = R2D2.load(tmp_path / "model", env=DummyVecEnv([Walk] * 3), device="cpu", n_actors=2)
    assert model.replay_buffer.n_envs == 6
    model.learn(60, reset_num_timesteps=False)
    assert model.replay_buffer.pos.min() > 0


def test_a_model_can_be_loaded_without_environments(tmp_path: Path) -> None:
    make_r2d2(n_actors=2).learn(40).save(tmp_path / "model")
    model = R2D2.load(tmp_path / "model", buffer_size=1, device="cpu")
    assert model.predict(np.zeros(3, np.float32))[0].shape == ()


def test_the_arguments_of_the_policy_may_be_repeated_at_load(tmp_path: Path) -> None:
    """The zip holds them completed by the paper's."""
    policy_kwargs = dict(core_kwargs=dict(hidden_size=6))
    R2D2("MlpPolicy", Walk, policy_kwargs=policy_kwargs, buffer_size=1000, device="cpu").save(tmp_path / "model")
    model = R2D2.load(tmp_path / "model", device="cpu", policy_kwargs=policy_kwargs)
    assert model.q_net.core.output_size == 6
    with pytest.raises(ValueError, match="do not equal the stored policy kwargs"):
        R2D2.load(tmp_path / "model", policy_kwargs=dict(core_kwargs=dict(hidden_size=7)))


def test_bad_arguments_at_load_are_named(tmp_path: Path) -> None:
    make_r2d2().save(tmp_path / "model")
    with pytest.raises(ValueError, match="samples_per_insert=-1 must be positive"):
        R2D2.load(tmp_path / "model", samples_per_insert=-1)


def test_evaluate_policy_and_predict() -> None:
    model = make_r2d2(n_actors=1).learn(40)
    returns, lengths = evaluate_policy(model, VecMonitor(DummyVecEnv([Walk] * 2)), 6, return_episode_rewards=True)
    assert len(returns) == 6 and 2 <= min(lengths) <= max(lengths) <= 8
    action, state = model.predict(np.zeros((2, 3), np.float32), deterministic=True)
    assert action.shape == (2,) and [field.shape for field in state] == [(2, 6)] * 2
    assert model.exploration_schedule(1.0) == ape_x_epsilons(2)[-1]


def test_parameters_can_be_handed_over() -> None:
    first, second = make_r2d2(n_actors=1).learn(40), make_r2d2(seed=1)
    second.set_parameters(first.get_parameters())
    assert_same(parameters(first), parameters(second))


def test_the_learning_rate_follows_its_schedule() -> None:
    model = make_r2d2(n_actors=1, learning_rate=lambda remaining: 1e-2 * remaining)
    rates = []
    train = th.optim.Adam.step
    model.policy.optimizer.step = lambda *a, **k: (
        rates.append(model.policy.optimizer.param_groups[0]["lr"])
        or train(  # type: ignore[method-assign]
            model.policy.optimizer, *a, **k
        )
    )
    model.learn(100)
    assert rates[0] == pytest.approx(1e-2 * (1 - 30 / 100)) and rates[-1] < 1e-3
    assert all(np.diff(rates) <= 0)
