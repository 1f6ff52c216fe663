"""examples/associative_recall.py: its functions and a short run; all of it among the tests that may train for a minute."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")
pytest.importorskip("rich")

from sb3_attn.viz import Episode, RecordedWeights, TokenPart

EXAMPLE = Path(__file__).parents[2] / "examples" / "associative_recall.py"
N_PAIRS = 4


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(EXAMPLE))


def played(places: list[int] | None = None) -> Episode:
    """An episode in which each question reads its own pair, or the given step."""
    env = gym.make("AssociativeRecall-v0")
    observations = [env.reset(seed=0)[0]]
    while len(observations) < 2 * N_PAIRS:
        observations.append(env.step(0)[0])
    keys = [int(observation[:N_PAIRS].argmax()) for observation in observations]
    places = [keys.index(key) for key in keys[N_PAIRS:]] if places is None else places
    weights = np.zeros((2 * N_PAIRS, 1, 2 * N_PAIRS))
    for step, place in enumerate(places, start=N_PAIRS):
        weights[step, 0, 2 * N_PAIRS - (step - place)] = 1.0  # the last slot is the step before
    recorded = RecordedWeights("memory_retrieval", weights, (TokenPart(None, "step", 0, 2 * N_PAIRS, newest_age=1),))
    steps = np.zeros(2 * N_PAIRS)
    return Episode(np.stack(observations), steps, steps, None, [recorded])


def test_the_share_of_questions_that_read_their_own_pair(example) -> None:
    right = played()
    places = example["pair_steps"](right.observations)
    for question, place in enumerate(places, start=N_PAIRS):
        assert np.argmax(right.observations[place, :N_PAIRS]) == np.argmax(right.observations[question, :N_PAIRS])
        assert not right.observations[place, -1]  # a pair, no question
    assert example["share_right"]([right]) == 1.0
    one_wrong = [int(places[0] + 1) % N_PAIRS, *map(int, places[1:])]
    assert example["share_right"]([right, played(one_wrong)]) == 7 / 8


def test_the_picture_marks_the_pair_that_a_question_is_about(example) -> None:
    episode = played()
    axes = example["draw"]([episode]).axes[0]
    weights = np.ma.filled(axes.images[0].get_array(), 0.0)  # past steps by present steps
    (marks,) = axes.collections
    assert [weights[int(past), int(present)] for present, past in marks.get_offsets()] == [1.0] * N_PAIRS


def run(folder: Path, *arguments: str) -> tuple[float, ...]:
    """The mean return, and the shares of right reads after and before training."""
    command = [sys.executable, str(EXAMPLE), "--folder", str(folder), *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    assert (folder / "reads.png").read_bytes()[1:4] == b"PNG" and (folder / "model.zip").is_file()
    found = re.search(r"return: (\S+), .*own pair: (\S+) \(untrained: (\S+)\)", output, re.DOTALL)
    assert found is not None, output
    return tuple(float(share) for share in found.groups())


def test_a_short_run_of_the_example(tmp_path: Path) -> None:
    shares = run(tmp_path, "--steps", "1200", "--episodes", "4")
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(3))
def test_questions_read_their_own_pair(tmp_path: Path, seed: int) -> None:
    score, reads, untrained = run(tmp_path, "--seed", str(seed))
    assert score >= 0.95 and reads >= 0.95 and untrained <= 0.6
