"""Stable-Baselines3's callbacks, progress bar and logs, with an algorithm that has a memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common import callbacks
from stable_baselines3.common.callbacks import CheckpointCallback, ConvertCallback, EvalCallback
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from sb3_attn import RecurrentDQN
from tests.helpers.environments import counters
from tests.helpers.models import make_rdqn


def test_eval_callback_keeps_scores_and_the_best_model(tmp_path: Path) -> None:
    folder = str(tmp_path)
    callback = EvalCallback(
        counters(), eval_freq=20, n_eval_episodes=3, best_model_save_path=folder, log_path=folder, warn=False, verbose=0
    )
    make_rdqn().learn(40, callback)
    scores = np.load(tmp_path / "evaluations.npz")
    assert scores["timesteps"].tolist() == [20, 40] and scores["ep_lengths"].tolist() == [[5] * 3] * 2
    best = RecurrentDQN.load(tmp_path / "best_model", device="cpu")
    assert callback.best_mean_reward == scores["results"].mean(axis=1).max()
    assert best.num_timesteps == scores["timesteps"][scores["results"].mean(axis=1).argmax()]


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    make_rdqn(VecNormalize(counters())).learn(
        40, CheckpointCallback(20, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    )
    env = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_40_steps.pkl"), counters())
    model = RecurrentDQN.load(tmp_path / "rl_model_40_steps", env=env, device="cpu")
    model.load_replay_buffer(tmp_path / "rl_model_replay_buffer_40_steps")
    assert model.replay_buffer.size() == 39  # callbacks come before the step is stored
    n_updates = model._n_updates
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 80 and model._n_updates > n_updates > 0
    model.replay_buffer.check_valid()


@pytest.mark.parametrize("as_list", [True, False])
def test_a_function_may_be_a_callback_as_the_first_of_a_list_may(as_list: bool) -> None:
    calls: list[int] = []
    callback: Any = ConvertCallback(lambda *_: calls.append(1) or True) if as_list else lambda *_: calls.append(1) or True
    make_rdqn().learn(20, [callback] if as_list else callback)
    assert len(calls) == 20


def test_the_progress_bar_counts_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
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
    make_rdqn(counters(2)).learn(24, progress_bar=True)
    assert [(bar.total, bar.n) for bar in bars] == [(24, 24)]


def test_tensorboard_keys(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_rdqn(VecMonitor(counters()), tensorboard_log=str(tmp_path)).learn(80)
    events = EventAccumulator(str(tmp_path / "RecurrentDQN_1"))
    events.Reload()
    expected = {"train/loss", "train/td_error", "train/learning_rate", "rollout/exploration_rate", "rollout/ep_rew_mean"}
    assert expected <= set(events.Tags()["scalars"])
