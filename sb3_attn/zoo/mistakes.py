"""Sentences in place of tracebacks, where an error is about what the user gave."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import walk_tb
from typing import Any

import gymnasium as gym

from sb3_attn.recurrent_dqn.safe_loading import RefusedFileError
from sb3_attn.zoo.trust import printable

#: What is raised for arguments that do not fit
MISTAKES = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, gym.error.Error)


@contextlib.contextmanager
def sentences(command: str) -> Iterator[None]:
    """
    End a command with the sentence of an error that is meant for the user, without a traceback.

    :param command: as the user calls it, ``"sb3-attn show"``
    :raises SystemExit: with the sentence
    """
    try:
        yield
    except RefusedFileError:
        raise  # the command line has a sentence for it
    except (*MISTAKES, AssertionError) as error:
        if isinstance(error, AssertionError) and _is_fault(error):
            raise
        raise SystemExit(f"{command}: {printable(str(error))}") from error


def _is_fault(error: AssertionError) -> bool:
    """Whether an assertion is a bug. SB3's assertions with a message are about arguments; ours are about our own code."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    # A file of hyperparameters in Python runs without a __name__
    return not str(error) or frame.f_globals.get("__name__", "").startswith("sb3_attn.")


@contextlib.contextmanager
def known_arguments() -> Iterator[None]:
    """
    Say what to do about an argument that a model or an environment does not have. Any other ``TypeError`` is a fault of a
    program, and stays one.

    :raises ValueError: in place of the ``TypeError``
    """
    try:
        yield
    except TypeError as error:
        if "got an unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"{error}; correct its name, or leave it out.") from error


@contextlib.contextmanager
def living_environments() -> Iterator[None]:
    """
    Say where to look if an environment cannot be made in a process of its own, which prints the error itself.

    :raises ValueError: in place of the connection's error
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise ValueError("the process of an environment has ended; fix the error that it printed above.") from error


@contextlib.contextmanager
def named_files(options: str) -> Iterator[None]:
    """
    End a program of RL Zoo that does not train with a sentence if a file is missing: it is one that the user named.

    :param options: what names files
    :raises SystemExit: with the sentence
    """
    try:
        yield
    except FileNotFoundError as error:
        raise SystemExit(f"{sys.argv[0]}: there is no {error.filename}; give another {options}.") from error


@contextlib.contextmanager
def explained_making() -> Iterator[None]:
    """
    End RL Zoo's programs with a sentence if models or environments cannot be made, also in a search for hyperparameters. What
    fails later keeps its traceback.
    """
    from rl_zoo3 import utils
    from rl_zoo3.exp_manager import ExperimentManager

    with contextlib.ExitStack() as stack:
        for owner, name, explained in (
            (utils, "make_vec_env", _explained),
            (ExperimentManager, "setup_experiment", _explained_setup),
            (ExperimentManager, "hyperparameters_optimization", _explained_search),
        ):
            stack.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, explained(vars(owner)[name]))
        yield


def _explained(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def call(*args: Any, **kwargs: Any) -> Any:
        with sentences(sys.argv[0]), known_arguments(), living_environments():
            return make(*args, **kwargs)

    return call


def _explained_setup(setup: Callable[..., Any]) -> Callable[..., Any]:
    """Also remove the folder of a run whose model cannot be made, and its monitor files, which have no episodes yet."""

    @functools.wraps(setup)
    def call(manager: Any) -> Any:
        try:
            return _explained(setup)(manager)
        except (SystemExit, RefusedFileError):
            with contextlib.suppress(OSError):  # a folder that has anything else stays
                os.rmdir(manager.params_path)
                for path in Path(manager.save_path).glob("*.monitor.csv"):
                    path.unlink()
                os.rmdir(manager.save_path)
            raise

    return call


def _explained_search(search: Callable[..., Any]) -> Callable[..., Any]:
    """End a search at the first trial whose model cannot be made. With threads, Optuna drops what its last trials raise."""
    from optuna.trial import TrialState

    @functools.wraps(search)
    def call(manager: Any) -> None:
        objective, mistakes = _explained(manager.objective), []

        def explained_objective(trial: Any) -> float:
            try:
                return objective(trial)
            except SystemExit as error:
                mistakes.append(error)
                trial.study.tell(trial, state=TrialState.FAIL)  # or it would stay "running" in the storage
                raise

        manager.objective = explained_objective
        try:
            search(manager)
        finally:
            if mistakes:
                raise mistakes[0]

    return call
