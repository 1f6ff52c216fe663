"""The benchmarks of R2D2 know actors' processes, kill only these, and measure what they say."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("rl_zoo3")
if not sys.platform.startswith("linux"):
    pytest.skip("it reads /proc", allow_module_level=True)

from benchmarks import runner
from benchmarks.learning.r2d2_learning import killing
from benchmarks.processes import process_tree
from benchmarks.runner import Context, Run
from benchmarks.speed.r2d2_throughput import IN_PROCESS, measure, rows


def test_a_process_tree_is_a_process_its_children_and_theirs() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 61; true"]) as shell:
        child = None
        while child is None:  # for a moment it has the command of the shell that forked it, or none
            time.sleep(0.01)
            found = process_tree(shell.pid)
            child = next((pid for pid, process in found.items() if process.command == "sleep 61"), None)
        assert found[child].parent == shell.pid and found[shell.pid].parent == os.getpid()
        assert {shell.pid, child} <= process_tree(os.getpid()).keys()
        os.kill(child, signal.SIGKILL)
    assert shell.pid not in process_tree(os.getpid())


def test_processor_time_is_that_of_the_process() -> None:
    before, start = process_tree(os.getpid())[os.getpid()].cpu_seconds, time.process_time()
    while time.process_time() - start < 0.2:
        pass
    assert process_tree(os.getpid())[os.getpid()].cpu_seconds - before == pytest.approx(time.process_time() - start, abs=0.03)


def test_only_actors_are_killed() -> None:
    def pretend(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([name, "60"], executable="/bin/sleep")

    with pretend("ray::RemoteActor.collect") as actor, pretend("ray::IDLE") as idle:
        with killing(0.05, seed=0) as killed:
            assert actor.wait() == -signal.SIGKILL
        assert killed[0] == actor.pid
        assert idle.poll() is None
        idle.kill()


def test_no_process_is_killed_without_an_interval() -> None:
    with killing(None, seed=0) as killed:
        pass
    assert killed == []


def test_steps_are_counted_over_whole_trajectories() -> None:
    result = measure(Context(seed=0), n_actors=IN_PROCESS, n_steps=3 * 8 * 80)
    assert result["steps"] == 3 * 8 * 80
    assert result["steps_per_second"] == pytest.approx(result["steps"] / result["seconds"])
    assert result["cpu_seconds_per_1000_steps"].keys() == {"learner", "actors", "ray"}


def throughput_run(variant: str, seed: int, **cost: float) -> Run:
    rates = {"steps_per_second": 1000.0, "windows_per_second": 25.0, "cpu_seconds_per_1000_steps": cost}
    return Run(variant, seed, {}, {}, rates)


def test_the_tax_is_what_ray_mode_costs_beyond_one_process() -> None:
    costs = {
        "in process, beside another": (1.25, 0.0, 0.0),
        "in process": (1.0, 0.0, 0.0),
        "Ray, 1 actor": (0.2, 1.1, 0.3),
    }
    variants = {
        variant: [
            throughput_run(variant, seed, learner=factor * learner, actors=factor * actors, ray=factor * ray)
            for seed, factor in enumerate((1, 2, 10))  # other work slows down whole rounds
        ]
        for variant, (learner, actors, ray) in costs.items()
    }
    _, in_process, on_ray = (list(row.values())[3:] for row in rows(variants))
    assert in_process == ["2.000", "0.000", "0.000", "-", "-"]
    assert on_ray == ["0.400", "2.200", "0.600", "+60 %", "+28 %"]


@pytest.mark.ray
def test_samples_per_insert_are_measured_on_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner.main(["r2d2_ratio", "--scale", "0.1", "--seeds", "1", "--out", str(tmp_path)])
    assert "| asked for | seed |" in capsys.readouterr().out
    runs = runner.read(tmp_path / "r2d2_ratio.json")
    assert len(runs) == 3
    for run in runs:
        assert run.result["sampled"] == 32 * run.result["updates"]
        assert abs(run.result["sampled"] - run.settings["samples_per_insert"] * run.result["inserted"]) < 32
