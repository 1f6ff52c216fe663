"""Ending in good order on Ctrl-C, on SIGTERM, and when the terminal closes."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, EventCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_attn.recurrent_dqn.checkpoints import SaveCheckpoints

#: What asks for an end; Windows has no SIGHUP
SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@contextmanager
def stop_request() -> Iterator[threading.Event]:
    """
    Give an event that the first Ctrl-C, SIGTERM or SIGHUP sets; a second one has its usual effect.

    Nothing sets it outside the main thread, where Python has no signal handlers. A signal that is ignored, as SIGHUP is under
    ``nohup``, still is.

    :return: a context manager, in whose block the signals are handled
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # a handler that was not set from Python is None

    def request(number: int, frame: object) -> None:
        stop.set()
        restore()
        print("Ending after the current rollout, then checkpoints are written. Once more ends at once.", flush=True)

    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()


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
