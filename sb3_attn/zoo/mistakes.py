"""Sentences in place of tracebacks, where an error is about what the user gave."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
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
    except MISTAKES as error:
        raise SystemExit(f"{command}: {printable(str(error))}") from error


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
    """End RL Zoo's programs with a sentence if models or environments cannot be made. What fails later keeps its traceback."""
    from rl_zoo3 import utils
    from rl_zoo3.exp_manager import ExperimentManager

    with contextlib.ExitStack() as stack:
        for owner, name in ((utils, "make_vec_env"), (ExperimentManager, "setup_experiment")):
            stack.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, _explained(vars(owner)[name]))
        yield


def _explained(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def call(*args: Any, **kwargs: Any) -> Any:
        with sentences(sys.argv[0]), known_arguments():
            return make(*args, **kwargs)

    return call
