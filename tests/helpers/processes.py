"""Running modules in new processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ENV_ID = "MemoryChain-v0"


class TrainingRun(NamedTuple):
    """A finished training run: ``folder`` lies in ``root / "logs"``."""

    root: Path
    folder: Path


def run_python(*arguments: str, cwd: Path) -> str:
    """Run Python in a new process; returns its output, fails with it if the process fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "MPLBACKEND": "agg"}
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def run_module(*arguments: str, cwd: Path, module: str = "sb3_attn.zoo") -> str:
    """Run a Python module in a new process; returns its output, fails with it if the process fails."""
    return run_python("-m", module, *arguments, cwd=cwd)
