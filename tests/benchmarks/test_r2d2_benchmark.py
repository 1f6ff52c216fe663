"""The bench of R2D2 knows actors' processes, kills only these, measures what it says, and skips what it has done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytest.importorskip("rl_zoo3")
if not sys.platform.startswith("linux"):
    pytest.skip("it reads /proc", allow_module_level=True)

from benchmarks import r2d2
from benchmarks.processes import family
from benchmarks.r2d2_learning import killing
from benchmarks.r2d2_speed import IN_PROCESS, throughput, throughput_report


def test_a_family_is_a_process_its_children_and_theirs() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 61; true"]) as shell:
        while len(found := family(shell.pid)) < 2:
            time.sleep(0.01)
        (child,) = (pid for pid in found if pid != shell.pid)
        assert found[child].parent == shell.pid and found[shell.pid].parent == os.getpid()
        assert {shell.pid, child} <= family(os.getpid()).keys()
        assert "sleep 61" in found[child].command
        os.kill(child, signal.SIGKILL)
    assert shell.pid not in family(os.getpid())


def test_processor_time_is_that_of_the_process() -> None:
    before, start = family(os.getpid())[os.getpid()].cpu_seconds, time.process_time()
    while time.process_time() - start < 0.2:
        pass
    assert family(os.getpid())[os.getpid()].cpu_seconds - before == pytest.approx(time.process_time() - start, abs=0.03)


def test_only_actors_are_killed() -> None:
    def pretend(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([name, "60"], executable="/bin/sleep")

    with pretend("ray::RemoteActor.collect") as actor, pretend("ray::IDLE") as idle:
        with killing(0.05, seed=0) as killed:
            assert actor.wait() == -signal.SIGKILL
        assert killed[0] == actor.pid
        assert idle.poll() is None
        idle.kill()


def test_nobody_is_killed_without_an_interval() -> None:
    with killing(None, seed=0) as killed:
        pass
    assert killed == []


def test_steps_are_counted_over_whole_trajectories() -> None:
    result = throughput(0, n_actors=IN_PROCESS, n_steps=3 * 8 * 80)
    assert result["steps"] == 3 * 8 * 80
    assert result["steps_per_second"] == pytest.approx(result["steps"] / result["seconds"])
    assert result["cpu_seconds_per_1000_steps"].keys() == {"learner", "actors", "ray"}


def throughput_run(variant: str, seed: int, **cost: float) -> dict[str, Any]:
    rates = {"steps_per_second": 1000.0, "windows_per_second": 25.0, "cpu_seconds_per_1000_steps": cost}
    return {"network": variant, "seed": seed, **rates}


def test_the_tax_is_what_ray_mode_costs_beyond_one_process() -> None:
    runs = [
        throughput_run(variant, seed, learner=factor * learner, actors=factor * actors, ray=factor * ray)
        for seed, factor in enumerate((1, 2, 10))  # other work slows down whole rounds
        for variant, learner, actors, ray in (
            ("in process, beside another", 1.25, 0.0, 0.0),
            ("in process", 1.0, 0.0, 0.0),
            ("Ray, 1 actor", 0.2, 1.1, 0.3),
        )
    ]
    _, in_process, on_ray = throughput_report(runs).splitlines()[2:]
    assert in_process.endswith("| 2.000 | 0.000 | 0.000 | - | - |")
    assert on_ray.endswith("| 0.400 | 2.200 | 0.600 | +60 % | +28 % |")


@pytest.mark.parametrize("name", r2d2.BENCHMARKS)
def test_settings_are_the_same_after_they_were_in_the_file(name: str) -> None:
    settings = r2d2.BENCHMARKS[name].settings(0.5)
    assert json.loads(json.dumps(settings)) == settings


def test_runs_that_the_file_has_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [
        {"task": "ratio", "network": name, "seed": 0, "settings": settings, "number": number}
        for number, (name, settings) in enumerate(r2d2.BENCHMARKS["ratio"].settings(1.0).items())
    ]
    file = tmp_path / "r2d2.json"
    file.write_text(json.dumps(variants))
    assert r2d2.measure("ratio", rounds=1, scale=1.0, out=file) == variants

    def finish(run: Any, asked: Any, runs: Any, out: Path, jobs: int) -> list[dict[str, Any]]:
        assert runs == []
        return variants

    monkeypatch.setattr(r2d2, "finish", finish)
    r2d2.measure("ratio", rounds=1, scale=0.5, out=file)  # other settings: none of them counts


@pytest.mark.ray
def test_samples_per_insert_are_measured_on_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r2d2.main(["ratio", "--scale", "0.1", "--rounds", "1", "--out", str(tmp_path / "r2d2.json")])
    assert "| asked for | seed |" in capsys.readouterr().out
    for run in json.loads((tmp_path / "r2d2.json").read_text()):
        assert run["sampled"] == 32 * run["updates"]
        assert abs(run["sampled"] - run["settings"]["samples_per_insert"] * run["inserted"]) < 32
