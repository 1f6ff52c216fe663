"""A short training run of the command line, with environments in their own processes, which the tests share."""

import pytest
from filelock import FileLock

pytest.importorskip("rl_zoo3")

from tests.helpers.processes import ENV_ID, TrainingRun, run_module


@pytest.fixture(scope="session")
def training_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> TrainingRun:
    """Only to read: pytest-xdist's workers share it. The first that needs it trains, and others wait."""
    base = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    root = base / "zoo"
    with FileLock(base / "zoo.lock"):
        if not root.exists():
            root.mkdir()
            run_module(
                *("train", "--algo", "rdqn", "--env", ENV_ID, "-n", "1000", "--seed", "3", "--device", "cpu"),
                *("--env-kwargs", "length:5", "-params", "learning_starts:700", "n_envs:2", "--vec-env", "subproc"),
                *("--eval-freq", "500", "--save-freq", "600", "--save-replay-buffer", "--num-threads", "1"),
                cwd=root,
            )
    return TrainingRun(root, root / "logs" / "rdqn" / f"{ENV_ID}_1")
