"""Signals to processes that train SB3's own algorithms."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attn import SaveOnSignal
from sb3_attn.recurrent_dqn.stopping import SIGNALS
from tests.helpers.environments import counters

SCRIPT = """
import sys
import stable_baselines3
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.vec_env import VecNormalize
from sb3_attn import SaveOnSignal
from tests.helpers.environments import counters
name, path = sys.argv[1:]
kwargs = dict(buffer_size=200, learning_starts=10) if name == "DQN" else dict(n_steps=16, batch_size=16)
model = getattr(stable_baselines3, name)("MlpPolicy", VecNormalize(counters(2)), device="cpu", **kwargs)
ready = ConvertCallback(lambda local, _: local["self"].num_timesteps != 100 or print("ready", flush=True) is None)
model.learn(10**9, [ready, SaveOnSignal(path, save_replay_buffer=name == "DQN", save_vecnormalize=True)])
"""


@pytest.mark.parametrize("algorithm", [DQN, PPO])
def test_a_process_saves_before_it_ends(algorithm: type[BaseAlgorithm], tmp_path: Path) -> None:
    """With the one signal that is not ignored where tests run in the background."""
    command = [sys.executable, "-c", SCRIPT, algorithm.__name__, str(tmp_path / "model")]
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": root}
    with subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in errors  # as Python ends after one
    assert output == "Ending after the current step, then the model is saved. A second signal ends training at once.\n"
    replay = {"model_replay_buffer.pkl"} if algorithm is DQN else set()
    assert {path.name for path in tmp_path.iterdir()} == {"model.zip", "model_vecnormalize.pkl"} | replay
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert loaded.num_timesteps >= 100
    if isinstance(loaded, DQN):
        loaded.load_replay_buffer(tmp_path / "model_replay_buffer.pkl")
        assert loaded.replay_buffer is not None and loaded.replay_buffer.size() > 0
    assert VecNormalize.load(str(tmp_path / "model_vecnormalize.pkl"), counters(2)).ret_rms.count >= 100


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A test begins with Python's handlers, also where it runs in the background, and has to leave them."""
    handlers = [signal.default_int_handler, *[signal.SIG_DFL] * (len(SIGNALS) - 1)]
    previous = [signal.signal(number, handler) for number, handler in zip(SIGNALS, handlers, strict=True)]
    yield
    after = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in zip(SIGNALS, previous, strict=True):
        signal.signal(number, handler)
    assert after == handlers


def make(algorithm: type[BaseAlgorithm]) -> BaseAlgorithm:
    kwargs: dict[str, Any] = dict(n_steps=8, batch_size=8) if algorithm is PPO else dict(buffer_size=200, learning_starts=10)
    return algorithm("MlpPolicy", counters(2), device="cpu", **kwargs)


@pytest.mark.parametrize("name", ["model", "model.zip"])
@pytest.mark.parametrize("number", SIGNALS, ids=str)
@pytest.mark.parametrize("algorithm", [DQN, PPO])
def test_a_signal_ends_after_the_step(
    algorithm: type[BaseAlgorithm], number: signal.Signals, name: str, tmp_path: Path
) -> None:
    model = make(algorithm)
    send = ConvertCallback(lambda *_: model.num_timesteps != 30 or signal.raise_signal(number) is None)
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, [send, SaveOnSignal(tmp_path / name)])
    assert model.num_timesteps == 30 and [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert algorithm.load(tmp_path / "model", device="cpu").num_timesteps == 30


def test_without_a_signal_nothing_is_saved(tmp_path: Path) -> None:
    callback = SaveOnSignal(tmp_path / "model")
    assert make(PPO).learn(32, callback).learn(32, callback).num_timesteps == 32
    assert not list(tmp_path.iterdir())


def test_after_an_error_a_second_signal_still_ends_at_once(tmp_path: Path) -> None:
    callback, model, before = SaveOnSignal(tmp_path / "model"), make(PPO), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError):
        model.learn(32, [callback, ConvertCallback(lambda *_: 1 / 0)])

    def send(*_: Any) -> bool:
        if model.num_timesteps == 4:
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == before
        return True

    with pytest.raises(KeyboardInterrupt):
        model.learn(32, [callback, ConvertCallback(send)])


def interrupt(*_: Any) -> bool:
    signal.raise_signal(signal.SIGINT)
    return True


@pytest.mark.parametrize(
    "again", [lambda _: interrupt(), lambda model: model.learn(32, interrupt)], ids=["outside", "learning"]
)
def test_after_an_error_a_signal_has_its_usual_effect(again: Callable[[Any], Any], tmp_path: Path) -> None:
    """Outside ``learn()``, and in another one without the callback; the fixture checks that the handlers are back."""
    callback, model = SaveOnSignal(tmp_path / "model"), make(PPO)
    with pytest.raises(ZeroDivisionError):
        model.learn(32, [callback, ConvertCallback(lambda *_: 1 / 0)])
    with pytest.raises(KeyboardInterrupt):
        again(model)
    assert model.num_timesteps == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("n_signals", [0, 1, 2])
def test_of_two_callbacks_the_last_saves(n_signals: int, tmp_path: Path) -> None:
    """And both give the handlers back, which the fixture checks."""
    model = make(PPO)
    send = ConvertCallback(lambda *_: model.num_timesteps != 6 or all(interrupt() for _ in range(n_signals)))
    with pytest.raises(KeyboardInterrupt) if n_signals else nullcontext():
        model.learn(16, [send, SaveOnSignal(tmp_path / "first"), SaveOnSignal(tmp_path / "last")])
    assert [path.name for path in tmp_path.iterdir()] == (["last.zip"] if n_signals == 1 else [])


@pytest.mark.parametrize("what", ["replay_buffer", "vecnormalize"])
def test_what_is_not_there_is_not_saved(what: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"save_{what}=True, but .*; leave it out"):
        make(PPO).learn(32, SaveOnSignal(tmp_path / "model", **{f"save_{what}": True}))
