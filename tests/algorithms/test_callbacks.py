"""Stable-Baselines3's callbacks, progress bar and logs."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common import callbacks
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn import R2D2, RecurrentDQN
from tests.helpers.callbacks import StepRecorder, StopAt
from tests.helpers.environments import POLICIES, Walk, counters, walks
from tests.helpers.models import Make, assert_same, make_r2d2, make_rdqn, parameters


def monitored(n_envs: int = 2, env_class: type[Walk] = Walk) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(env_class())] * n_envs)


# ---------------------------------------------------------------- what callbacks see


def test_a_callback_is_called_once_for_each_step_of_all_environments(make: Make) -> None:
    recorder = StepRecorder()
    model = make(walks(2)).learn(80, recorder)
    assert recorder.n_calls == 40 and recorder.timesteps == list(range(2, 81, 2)) and model.num_timesteps == 80
    calls_per_rollout = model.rollout_length if isinstance(model, R2D2) else model.train_freq.frequency
    assert recorder.n_rollout_starts == recorder.n_rollout_ends == 40 // calls_per_rollout


@pytest.mark.parametrize("kind", ["vector", "dict"])
@pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
def test_callbacks_read_what_the_environments_return(make: Make, kind: str) -> None:
    """new_obs, rewards, dones and infos as a VecEnv returns them; compared with what the replay has."""
    recorder = StepRecorder()
    model = make(walks(2, kind=kind), POLICIES[kind]).learn(80, recorder)
    rewards, dones = (np.array([seen[name] for seen in recorder.seen]) for name in ("rewards", "dones"))
    np.testing.assert_array_equal(rewards, model.replay_buffer.rewards[:40])
    np.testing.assert_array_equal(dones, model.replay_buffer.dones[:40])
    assert dones.any()
    for t, seen in enumerate(recorder.seen[:-1]):
        new_obs = seen["new_obs"] if kind == "dict" else {"observation": seen["new_obs"]}
        for key, ring in model.replay_buffer._observations.rings.items():
            np.testing.assert_array_equal(np.reshape(new_obs[key], ring[t + 1].shape), ring[t + 1])
        assert len(seen["infos"]) == 2
        assert {"self", "env", "infos", "rewards", "dones", "new_obs", "callback"} <= seen.keys()


def test_callbacks_read_dicts_whatever_their_keys_are(make: Make) -> None:
    """Also if the only key is the one under which the replay stores a Box."""

    class Goal(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = gym.spaces.Dict(observation=self.observation_space)

        def _observe(self) -> Any:
            return {"observation": super()._observe()}

    recorder = StepRecorder()
    make(DummyVecEnv([Goal] * 2), "MultiInputPolicy").learn(20, recorder)
    assert all(seen["new_obs"].keys() == {"observation"} for seen in recorder.seen)


def test_episodes_reach_the_statistics(make: Make) -> None:
    recorder = StepRecorder()
    model = make(monitored()).learn(120, recorder)
    episodes = [info["episode"] for seen in recorder.seen for info in seen["infos"] if "episode" in info]
    assert len(episodes) == sum(seen["dones"].sum() for seen in recorder.seen) == model._episode_num > 10
    assert list(model.ep_info_buffer) == episodes


def test_success_reaches_the_statistics(make: Make) -> None:
    class Lucky(Walk):
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return *rest, info | {"is_success": self.length % 2 == 0}

    model = make(monitored(env_class=Lucky)).learn(120)
    assert len(model.ep_success_buffer) == model._episode_num > 10 and set(model.ep_success_buffer) == {True, False}


@pytest.mark.parametrize("as_list", [True, False])
def test_a_function_may_be_a_callback_as_the_first_of_a_list_may(make: Make, as_list: bool) -> None:
    calls: list[int] = []
    callback: Any = ConvertCallback(lambda *_: calls.append(1) or True) if as_list else lambda *_: calls.append(1) or True
    make(walks(2)).learn(40, [callback] if as_list else callback)
    assert len(calls) == 20


def test_every_n_timesteps(make: Make) -> None:
    recorder = StepRecorder()
    make(walks(2)).learn(80, EveryNTimesteps(20, recorder))
    assert recorder.timesteps == [20, 40, 60, 80]


# ---------------------------------------------------------------- callbacks that end learning


def test_learning_goes_on_after_a_callback_has_ended_it(make: Make) -> None:
    """In the middle of a rollout."""
    model = make(walks(2)).learn(1000, StopAt(13))
    assert model.num_timesteps == 26
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 66
    model.replay_buffer.check_valid()


def test_stop_training_on_max_episodes(make: Make) -> None:
    callback = StopTrainingOnMaxEpisodes(3)
    model = make(walks(2)).learn(1000, callback)
    assert callback.n_episodes >= 6 and model.num_timesteps < 100  # SB3 counts 3 for each of 2 environments


# ---------------------------------------------------------------- evaluation and checkpoints


def test_eval_callback_keeps_scores_and_the_best_model(make: Make, tmp_path: Path) -> None:
    folder = str(tmp_path)
    stop = StopTrainingOnRewardThreshold(1e9)
    callback = EvalCallback(counters(), stop, None, 3, 20, folder, folder, warn=False, verbose=0)
    model = make(counters(2)).learn(80, callback)
    scores = np.load(tmp_path / "evaluations.npz")
    assert scores["timesteps"].tolist() == [40, 80] and scores["ep_lengths"].tolist() == [[5] * 3] * 2
    best = type(model).load(tmp_path / "best_model", device="cpu")
    assert callback.best_mean_reward == scores["results"].mean(axis=1).max()
    assert best.num_timesteps == scores["timesteps"][scores["results"].mean(axis=1).argmax()]


def test_evaluation_does_not_disturb_training(make: Make) -> None:
    plain = make(walks(2)).learn(120)
    evaluated = make(walks(2)).learn(120, EvalCallback(walks(1), eval_freq=7, n_eval_episodes=3, verbose=0, warn=False))
    assert plain._n_updates > 5
    assert_same(parameters(plain), parameters(evaluated))


def test_training_goes_on_from_a_checkpoint(make: Make, tmp_path: Path) -> None:
    env = walks(2)
    saved = make(env).learn(80, CheckpointCallback(25, str(tmp_path), save_replay_buffer=True))
    model = type(saved).load(tmp_path / "rl_model_50_steps", env=env, device="cpu")
    model.load_replay_buffer(tmp_path / "rl_model_replay_buffer_50_steps")
    if not isinstance(model, R2D2):
        assert model.replay_buffer.size() == 24  # callbacks come before the step is stored
    n_updates = model._n_updates
    assert model.replay_buffer.n_windows > 10
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 90 and model._n_updates > n_updates > 0
    model.replay_buffer.check_valid()


@pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
def test_training_goes_on_from_a_checkpoint_with_the_statistics_of_vec_normalize(make: Make, tmp_path: Path) -> None:
    checkpoints = CheckpointCallback(20, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    saved = make(VecNormalize(counters(2))).learn(80, checkpoints)
    env = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_80_steps.pkl"), counters(2))
    np.testing.assert_array_equal(env.obs_rms.mean, saved.get_vec_normalize_env().obs_rms.mean)
    model = type(saved).load(tmp_path / "rl_model_80_steps", env=env, device="cpu")
    model.load_replay_buffer(tmp_path / "rl_model_replay_buffer_80_steps")
    n_updates = model._n_updates
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 120 and model._n_updates > n_updates > 0
    model.replay_buffer.check_valid()


# ---------------------------------------------------------------- progress and logs


def test_the_progress_bar_counts_all_steps(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
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
    make(walks(2)).learn(40, progress_bar=True)
    assert [(bar.total, bar.n) for bar in bars] == [(40, 40)]


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_the_progress_bar_of_tqdm_is_taken(make: Make) -> None:
    pytest.importorskip("rich")
    assert make(walks(2)).learn(40, progress_bar=True).num_timesteps == 40


def test_logs_can_be_written_before_the_first_step(make: Make) -> None:
    class Log(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.model.dump_logs()  # type: ignore[attr-defined]

        def _on_step(self) -> bool:
            return True

    make(walks(2)).learn(20, Log())


def test_the_keys_of_tensorboard(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make(monitored(), tensorboard_log=str(tmp_path)).learn(120)
    events = EventAccumulator(str(tmp_path / f"{type(model).__name__}_1"))
    events.Reload()
    expected = {"train/loss", "train/td_error", "train/learning_rate", "rollout/ep_rew_mean"}
    expected |= {"rollout/exploration_rate"} if type(model) is RecurrentDQN else {"replay/fill", "actors/policy_lag"}
    assert expected <= set(events.Tags()["scalars"])
