"""Every core learns what needs its memory, in RecurrentDQN and over stacked frames."""

from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("popgym")

from benchmarks.learning import ablations
from benchmarks.learning.cores import THRESHOLD, measure, settings, solved_at
from benchmarks.runner import Context, Options

SETTINGS = settings(Options())
#: Cores that are promised to learn a cue, and no more
CUE_ONLY = ("ctrnn", "mingru", "rnn")
PROMISED = [
    name
    for name, variant in SETTINGS.items()
    if variant["core"] not in CUE_ONLY and not name.startswith("AssociativeRecall8-v0")
]


@pytest.mark.learning
@pytest.mark.parametrize("variant", PROMISED)
@pytest.mark.parametrize("seed", range(3))
def test_a_core_reaches_the_threshold(variant: str, seed: int, tmp_path: Path) -> None:
    assert measure(Context(seed, tmp_path), **SETTINGS[variant])["curve"][-1][1] >= THRESHOLD


@pytest.mark.learning
@pytest.mark.parametrize("change", ["two layers", "GRU of two layers", "vanilla RNN", "CTRNN", "minGRU"])
@pytest.mark.parametrize("seed", range(3))
def test_a_recurrent_cell_learns_a_cue_with_the_default_arguments(change: str, seed: int, tmp_path: Path) -> None:
    variant = ablations.settings(Options())[f"MemoryChain-v0, {change}"]
    assert ablations.measure(Context(seed, tmp_path), **variant)["score"] >= THRESHOLD


@pytest.mark.learning
def test_eight_pairs_are_learned_faster_than_by_an_lstm(tmp_path: Path) -> None:
    variants = [SETTINGS[f"AssociativeRecall8-v0, {core}"] for core in ("key_value", "lstm")]
    curves = [measure(Context(0, tmp_path / variant["core"]), **variant)["curve"] for variant in variants]
    solved, solved_by_lstm = map(solved_at, curves)
    assert solved is not None and (solved_by_lstm is None or 2 * solved < solved_by_lstm)
