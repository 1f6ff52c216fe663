"""Runs of a benchmark, a process each, and the file that keeps them."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

#: Task, network and seed
Key = tuple[str, str, int]


def read(path: Path) -> list[dict[str, Any]]:
    """Finished runs of a results file; none if there is no file yet."""
    return json.loads(path.read_text()) if path.exists() else []


def write(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write a results file, sorted, so that an interruption leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(runs, key=key)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(order, indent=1) + "\n")
    temporary.replace(path)


def key(run: dict[str, Any]) -> Key:
    """What tells a run from the others of its benchmark."""
    return run["task"], run.get("network", ""), run["seed"]


def finish(
    run: Callable[..., dict[str, Any]],
    asked: Mapping[Key, tuple[Any, ...]],
    runs: Sequence[dict[str, Any]],
    out: Path,
    jobs: int,
) -> list[dict[str, Any]]:
    """
    Do the runs that are missing, and write the file after each.

    :param run: What to do, in a process of its own.
    :param asked: The runs that are wanted, and for each the arguments of ``run``.
    :param runs: The runs that there are.
    :param out: The results file.
    :param jobs: Number of runs at a time.
    :return: All runs.
    """
    done, runs = {key(one) for one in runs}, list(runs)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, *arguments) for wanted, arguments in asked.items() if wanted not in done]
        try:
            for future in as_completed(futures):
                runs.append(future.result())
                write(out, runs)
                print({name: value for name, value in runs[-1].items() if not isinstance(value, dict | list)}, flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return runs
