"""The comparisons with peers: one table, a process for each peer, and what each side measures."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("popgym")
pytest.importorskip("matplotlib")

from benchmarks import runner
from benchmarks.learning import time_to_solve
from benchmarks.peers import server
from benchmarks.runner import COMPARISONS, Context, Options, Run
from benchmarks.speed import core_sizes, env_steps, image_update, recurrent_update, replay
from benchmarks.speed.turns import allocated_bytes, peak_memory
from sb3_attn.recurrent_dqn import networks

ROOT = Path(runner.__file__).parents[1]
COLUMNS = ["measured", "ours", "compared with", "theirs", "ours / theirs", "note"]


def rows_of(name: str) -> list[runner.Row]:
    """The rows of a benchmark's results file."""
    benchmark, runs = runner.load(name), runner.read(ROOT / "benchmarks" / "results" / f"{name}.json")
    return list(benchmark.rows(runner.in_order(runs, benchmark.settings(Options()))))


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_table_of_the_docs_is_that_of_the_results(name: str) -> None:
    rows = rows_of(name)
    assert all(list(row) == COLUMNS for row in rows)
    table = runner.table(rows).splitlines() if rows else []
    lines = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in table if line not in lines] == [], "paste what `python -m benchmarks comparisons --report` prints"


# ---------------------------------------------------------------- processes of peers


def test_a_peer_does_what_it_is_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("double 4\nhalve 4\n"))

    def make() -> dict[str, Any]:
        print("a package says hello")
        return {"double": lambda number: 2 * number, "halve": lambda number: number / 2}

    server.serve(make)
    out, err = capsys.readouterr()
    assert out == "0\n8\n2.0\n" and "hello" in err, "only answers are on the standard output"


def test_a_peer_that_is_not_installed_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(RuntimeError, match=r"absent ended before it answered.*check --peers="),
        server.start(sys.executable, "absent"),
    ):
        pass
    assert "No module named benchmarks.peers.absent" in capfd.readouterr().err


# ---------------------------------------------------------------- what is measured


@contextmanager
def one_second(python: str, name: str, *arguments: str) -> Iterator[Any]:
    """A peer that takes a second for anything, and a megabyte."""
    yield lambda function, number: 2**20 if function == "bytes" else 1.0


def test_environment_steps_of_all_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "start", one_second)
    monkeypatch.setattr(env_steps.sizes, "WARM_UP_STEPS", 60)
    sides = [*env_steps.OURS, *env_steps.PRICE, *env_steps.PEERS]
    result = env_steps.measure(Context(0, peers={"python": ""}), True, sides, steps=8, rounds=1)
    rates = result["steps_per_second"]
    assert rates["Tianshou"] == rates["TorchRL"] == 8.0
    assert all(result["ratios"][f"{ours}, {other}"] == rates[ours] / rates[other] for ours, other in env_steps.PAIRS)


def test_steps_beyond_those_asked_for_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class InRollouts:
        """Takes a second per step, and 128 steps at a time."""

        num_timesteps = _n_updates = 0

        def learn(self, n_steps: int, reset_num_timesteps: bool = True) -> None:
            self.num_timesteps += 128

    model = InRollouts()
    monkeypatch.setattr(env_steps.time, "process_time", lambda: float(model.num_timesteps))
    assert env_steps.trainer(model)(64) == 64.0


def test_replay_of_all_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "start", one_second)
    monkeypatch.setattr(replay, "N_STEPS", 1500)
    monkeypatch.setattr(replay, "N_IMAGES", 500)
    monkeypatch.setattr(replay, "N_CALLS", 2)
    costs = replay.measure(Context(0, peers={"python": ""}), [*replay.BUFFERS, replay.CPPRB], rounds=1)["costs"]
    assert costs[f"add: {replay.CPPRB}"] == 500.0, "microseconds of one of two calls that took a millisecond"
    image, ours = costs["memory: limit: one image"], costs["memory: prioritized windows"]
    assert image < ours < 1.05 * image and costs[f"memory: {replay.SB3}"] == pytest.approx(2 * image, rel=0.01)


def test_as_many_steps_are_sampled_from_each_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    for name in replay.BUFFERS:
        buffer: Any = replay.make_buffer(name, 1000, replay.VECTORS)
        replay.adder(buffer)(1000)
        sizes: list[int] = []
        monkeypatch.setattr(buffer, "sample", lambda size, seen=sizes, sample=buffer.sample: seen.append(size) or sample(size))
        replay.sampler(buffer)(1)
        drawn[name] = buffer.sample(sizes[0])
    assert drawn[replay.SB3].rewards.shape[0] == replay.N_SAMPLED
    assert drawn["windows"].rewards.numel() == replay.BATCH_SIZE * replay.TRACE


def test_memory_is_that_of_what_is_made() -> None:
    assert allocated_bytes(lambda: np.zeros(10**6, np.uint8)) == pytest.approx(10**6, rel=0.01)


def test_growth_is_linear_up_to_the_tolerance() -> None:
    growth = {"length": 1.2, "batch_size": 1.3, "hidden_size": 0.5}
    times = {f"{name} x {factor}": share * factor for name, share in growth.items() for factor in core_sizes.FACTORS}
    run = Run("lstm", 0, {}, {}, {"milliseconds": {"start": 1.0, **times}})
    rows = list(core_sizes.rows({"lstm": [run]}))
    assert [row["ours / theirs"] for row in rows] == ["1.20", "1.30", "0.50"]
    assert [row["note"] for row in rows] == ["", "more than linear at 32", ""]


def test_a_core_is_measured_at_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, int]] = []
    monkeypatch.setattr(core_sizes, "unroll", lambda core, **sizes: seen.append(sizes) or (lambda: None))
    result = core_sizes.measure(Context(0), core="ntm", factors=[4, 16], rounds=1)
    assert len(seen) == len(result["milliseconds"]) == 1 + 4 * 2 + 2 * 2  # and 8 and 32 windows of both cores
    assert seen[0] == {"length": 100, "batch_size": 8, "hidden_size": 64, "n_slots": 32}
    assert seen[8] == seen[0] | {"n_slots": 16 * 32}
    assert seen[-1] == {"length": 100, "batch_size": 32, "hidden_size": 64}


def test_updates_with_sliding_windows_are_compared_with_each_lstm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_sizes, "make_update", lambda name, n_windows, seed: lambda: None)
    monkeypatch.setattr(core_sizes, "peak_memory", lambda make, name, n_windows, seed: 100.0 * n_windows + len(name))
    settings = {"n_windows": 8, "rounds": 1}
    result = core_sizes.measure(Context(0), **settings)
    assert result["peak_memory"]["gtrxl"] == 805.0
    result["rounds"] = {"lstm of 64 units": [2.0], "lstm of 128 units": [4.0], "key_value": [3.0], "gtrxl": [8.0]}
    rows = list(core_sizes.rows({"update, 8 windows": [Run("", 0, settings, {}, result)]}))
    assert [row["ours / theirs"] for row in rows] == ["1.50", "0.75", "4.00", "2.00"]
    assert rows[2]["measured"] == "update, 8 windows of 1,000 steps: gtrxl"
    assert rows[2]["note"] == "memory 805 MiB, 0.99 of 816"


def test_windows_of_a_thousand_steps_are_sampled() -> None:
    update = core_sizes.make_update("lstm of 64 units", 2, 0)
    model = update.func.__self__  # type: ignore[attr-defined]
    assert model.replay_buffer.sample(2).mask.sum() == 2 * core_sizes.UPDATE_LENGTH


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    ours = np.ones(30 * 2**20)  # 240 MiB of this process, which must not count
    little, much = (peak_memory(partial, np.ones, n_mib * 2**17) for n_mib in (1, 201))
    del ours
    assert much - little == pytest.approx(200, abs=10)


def test_only_one_side_encodes_all_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    model = SimpleNamespace(train=lambda *arguments: limits.append(networks.MAX_NUMBERS_ENCODED_AT_ONCE))
    monkeypatch.setattr(image_update, "make_model", lambda kind, seed: model)
    monkeypatch.setattr(image_update, "peak_memory", lambda make, kind, seed: float(len(kind)))
    result = image_update.measure(Context(0), rounds=1, encodings=True)
    default = networks.MAX_NUMBERS_ENCODED_AT_ONCE
    assert limits == 2 * [sys.maxsize, default, default], "a warm-up, and one round"
    assert result["peak_memory"] == {"at once": 7.0, "in parts": 8.0, "in parts, bf16": 14.0}


def test_the_parts_of_an_update_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent_update.sizes, "WARM_UP_STEPS", 60)
    settings = {"hidden_size": 8, "rounds": 1}
    result = recurrent_update.measure(Context(0), **settings)
    rows = list(recurrent_update.rows({"parts": [Run("", 0, settings, {}, result)]}))
    sides = ["bare nn.LSTM", "update, linear head", "update, default head"]
    assert [row["measured"] for row in rows] == [f"parts: {side}" for side in sides]
    assert rows[1]["ours / theirs"] == f"{result['ratios']['update, linear head']:.2f}"


def test_time_runs_out_or_the_task_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    unsolved = time_to_solve.measure(Context(0), "MemoryChain-v0", "RecurrentPPO", max_seconds=0.0)
    assert unsolved == {"seconds": None, "steps": 16, "scores": []}
    monkeypatch.setattr(time_to_solve, "BAR", -2.0)
    solved = time_to_solve.measure(Context(0), "MemoryChain-v0", "RecurrentDQN", max_seconds=60.0)
    assert solved["steps"] == time_to_solve.EVALUATION_PERIOD and len(solved["scores"]) == 1
    assert 0 < solved["seconds"] < 60


def test_runs_that_did_not_solve_the_task_count_with_all_their_time() -> None:
    task = time_to_solve.NAMES[0]
    settings = time_to_solve.settings(Options())
    seconds = {"RecurrentDQN": (4.0, 5.0, 6.0), "RecurrentPPO": (None, None, 50.0)}
    variants = {
        variant: [Run(variant, seed, settings[variant], {}, {"seconds": time}) for seed, time in enumerate(seconds[agent])]
        for agent in seconds
        if (variant := f"{task}, {agent}")
    }
    (row,) = time_to_solve.rows(variants)
    assert (row["ours"], row["theirs"], row["ours / theirs"]) == ("5.0 s", "120.0 s", "0.04")
    assert row["note"] == "solved by 3 of 3 and 1 of 3 seeds; others count as 120 s"
