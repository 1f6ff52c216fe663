"""Ending in good order on Ctrl-C, on SIGTERM, and when the terminal closes."""

import inspect
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from traceback import walk_stack
from types import FrameType
from typing import Any, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EventCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_attn.common.files import replace_on_success
from sb3_attn.recurrent_dqn.checkpoints import SaveCheckpoints

#: What asks for an end; Windows has no SIGHUP
SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class _Request(NamedTuple):
    stop: threading.Event
    what: str
    call: FrameType | None


#: The requests of all ``stop_request`` blocks that are open, the newest last
_requests: list[_Request] = []
#: The handler that each signal had before the first of these blocks
_previous: dict[int, Any] = {}


@contextmanager
def stop_request(
    what: str = "the current rollout, then checkpoints are written", call: FrameType | None = None
) -> Iterator[threading.Event]:
    """
    Yield an event that the first Ctrl-C, SIGTERM or SIGHUP sets; a second one has its usual effect. If several such blocks are
    open, the signal goes to the newest.

    Outside the main thread nothing sets the event, since only that one handles signals in Python. A signal that is ignored, as
    SIGHUP is under ``nohup``, is still ignored.

    :param what: what is finished first, for the message
    :param call: frame of a call; once it has ended, even by an error that the block does not see, signals have their usual
        effect. ``None`` means that only the end of the block counts
    :return: a context manager that yields the event
    """
    request = _Request(threading.Event(), what, call)
    if threading.current_thread() is not threading.main_thread():
        yield request.stop
        return
    for number in SIGNALS:
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, _handle):
            _previous[number] = handler or signal.SIG_DFL  # a handler that was not set from Python is None
            signal.signal(number, _handle)
    _requests.append(request)
    try:
        yield request.stop
    finally:
        _requests.remove(request)
        if not _running(inspect.currentframe()):
            _restore()


def _running(frame: FrameType | None) -> list[_Request]:
    """The open requests whose call, if they have one, is still on the stack of a frame; the newest last."""
    calls = [None, *(call for call, _ in walk_stack(frame))]
    return [request for request in _requests if request.call in calls]


def _handle(number: int, frame: FrameType | None) -> None:
    requests = _running(frame)
    _restore()
    if not requests:
        signal.signal(number, _previous[number])  # also if the handler that is there now has called this one
        signal.raise_signal(number)
        return
    requests[-1].stop.set()
    print(f"Ending after {requests[-1].what}. A second signal ends training at once.", flush=True)


def _restore() -> None:
    for number, handler in _previous.items():
        if signal.getsignal(number) is _handle:
            signal.signal(number, handler)


def save_checkpoints(callback: MaybeCallback) -> None:
    """
    Make all callbacks that write checkpoints write one now.

    :param callback: the callbacks of ``learn()``
    """
    if isinstance(callback, SaveCheckpoints):
        with suppress(EOFError, ConnectionError):  # Ctrl-C has ended the processes of a SubprocVecEnv: no episodes begin
            callback.save()
    elif isinstance(callback, CheckpointCallback):
        frequency, callback.save_freq = callback.save_freq, 1
        callback._on_step()
        callback.save_freq = frequency
    elif isinstance(callback, list | CallbackList):
        for child in callback if isinstance(callback, list) else callback.callbacks:
            save_checkpoints(child)
    elif isinstance(callback, EventCallback):
        save_checkpoints(callback.callback)


class SaveOnSignal(BaseCallback):
    """
    Lets Ctrl-C, SIGTERM or SIGHUP end training with a saved model, for SB3's own algorithms.

    Training ends after the current step of the environments. The model is saved, whole or not at all, and ``learn()`` raises
    ``KeyboardInterrupt``. A second signal ends at once. Put it last: the callbacks behind it do not see the end of training.

    Ctrl-C also ends the processes of SB3's ``SubprocVecEnv``, and training with them before anything is saved: send SIGTERM to
    this process alone, or use ``sb3_attn.envs.WatchedSubprocVecEnv``, whose processes go on.

    :param path: where to save the model, as for ``model.save``
    :param save_replay_buffer: Save the model replay buffer, as ``path`` with ``_replay_buffer.pkl`` in place of ``.zip``
    :param save_vecnormalize: Save the ``VecNormalize`` statistics, likewise with ``_vecnormalize.pkl``
    :param verbose: Verbosity level, which changes nothing here
    :raises ValueError: at the start of training, if the model does not have what is to be saved
    """

    def __init__(
        self, path: str | Path, save_replay_buffer: bool = False, save_vecnormalize: bool = False, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        self.path, self.save_replay_buffer, self.save_vecnormalize = Path(path), save_replay_buffer, save_vecnormalize
        self._handlers, self._stop = ExitStack(), threading.Event()

    def _on_training_start(self) -> None:
        if self.save_replay_buffer and not isinstance(self.model, OffPolicyAlgorithm):
            raise ValueError(f"save_replay_buffer=True, but {type(self.model).__name__} has no replay buffer; leave it out.")
        if self.save_vecnormalize and self.model.get_vec_normalize_env() is None:
            raise ValueError("save_vecnormalize=True, but the environments are not in a VecNormalize; leave it out.")
        self._handlers.close()  # the last training may have ended with an error
        frames = (frame for frame, _ in walk_stack(inspect.currentframe()))
        learn = next((frame for frame in frames if frame.f_code.co_name == "learn"), None)
        self._stop = self._handlers.enter_context(stop_request("the current step, then the model is saved", learn))

    def _on_step(self) -> bool:
        return not self._stop.is_set()

    def _on_training_end(self) -> None:
        self._handlers.close()
        if not self._stop.is_set():
            return
        with replace_on_success(self.path, suffix="zip") as temporary:
            self.model.save(temporary)
        base = self.path.with_suffix("") if self.path.suffix == ".zip" else self.path
        if self.save_replay_buffer and isinstance(self.model, OffPolicyAlgorithm):
            with replace_on_success(f"{base}_replay_buffer.pkl", suffix="") as temporary:
                self.model.save_replay_buffer(temporary)
        if self.save_vecnormalize and (env := self.model.get_vec_normalize_env()) is not None:
            with replace_on_success(f"{base}_vecnormalize.pkl", suffix="") as temporary:
                env.save(str(temporary))
        raise KeyboardInterrupt
