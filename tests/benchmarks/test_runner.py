"""The runner does the runs that are missing, keeps them, and makes tables of what it keeps."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("yaml")

from benchmarks import runner
from benchmarks.runner import GROUPS, Benchmark, Context, Options, Row, Run, Settings, Variants, each, table, values, where
from benchmarks.speed.turns import in_turn, medians, ratio

FOLDER = Path(runner.__file__).parent
NAMES = [name for members in GROUPS.values() for name in members]
HELPERS = {"zoo", "turns", "disk", "forks"}


def load(name: str) -> Benchmark:
    for package in ("rl_zoo3", "popgym", "ray"):
        pytest.importorskip(package)
    return runner.load(name)


class Threads(ThreadPoolExecutor):
    """Runs in this process, where tests can put a benchmark of their own."""

    def __init__(self, jobs: int, mp_context: Any) -> None:
        super().__init__(jobs)


class Toy:
    """A benchmark that records which of its runs were done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.done: list[tuple[str, int]] = []
        self.folder = folder
        monkeypatch.setattr(runner, "load", lambda name: Benchmark(self.settings, self.measure, self.rows, seeds=2))
        monkeypatch.setattr(runner, "ProcessPoolExecutor", Threads)
        monkeypatch.setattr(runner.th, "set_num_threads", lambda number: None)

    def settings(self, options: Options) -> Settings:
        return {name: {"name": name, "steps": options.scaled(100)} for name in ("a", "b")}

    def measure(self, context: Context, name: str, steps: int) -> dict[str, Any]:
        self.done.append((name, context.seed))
        return {"score": steps + context.seed}

    def rows(self, variants: Variants) -> Iterator[Row]:
        for name, runs in variants.items():
            yield {"name": name, "scores": each(values(runs, "score"), "d")}

    def run(self, *arguments: str) -> list[tuple[str, int]]:
        """Variant and seed of the runs done, in their order."""
        self.done.clear()
        runner.main(["cores", "--out", str(self.folder), "--logs", str(self.folder), *arguments])
        return self.done.copy()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Toy:
    return Toy(monkeypatch, tmp_path)


def test_every_module_is_listed_and_every_benchmark_has_one() -> None:
    for group, members in GROUPS.items():
        assert {path.stem for path in (FOLDER / group).glob("*.py")} - HELPERS - {"__init__"} == set(members)


def test_all_variants_run_with_one_seed_before_the_next(toy: Toy) -> None:
    assert toy.run() == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_finished_runs_are_skipped(toy: Toy) -> None:
    assert toy.run("--seeds", "1") == [("a", 0), ("b", 0)]
    assert toy.run("--seeds", "2") == [("a", 1), ("b", 1)]
    assert toy.run("--seeds", "1") == []


def test_again_means_all_runs(toy: Toy) -> None:
    toy.run("--seeds", "1")
    assert toy.run("--seeds", "1", "--again") == [("a", 0), ("b", 0)]


def test_runs_with_other_settings_are_done_again_and_the_rest_is_kept(toy: Toy) -> None:
    toy.run()
    assert toy.run("--scale", "0.5", "--seeds", "1", "--only", "a") == [("a", 0)]
    scores = {(run.variant, run.seed): run.result["score"] for run in runner.read(toy.folder / "cores.json")}
    assert scores == {("a", 0): 50, ("a", 1): 101, ("b", 0): 100, ("b", 1): 101}


def test_the_file_says_what_was_measured_and_where(toy: Toy) -> None:
    toy.run("--only", "b", "--seeds", "1")
    (run,) = json.loads((toy.folder / "cores.json").read_text())
    assert run["machine"].keys() >= {"processor", "cores", "load", "torch", "numpy", "stable-baselines3", "sb3-contrib"}
    assert {**run, "machine": {}} == {
        "variant": "b",
        "seed": 0,
        "settings": {"name": "b", "steps": 100},
        "machine": {},
        "result": {"score": 100},
    }


def test_runs_before_a_failure_are_kept(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = toy.measure

    def fail_later(context: Context, name: str, steps: int) -> dict[str, Any]:
        if (name, context.seed) == ("b", 1):
            raise RuntimeError("the machine is on fire")
        return measure(context, name, steps)

    monkeypatch.setattr(toy, "measure", fail_later)
    with pytest.raises(RuntimeError, match="on fire"):
        toy.run()
    assert [(run.variant, run.seed) for run in runner.read(toy.folder / "cores.json")] == [("a", 0), ("a", 1), ("b", 0)]
    monkeypatch.setattr(toy, "measure", measure)
    assert toy.run() == [("b", 1)]


def test_a_report_runs_nothing(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy.run("--report") == []
    assert "No runs yet." in capsys.readouterr().out
    toy.run()
    capsys.readouterr()
    assert toy.run("--report") == []
    assert "| name | scores |\n| --- | --- |\n| a | 100, 101 |\n| b | 100, 101 |" in capsys.readouterr().out


def test_a_pattern_without_a_match_names_the_variants(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy.run("--only", "c*") == []
    assert "no variant matches c*; there are a; b." in capsys.readouterr().out


def test_the_comparisons_are_one_table(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    runner.main(["comparisons", "--out", str(toy.folder), "--logs", str(toy.folder), "--seeds", "1"])
    out = capsys.readouterr().out
    assert out.count("| name | scores |") == 1
    assert out.count("| a | 100 |") == len(runner.COMPARISONS)


def test_without_a_name_the_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    runner.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == NAMES


def test_groups_and_quick_select_names_seeds_and_scale() -> None:
    assert runner.parse(["speed"]).names == list(GROUPS["speed"])
    quick = runner.parse(["--quick"])
    assert (quick.names, quick.seeds) == (NAMES, 1) and quick.scale < 1
    assert runner.parse(["--quick", "cores"]).names == ["cores"]


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["cores", "--seeds", "0"], ["cores", "--jobs", "0"], ["cores", "--scale", "0"]]
)
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        runner.main(arguments)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_same_after_they_were_in_the_file(name: str) -> None:
    settings = load(name).settings(Options(0.5))
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("name", NAMES)
def test_the_results_of_every_benchmark_can_be_reported(name: str, tmp_path: Path) -> None:
    runs = runner.read(FOLDER / "results" / f"{name}.json")
    assert {run.variant for run in runs} <= load(name).settings(Options()).keys()
    report = runner.report(name, {name: runs}, Options(), tmp_path)
    cells = {line.count("|") for line in report.splitlines() if line.startswith("|")}
    assert len(cells) == (1 if runs else 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_beside_the_results_has_them_all(name: str, tmp_path: Path) -> None:
    path = FOLDER / "results" / f"{name}.json"
    runner.write_csv(tmp_path / "results.csv", runner.read(path))
    assert path.with_suffix(".csv").read_text() == (tmp_path / "results.csv").read_text()


def test_a_table_of_results_is_flat(tmp_path: Path) -> None:
    results = [{"score": 1.0, "curve": [1, 2]}, {"score": 2.0, "seconds": {"train": {"cpu": 3}}}]
    runner.write(tmp_path / "runs.json", [Run("a, b", seed, {}, {}, result) for seed, result in enumerate(results)])
    assert (tmp_path / "runs.csv").read_text().splitlines() == [
        "variant,seed,score,curve,seconds.train.cpu",
        '"a, b",0,1.0,"[1, 2]",',
        '"a, b",1,2.0,,3',
    ]


def test_numbers_of_steps_at_a_scale() -> None:
    assert Options(0.5).scaled(100) == 50
    assert Options(0.001).scaled(100) == 1
    assert Options(0.5).scaled(50, multiple_of=4) == 24
    assert Options(0.001).scaled(100, multiple_of=4) == 4


def test_a_table_has_a_column_for_each_key() -> None:
    assert table(iter([{"x": "1", "y": "2"}])) == "| x | y |\n| --- | --- |\n| 1 | 2 |"
    assert each([1.0, None, 0.5]) == "1.00, -, 0.50"
    runs = [Run("a", seed, {}, {}, {"times": {"ours": seed}}) for seed in range(2)]
    assert values(runs, "times", "ours") == [0, 1]


def test_machines_are_named_once_with_the_range_of_their_loads() -> None:
    assert where([{"cores": 2, "load": 1.0}, {"cores": 2, "load": 0.5}]) == "cores 2; load 0.5 to 1.0 at the end of a run."
    assert where([]) == ""


def test_sides_are_measured_in_turn_after_the_warm_up() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return len(order)

    measured = in_turn({"x": lambda: side("x"), "y": lambda: side("y")}, rounds=2, warm_up=1)
    assert order == ["x", "y"] * 3
    assert measured == {"x": [3, 5], "y": [4, 6]}
    assert medians(measured) == {"x": 4, "y": 5}


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    assert ratio([2, 20, 9], [1, 10, 1]) == 2  # a slow round slows both sides
