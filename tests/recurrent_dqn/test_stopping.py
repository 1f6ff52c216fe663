"""RecurrentDQN on Ctrl-C, SIGTERM and SIGHUP; what it shares with R2D2 is tested there."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import CheckpointCallback, ConvertCallback

from sb3_attn import RecurrentDQN
from sb3_attn.recurrent_dqn.stopping import SIGNALS, stop_request
from tests.helpers.environments import counters
from tests.helpers.models import assert_same, make_rdqn, parameters


def at_step(n: int, number: signal.Signals, times: int = 1) -> ConvertCallback:
    def send(local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if local_variables["self"].num_timesteps == n:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return True

    return ConvertCallback(send)


@pytest.mark.parametrize("number", SIGNALS, ids=str)
def test_a_signal_ends_the_rollout_and_then_writes_a_checkpoint_of_one_moment(number: signal.Signals, tmp_path: Path) -> None:
    """At the fifth of 4 steps of two environments, so the rollout ends at 16: with 16 steps in the replay, not two fewer."""
    model = make_rdqn(counters(2), train_freq=4)
    checkpoint = CheckpointCallback(10**6, str(tmp_path), save_replay_buffer=True)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, [at_step(10, number), checkpoint])
    assert signal.getsignal(number) is before
    assert model.num_timesteps == 16 and checkpoint.save_freq == 10**6
    loaded = RecurrentDQN.load(tmp_path / "rl_model_16_steps", env=counters(2), device="cpu")
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_16_steps")
    assert_same(parameters(model), parameters(loaded))
    assert list(loaded.replay_buffer.pos) == [8, 8]
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps >= 36
    model.replay_buffer.check_valid()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    model = make_rdqn(counters(2), train_freq=4)
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, [at_step(10, signal.SIGINT, times=2), CheckpointCallback(10**6, str(tmp_path))])
    assert model.num_timesteps == 10 and not list(tmp_path.iterdir())


def test_a_signal_that_is_ignored_still_is() -> None:
    """Under nohup the terminal may close."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.is_set() and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)
