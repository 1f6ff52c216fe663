"""Visual search: each image is decoded by a reader that shares no code with the task."""

import itertools
import math
from collections import Counter
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

from sb3_attn.envs import VisualSearch
from sb3_attn.envs.visual_search import COLOURS

IDS = ["VisualSearch-v0", "VisualSearchCue-v0"]
N_IMAGES = 2000


def decode(image: np.ndarray) -> tuple[dict[int, tuple[str, int]], dict[int, str]]:
    """The glyphs (cell -> colour, rotation) and the filled squares (cell -> colour) of an image, cell by cell."""
    names = {colour: name for name, colour in COLOURS.items()}
    glyphs, squares = {}, {}
    for cell in range(64):
        top, left = 8 * (cell // 8), 8 * (cell % 8)
        part = image[top : top + 8, left : left + 8]
        if not part.any():
            continue
        lit = part.any(axis=2)
        colour = part[lit][0]
        assert (part[lit] == colour).all()
        name = names[(*colour.tolist(),)]
        if lit.all():
            squares[cell] = name
            continue
        assert lit.sum() == lit[1:7, 1:7].sum() == 20
        # A quarter turn to the left takes the bar from the top to the left, then to the bottom, then to the right.
        sides = [int(side.sum()) for side in (lit[1], lit[:, 1], lit[6], lit[:, 6])]
        assert sorted(sides) == [2, 2, 2, 6]
        glyphs[cell] = (name, sides.index(6))
    return glyphs, squares


def find_target(image: np.ndarray, cued: bool, target_color: str = "red") -> tuple[int, int]:
    """Cell and rotation of the target, as the image shows them."""
    glyphs, squares = decode(image)
    wanted = squares[0] if cued else target_color
    ((cell, rotation),) = [(cell, rotation) for cell, (colour, rotation) in glyphs.items() if colour == wanted]
    return cell, rotation


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_and_sb3_accept_it(env_id: str) -> None:
    gymnasium_check_env(gym.make(env_id).unwrapped)  # also renders in every mode
    sb3_check_env(gym.make(env_id), warn=True)


@pytest.mark.parametrize("cued", [False, True])
@pytest.mark.parametrize("n_distractors", [0, 1, 15, 62])
def test_image_answer_and_info_agree(cued: bool, n_distractors: int) -> None:
    env = VisualSearch(n_distractors=n_distractors, cued=cued)
    for seed in range(30):
        image, info = env.reset(seed=seed)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        glyphs, squares = decode(image)
        assert len(glyphs) == n_distractors + 1
        assert list(squares) == ([0] if cued else [])
        cell, rotation = find_target(image, cued)
        assert info == ({"target_cell": cell, "cue_cell": 0} if cued else {"target_cell": cell})
        for action in range(4):
            env.reset(seed=seed)
            shown, reward, terminated, truncated, step_info = env.step(np.int64(action))
            assert reward == float(action == rotation)
            assert terminated and not truncated
            assert step_info == {**info, "is_success": action == rotation}
            np.testing.assert_array_equal(shown, image)


@pytest.mark.parametrize("target_color", list(COLOURS))
def test_fixed_target_color(target_color: str) -> None:
    env = VisualSearch(target_color=target_color)
    env.reset(seed=0)
    seen: Counter[str] = Counter()
    for _ in range(20):
        seen.update(colour for colour, _ in decode(env.reset()[0])[0].values())
    assert seen.keys() == COLOURS.keys()
    assert seen[target_color] == 20


def test_glyphs_may_fill_all_cells() -> None:
    """All 64 cells without the cue; with it the 63 others."""
    for env in (VisualSearch(n_distractors=63), VisualSearch(n_distractors=62, cued=True)):
        glyphs, squares = decode(env.reset(seed=0)[0])
        assert glyphs.keys() | squares.keys() == set(range(64))


@pytest.fixture(scope="module", params=[False, True], ids=IDS)
def drawn(request: pytest.FixtureRequest) -> tuple[bool, list[tuple[dict, dict, int]]]:
    """Glyphs, squares and target cells of many images of a task."""
    env = VisualSearch(cued=request.param, n_distractors=5)  # few: decoding is slow
    env.reset(seed=0)
    images = [env.reset() for _ in range(N_IMAGES)]
    return request.param, [(*decode(image), info["target_cell"]) for image, info in images]


def assert_uniform(values: list, possible: list) -> None:
    """All possible values are equally frequent, within 5 standard deviations."""
    counts = Counter(values)
    assert counts.keys() <= set(possible)
    expected = len(values) / len(possible)
    deviation = math.sqrt(expected * (1 - 1 / len(possible)))
    for value in possible:
        assert counts[value] == pytest.approx(expected, abs=5 * deviation), value


def test_cells_rotations_and_colours_are_uniform(drawn: tuple[bool, list]) -> None:
    cued, images = drawn
    cells = list(range(1 if cued else 0, 64))
    targets = [glyphs[target] for glyphs, _, target in images]
    distractors = [(cell, *glyph) for glyphs, _, target in images for cell, glyph in glyphs.items() if cell != target]
    assert_uniform([target for _, _, target in images], cells)
    assert_uniform([rotation for _, rotation in targets], [0, 1, 2, 3])
    assert_uniform([cell for cell, _, _ in distractors], cells)
    assert_uniform([rotation for _, _, rotation in distractors], [0, 1, 2, 3])
    if cued:
        assert_uniform([colour for colour, _ in targets], list(COLOURS))
        assert all(squares[0] == glyphs[target][0] for glyphs, squares, target in images)
    else:
        assert {colour for colour, _ in targets} == {"red"}
        assert_uniform([colour for _, colour, _ in distractors], list(COLOURS)[1:])


def test_the_answer_depends_on_nothing_but_the_target(drawn: tuple[bool, list]) -> None:
    """The target's rotation is uniform for each of its cells' quarters, its colours and another glyph's rotations."""
    _, images = drawn
    groups: dict[tuple, list[int]] = {}
    for glyphs, _, target in images:
        colour, rotation = glyphs[target]
        other = next(glyph[1] for cell, glyph in sorted(glyphs.items()) if cell != target)
        for key in [("quarter", target // 32, target % 8 // 4), ("colour", colour), ("other", other)]:
            groups.setdefault(key, []).append(rotation)
    assert len(groups) >= 4 + 1 + 4
    for rotations in groups.values():
        assert_uniform(rotations, [0, 1, 2, 3])


@pytest.mark.parametrize("n_distractors", [2, 3, 15])
def test_the_rarest_colour_does_not_give_the_cued_target_away(n_distractors: int) -> None:
    env = VisualSearch(cued=True, n_distractors=n_distractors)
    env.reset(seed=0)
    for _ in range(100):
        glyphs, _ = decode(env.reset()[0])
        counts = Counter(colour for colour, _ in glyphs.values())
        assert sum(count == 1 for count in counts.values()) >= 3


def test_the_colours_are_far_apart() -> None:
    for one, other in itertools.combinations(COLOURS.values(), 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) >= 180


def plurality_accuracy(n_glyphs: int) -> float:
    """The probability that a glyph has the most frequent of ``n_glyphs`` rotations, summed over all counts of the four."""
    mean = 0.0
    for bars in itertools.combinations(range(n_glyphs + 3), 3):
        counts = np.diff([-1, *bars, n_glyphs + 3]) - 1
        ways = math.factorial(n_glyphs) / math.prod(math.factorial(int(count)) for count in counts)
        mean += max(counts) * ways / 4**n_glyphs
    return mean / n_glyphs


def test_scores_of_agents_that_do_not_find_the_target() -> None:
    """The figures of the docstring, by formula and by playing; ``chance`` without the image."""
    assert plurality_accuracy(16) == pytest.approx(0.384, abs=5e-4)
    assert plurality_accuracy(3) == pytest.approx(0.5625)
    assert all(plurality_accuracy(n) < 0.5625 for n in (4, 5, 6))
    env = VisualSearch(cued=True)
    env.reset(seed=0)
    right: dict[str, list[float]] = {"blind": [], "without colours": [], "without the cue": []}
    for _ in range(600):
        image, info = env.reset()
        glyphs, _ = decode(image)
        counts = Counter(colour for colour, _ in glyphs.values())
        rotations = [rotation for _, rotation in glyphs.values()]
        single = [rotation for colour, rotation in glyphs.values() if counts[colour] == 1]
        answer = glyphs[info["target_cell"]][1]
        right["blind"].append(answer == 2)
        right["without colours"].append(answer == max(range(4), key=rotations.count))
        right["without the cue"].append(answer == max(range(4), key=single.count))
    means = {name: np.mean(answers) for name, answers in right.items()}
    noise = 4 * 0.5 / math.sqrt(600)
    assert means["blind"] == pytest.approx(env.chance, abs=noise)
    assert means["without colours"] == pytest.approx(0.384, abs=noise)
    assert 0.4 < means["without the cue"] < 0.5625 + noise


def test_chance_of_the_registered_tasks() -> None:
    assert [gym.make(env_id).unwrapped.chance for env_id in IDS] == [0.25, 0.25]


@pytest.mark.parametrize("env_id", IDS)
def test_an_agent_that_finds_the_target_is_always_right(env_id: str) -> None:
    """Through SB3's vector environments, where the info of a step describes the image that was answered."""
    vec_env = make_vec_env(env_id, n_envs=3, seed=0)
    images = vec_env.reset()
    for _ in range(30):
        found = [find_target(image, cued=env_id == "VisualSearchCue-v0") for image in images]
        assert [cell for cell, _ in found] == [info["target_cell"] for info in vec_env.reset_infos]
        images, rewards, dones, infos = vec_env.step(np.array([rotation for _, rotation in found]))
        assert rewards.tolist() == [1.0] * 3 and dones.all()
        assert [cell for cell, _ in found] == [info["target_cell"] for info in infos]
        assert all(info["is_success"] and info["episode"]["l"] == 1 for info in infos)


@pytest.mark.parametrize("env_id", IDS)
def test_a_seed_fixes_the_images(env_id: str) -> None:
    def images(seed: int) -> list[bytes]:
        env = gym.make(env_id)
        return [env.reset(seed=seed)[0].tobytes()] + [env.reset()[0].tobytes() for _ in range(4)]

    assert images(1) == images(1)
    assert len({*images(1), *images(2)}) == 10


def test_an_agent_may_change_its_image() -> None:
    env = VisualSearch(render_mode="rgb_array")
    image, info = env.reset(seed=0)
    before = image.copy()
    image[:] = 0
    info.clear()
    shown, _, _, _, step_info = env.step(np.int64(0))
    np.testing.assert_array_equal(shown, before)
    assert "target_cell" in step_info
    np.testing.assert_array_equal(env.render()[::4, ::4], before)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VisualSearch(n_distractors=-1), "n_distractors=-1 .* from 0 to 63"),
        (lambda: VisualSearch(n_distractors=64), "n_distractors=64 .* from 0 to 63"),
        (lambda: VisualSearch(n_distractors=63, cued=True), "n_distractors=63 .* from 0 to 62"),
        (lambda: VisualSearch(n_distractors=2.5), "n_distractors=2.5 .* integer"),
        (lambda: VisualSearch(cued="yes"), "cued='yes' .* True or False"),
        (lambda: VisualSearch(target_color="pink"), "target_color='pink' .*'red', 'green'"),
        (lambda: VisualSearch(target_color="red", cued=True), "target_color='red' .* cued=False"),
        (lambda: VisualSearch(render_mode="human"), "render_mode='human' .*rgb_array"),
    ],
)
def test_bad_arguments_are_refused(make: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_steps_outside_an_episode_and_unknown_actions_are_refused() -> None:
    env = VisualSearch()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.int64(0))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action=4 .* Discrete\(4\)"):
        env.step(np.int64(4))
    env.step(np.int64(0))
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.int64(0))
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.render() is None
