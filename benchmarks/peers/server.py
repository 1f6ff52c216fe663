"""
A package to compare with, in an interpreter of its own, whose environment has neither Stable-Baselines3 nor sb3_attn.

:func:`start` is our side. It runs one of the modules beside this file there, which calls :func:`serve` and does what is to be
measured on command:

    path/to/peers/python -m benchmarks.peers.tianshou [--full-windows]  # reads "train 100", writes seconds, line by line
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout

#: What is recorded about the environment of the peers
PACKAGES = ("tianshou", "torchrl", "cpprb", "torch")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "RL_LOGGING_LEVEL": "WARNING"}


@contextmanager
def start(python: str, name: str, *arguments: str) -> Iterator[Callable[[str, int], float]]:
    """
    Run a module of this folder in another interpreter, where it waits while others are measured.

    :param python: the interpreter
    :param name: the module
    :return: ``ask(function, number)``, which calls one of its functions there
    :raises RuntimeError: if it ends before it answers
    """
    command = [python, "-m", f"benchmarks.peers.{name}", *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def answer() -> float:
            if line := answers.readline():
                return float(line)
            raise RuntimeError(f"{name} ended before it answered, with the message above; check --peers={python}.")

        def ask(function: str, number: int) -> float:
            print(function, number, file=requests, flush=True)
            return answer()

        answer()  # it is ready
        yield ask


def serve(make: Callable[[], Mapping[str, Callable[[int], float]]]) -> None:
    """
    Call the function that each line of the standard input names, until it ends.

    :param make: returns the functions by their names
    """
    answers = sys.stdout
    with redirect_stdout(sys.stderr):  # packages print, too
        functions = make()
        print(0, file=answers, flush=True)
        for line in sys.stdin:
            name, number = line.split()
            print(functions[name](int(number)), file=answers, flush=True)


def versions(python: str) -> dict[str, str]:
    """The packages of an interpreter's environment that are compared, and their PyTorch."""
    code = f"from importlib.metadata import version; import json; print(json.dumps({{n: version(n) for n in {PACKAGES}}}))"
    found = json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)
    return {"torch of the peers" if name == "torch" else name: number for name, number in found.items()}
