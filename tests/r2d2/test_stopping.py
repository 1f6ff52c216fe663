"""Ctrl-C, SIGTERM and SIGHUP."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EveryNTimesteps,
)

from sb3_attn import R2D2
from sb3_attn.recurrent_dqn.stopping import SIGNALS, stop_request
from tests.helpers.models import assert_same, make_r2d2, parameters


class Terminated(Exception):
    """Raised by SIGTERM in these tests."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[Any]]:
    """Handlers that do not end the tests; they must be restored at the end."""

    def terminate(*args: Any) -> None:
        raise Terminated

    previous = [signal.signal(number, terminate) for number in SIGNALS]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    after = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in zip(SIGNALS, previous, strict=True):
        signal.signal(number, handler)
    assert after == before


class Signal(BaseCallback):
    """Sends signals to this process at step n, one after the other."""

    def __init__(self, at: int, *numbers: signal.Signals) -> None:
        super().__init__()
        self.at, self.numbers = at, numbers

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)
        return True


@pytest.mark.parametrize("number", SIGNALS, ids=str)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("n_actors", [0, 2])
def test_the_first_signal_ends_with_a_checkpoint(n_actors: int, nested: bool, number: signal.Signals, tmp_path: Path) -> None:
    """At the thirteenth of 5 steps of two environments, so the trajectory ends at 30."""
    checkpoint = CheckpointCallback(10**6, str(tmp_path), save_replay_buffer=True)
    callbacks: list[BaseCallback] = [Signal(13, number), CallbackList([checkpoint]) if nested else checkpoint]
    model = make_r2d2(n_actors=n_actors)
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, callbacks)
    assert model.num_timesteps == model.step_ledger.n_steps_inserted == 30
    assert checkpoint.save_freq == 10**6
    assert {path.name for path in tmp_path.iterdir()} == {"rl_model_30_steps.zip", "rl_model_replay_buffer_30_steps.pkl"}
    loaded = R2D2.load(tmp_path / "rl_model_30_steps", device="cpu")
    assert_same(parameters(model), parameters(loaded))


def test_a_checkpoint_inside_another_callback_is_written_on_a_signal(tmp_path: Path) -> None:
    def interrupt(local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if local_variables["self"].num_timesteps == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return True

    nested = EveryNTimesteps(10**6, CheckpointCallback(10**6, str(tmp_path)))
    with pytest.raises(KeyboardInterrupt):
        make_r2d2().learn(1000, [ConvertCallback(interrupt), nested])
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_checkpoint_callback_nothing_is_written() -> None:
    model = make_r2d2()
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, Signal(3, signal.SIGINT))
    assert model.num_timesteps == 10


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=str)
@pytest.mark.parametrize("first", SIGNALS, ids=str)
def test_the_second_signal_ends_at_once(
    first: signal.Signals, number: signal.Signals, error: type[BaseException], tmp_path: Path
) -> None:
    model = make_r2d2()
    with pytest.raises(error):
        model.learn(1000, [Signal(3, first, number), CheckpointCallback(10**6, str(tmp_path))])
    assert model.num_timesteps == 6  # in the middle of a trajectory
    assert not list(tmp_path.iterdir())


def test_a_message_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_r2d2().learn(1000, Signal(3, signal.SIGINT))
    assert capsys.readouterr().out.count("A second signal ends training at once") == 1


@pytest.mark.parametrize("fails", [True, False])
def test_the_handlers_come_back(fails: bool, handlers: list[Any]) -> None:
    """The fixture checks them afterwards."""

    class Fails(BaseCallback):
        def _on_step(self) -> bool:
            assert [signal.getsignal(number) for number in SIGNALS] != handlers
            if fails:
                raise ZeroDivisionError
            return True

    model = make_r2d2()
    if fails:
        with pytest.raises(ZeroDivisionError):
            model.learn(20, Fails())
    else:
        model.learn(20, Fails())


def test_a_stopped_model_can_continue() -> None:
    model = make_r2d2(n_actors=1)
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, Signal(13, signal.SIGINT))
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 50
    model.replay_buffer.check_valid()


def test_a_request_is_an_event() -> None:
    with stop_request() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()


SCRIPT = """
import os, signal, sys
from stable_baselines3.common.callbacks import CheckpointCallback, ConvertCallback
from tests.helpers.models import make_r2d2
numbers = [int(number) for number in sys.argv[2:]]
n_steps = 0
def callback(*args):
    global n_steps
    n_steps += 1
    if n_steps == 13:
        for number in numbers:
            os.kill(os.getpid(), number)
    return True
make_r2d2(n_actors=1).learn(10**6, [ConvertCallback(callback), CheckpointCallback(10**6, sys.argv[1])])
"""


@pytest.mark.parametrize(
    ("numbers", "status", "saved"),
    [
        ([signal.SIGTERM], -signal.SIGINT, ["rl_model_30_steps.zip"]),  # Python ends so after a KeyboardInterrupt
        ([signal.SIGINT, signal.SIGTERM], -signal.SIGTERM, []),
    ],
    ids=["once", "twice"],
)
def test_a_process_ends(numbers: list[int], status: int, saved: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), *map(str, map(int, numbers))]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == saved
    assert ("KeyboardInterrupt" in done.stderr) == bool(saved)
