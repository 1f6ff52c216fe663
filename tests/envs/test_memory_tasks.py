"""Each memory task against an oracle with memory and against all memoryless policies."""

import itertools
import math
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

from sb3_attn.envs import (
    AssociativeRecall,
    CardOrder,
    MemoryChain,
    MemoryTask,
    RememberedGlyph,
    RememberedSearch,
    TMaze,
    WindingCorridor,
)

IDS = [
    *("MemoryChain-v0", "TMaze-v0", "AssociativeRecall-v0", "RememberedSearch-v0", "RememberedGlyph-v0"),
    *("CardOrder-v0", "WindingCorridor-v0"),
]
Oracle = Callable[[MemoryTask, list[np.ndarray]], int]  # all observations of the episode so far -> the best action


def chain_oracle(env: MemoryTask, history: list[np.ndarray]) -> int:
    return int(history[0][0] > 0)


def tmaze_oracle(env: MemoryTask, history: list[np.ndarray]) -> int:
    cue = sum(obs[0] for obs in history)
    if history[-1][1]:  # also in the arm, against its end wall, while time is left
        return 1 if cue > 0 else 3
    return 0 if cue else 2


def recall_oracle(env: MemoryTask, history: list[np.ndarray]) -> int:
    assert isinstance(env, AssociativeRecall)
    shown = {int(obs[: env.pairs].argmax()): int(obs[env.pairs : -1].argmax()) for obs in history if not obs[-1]}
    return shown[int(history[-1][: env.pairs].argmax())]


def search_oracle(env: MemoryTask, history: list[np.ndarray]) -> int:
    assert isinstance(env, RememberedSearch)
    kind = history[0][0].argmax()
    row = history[-1][:, kind].argmax()
    return int(history[-1][row, env.kinds :].argmax()) if len(history) == env.episode_length else 0


def glyph_oracle(env: MemoryTask, history: list[np.ndarray]) -> int:
    white = (history[0][16:48, 16:48] == 255).all(axis=-1)
    return int(np.argmax([white[:12].sum(), white[:, :12].sum(), white[-12:].sum(), white[:, -12:].sum()]))  # the bar's side


def order_oracle(env: MemoryTask, history: list[np.ndarray]) -> int:
    assert isinstance(env, CardOrder)
    shown = [int(obs.argmax()) for obs in history[: env.cards]]
    return shown[len(history) - 1 - env.cards] if len(history) > env.cards else env.cards


def corridor_oracle(env: MemoryTask, history: list[np.ndarray]) -> int:
    cue, is_open = history[0][:4], history[-1][4:]
    if not is_open.any():
        return 4
    return int(is_open.argmax() if is_open.sum() == 1 else cue.argmax())


TASKS: list[tuple[str, dict, Oracle]] = [
    ("MemoryChain-v0", {}, chain_oracle),
    ("MemoryChain-v0", {"length": 1}, chain_oracle),
    ("TMaze-v0", {}, tmaze_oracle),
    ("TMaze-v0", {"length": 1}, tmaze_oracle),
    ("TMaze-v0", {"length": 5, "active": True}, tmaze_oracle),
    ("AssociativeRecall-v0", {}, recall_oracle),
    ("AssociativeRecall-v0", {"pairs": 3, "values": 2}, recall_oracle),
    ("RememberedSearch-v0", {}, search_oracle),
    ("RememberedSearch-v0", {"kinds": 4, "blanks": 0}, search_oracle),
    ("RememberedGlyph-v0", {}, glyph_oracle),
    ("RememberedGlyph-v0", {"delay": 1, "n_distractors": 48}, glyph_oracle),
    ("CardOrder-v0", {}, order_oracle),
    ("CardOrder-v0", {"cards": 2}, order_oracle),
    ("WindingCorridor-v0", {}, corridor_oracle),
    ("WindingCorridor-v0", {"length": 1}, corridor_oracle),
]


def play(env: MemoryTask, policy: Callable[[np.ndarray], int], seed: int) -> tuple[float, list[np.ndarray]]:
    """The return and the observations of one episode of a policy that depends only on the current observation."""
    observations = [env.reset(seed=seed)[0]]
    total, over = 0.0, False
    while not over:
        obs, reward, over, _, _ = env.step(np.int64(policy(observations[-1])))
        observations.append(obs)
        total += reward
    return total, observations


# SB3's checker recommends vectors; a matrix of entities is there to be attended to
@pytest.mark.filterwarnings("ignore:Your observation  has an unconventional shape:UserWarning")
@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_and_sb3_accept_it(env_id: str) -> None:
    gymnasium_check_env(gym.make(env_id).unwrapped)  # also renders in every mode
    sb3_check_env(gym.make(env_id), warn=True)


@pytest.mark.parametrize(("env_id", "kwargs", "oracle"), TASKS)
def test_an_oracle_with_memory_gets_the_best_return(env_id: str, kwargs: dict, oracle: Oracle) -> None:
    vec_env = make_vec_env(env_id, n_envs=5, seed=0, env_kwargs=kwargs)
    tasks = [env.unwrapped for env in vec_env.envs]  # type: ignore[attr-defined]
    returns: list[float] = []
    observations = vec_env.reset()
    histories = [[obs] for obs in observations]
    for _ in range(20 * tasks[0].episode_length):
        actions = np.array([oracle(task, history) if history else 0 for task, history in zip(tasks, histories, strict=True)])
        observations, _, dones, infos = vec_env.step(actions)
        for history, obs, done, info in zip(histories, observations, dones, infos, strict=True):
            if done:
                history.clear()
                returns.append(info["episode"]["r"])
                assert info["episode"]["l"] == tasks[0].episode_length
                assert info["is_success"]
            history.append(obs)
    assert len(returns) == 20 * 5
    np.testing.assert_allclose(returns, MemoryTask.best_return, atol=1e-5)


def distinct_episodes(env: MemoryTask, expected: int) -> list[int]:
    """One seed per possible episode; episodes are distinguished by the observations of always doing 0 and always doing 2."""
    seeds: dict[bytes, int] = {}
    for seed in range(40 * expected):
        seen = [play(env, lambda _, action=action: action, seed)[1] for action in (0, 2 % int(env.action_space.n))]
        seeds.setdefault(np.array(seen).tobytes(), seed)
    assert len(seeds) == expected
    return list(seeds.values())


@pytest.mark.parametrize(
    ("env", "n_episodes"),
    [
        (MemoryChain(length=3), 2),
        (TMaze(length=2), 2),
        (TMaze(length=2, active=True), 2),
        (RememberedGlyph(delay=1, n_distractors=0), 4),
        (AssociativeRecall(pairs=1, values=3), 3),  # values
        (AssociativeRecall(pairs=2, values=2), 16),  # values^pairs, times the orders of showing and of asking
    ],
    ids=["MemoryChain", "TMaze", "TMaze-active", "RememberedGlyph", "AssociativeRecall-1", "AssociativeRecall-2"],
)
def test_no_memoryless_policy_beats_the_ceiling(env: MemoryTask, n_episodes: int) -> None:
    """Exhaustive: all mappings from observations to actions, over all (equally likely) episodes."""
    seeds = distinct_episodes(env, n_episodes)
    rng = np.random.default_rng(0)
    n_actions = int(env.action_space.n)
    walks = [play(env, lambda _: rng.integers(n_actions), seed)[1] for seed in seeds * 60]  # enough to see everything
    observations = {obs.tobytes() for walk in walks for obs in walk}
    best = -math.inf
    for actions in itertools.product(range(n_actions), repeat=len(observations)):
        policy = dict(zip(observations, actions, strict=True))
        returns = [play(env, lambda obs, policy=policy: policy[obs.tobytes()], seed)[0] for seed in seeds]
        best = max(best, np.mean(returns))
    assert best == pytest.approx(env.memoryless_ceiling)


@pytest.mark.parametrize("kinds", [2, 3, 4, 5])
def test_without_the_kind_the_most_frequent_value_is_the_best_answer(kinds: int) -> None:
    """Over all values that the entities may have, each entity being the target once; there are too many policies to try."""
    answers = range(RememberedSearch.VALUES)
    best = [
        max(np.mean([value == answer for value in values]) for answer in answers)
        for values in itertools.product(answers, repeat=kinds)
    ]
    assert RememberedSearch(kinds).memoryless_ceiling == pytest.approx(np.mean(best))


@pytest.mark.parametrize(
    ("env_id", "policy", "deviation"),  # deviation: standard deviation of one episode's return
    [
        ("MemoryChain-v0", lambda obs: 1, 1.0),
        ("TMaze-v0", lambda obs: 1 if obs[1] else 0, 0.5),
        ("AssociativeRecall-v0", lambda obs: 7, 0.121),  # sqrt(1/16 * 15/16 / 4)
        ("RememberedSearch-v0", lambda obs: obs[:, 2:].sum(axis=0).argmax(), 0.484),  # sqrt(5/8 * 3/8)
        ("WindingCorridor-v0", lambda obs: obs[4:].argmax() if obs[4:].any() else 4, 0.433),  # sqrt(1/4 * 3/4)
    ],
)
def test_the_best_memoryless_policy_reaches_the_ceiling(env_id: str, policy: Callable, deviation: float) -> None:
    env = gym.make(env_id).unwrapped
    assert isinstance(env, MemoryTask)
    returns = [play(env, policy, seed)[0] for seed in range(2000)]
    assert np.mean(returns) == pytest.approx(env.memoryless_ceiling, abs=4 * deviation / math.sqrt(2000))
    assert np.std(returns) == pytest.approx(deviation, rel=0.1)


def test_ceilings_of_the_registered_tasks() -> None:
    assert [gym.make(env_id).unwrapped.memoryless_ceiling for env_id in IDS] == [0.0, 0.5, 0.0625, 0.625, 0.25, 0.2, 0.25]


def test_no_policy_of_observation_and_masks_beats_the_ceiling_of_card_order() -> None:
    """Exhaustive for three cards: all choices among the cards that are left, over all orders."""
    env = CardOrder(cards=3)
    seeds, hands = {}, [hand for n in (1, 2, 3) for hand in itertools.combinations(range(3), n)]
    for seed in range(200):
        env.reset(seed=seed)
        seeds.setdefault(tuple(env._order), seed)
    assert len(seeds) == 6
    for choice in itertools.product(*hands):
        policy, returns = dict(zip(hands, choice, strict=True)), []
        for seed in seeds.values():
            env.reset(seed=seed)
            total, over = 0.0, False
            while not over:
                valid = tuple(np.flatnonzero(env.action_masks()))
                _, reward, over, _, _ = env.step(np.int64(3 if valid == (3,) else policy[valid]))
                total += reward
            returns.append(total)
        assert np.mean(returns) == pytest.approx(env.memoryless_ceiling)


def test_an_invalid_card_ends_the_episode() -> None:
    env = CardOrder(cards=3)
    env.reset(seed=0)
    assert env.action_masks().tolist() == [False, False, False, True]
    assert env.step(np.int64(0))[1:] == (0.0, True, False, {"is_success": False})
    env.reset(seed=0)
    for action in (3, 3, 3, 1):
        assert not env.step(np.int64(action))[2]
    assert env.action_masks().tolist() == [True, False, True, False]
    assert env.step(np.int64(1))[2]


def test_a_winding_corridor_has_one_open_direction_and_its_fork_four() -> None:
    env = WindingCorridor(length=2)
    obs, _ = env.reset(seed=0)
    assert obs[:4].sum() == 1 and obs[4:].sum() == 1
    for _ in range(2):
        masks = env.action_masks()
        np.testing.assert_array_equal(masks, [*obs[4:], 0])
        obs = env.step(np.int64(masks.argmin()))[0]  # against a wall, or waiting
        np.testing.assert_array_equal(env.action_masks(), masks)
        assert obs[:4].sum() == 0
        obs = env.step(np.int64(masks.argmax()))[0]
    assert env.action_masks().tolist() == [True] * 4 + [False]
    assert env.step(np.int64(4))[1:] == (0.0, True, False, {"is_success": False})  # time is up, at the fork


def test_only_waiting_is_valid_in_a_room() -> None:
    env = WindingCorridor(length=1)
    env.reset(seed=0)
    for action in (env.action_masks().argmax(), 2):
        env.step(np.int64(action))
    assert env.action_masks().tolist() == [False] * 4 + [True]
    assert env.step(np.int64(1))[1] == float(env._cue == 2)  # the doors of the room stay shut


def test_the_cue_is_gone_after_the_first_step() -> None:
    env = MemoryChain(length=4)
    obs, _ = env.reset(seed=3)
    assert abs(obs[0]) == 1
    later = [env.step(np.int64(0))[0] for _ in range(env.episode_length)]
    np.testing.assert_array_equal([o[0] for o in later], 0)
    np.testing.assert_array_equal([o[1] for o in later], [0, 0, 0, 0, 1, 0])  # asked once, at the last step


def test_tmaze_walls_schedule_and_cue() -> None:
    """T = 6: standing still costs 1/5 per step, and going back to the start does not show the cue again."""
    env = TMaze(length=5)
    obs, _ = env.reset(seed=0)
    assert abs(obs[0]) == 1
    outcomes = [env.step(np.int64(action)) for action in (0, 2, 2, 1, 0, 0)]  # right, back, wall, wall, right, right
    assert [float(o[0][0]) for o in outcomes] == [0] * 6
    assert [o[1] for o in outcomes] == pytest.approx([0, -0.2, -0.2, -0.2, -0.2, 0])
    assert [o[2] for o in outcomes] == [False] * 5 + [True]
    assert outcomes[-1][4] == {"is_success": False}


def test_active_tmaze_shows_the_cue_at_the_first_visit_only() -> None:
    env = TMaze(length=3, active=True)
    cues = [env.reset(seed=0)[0][0]] + [env.step(np.int64(action))[0][0] for action in (2, 0, 2)]
    assert np.abs(cues).tolist() == [0, 1, 0, 0]


def test_recall_asks_every_key_once_in_an_order_of_its_own() -> None:
    env = AssociativeRecall(pairs=5, values=3)
    orders = set()
    for seed in range(20):
        episode = [env.reset(seed=seed)[0]] + [env.step(np.int64(0))[0] for _ in range(9)]
        keys = np.stack(episode)[:, :5].argmax(axis=1)
        assert sorted(keys[:5]) == sorted(keys[5:]) == list(range(5))
        np.testing.assert_array_equal(np.stack(episode)[:, 5:8].sum(axis=1), [1] * 5 + [0] * 5)
        orders.add((*keys[:5],) == (*keys[5:],))
    assert False in orders


def test_the_kind_is_shown_first_and_the_entities_last() -> None:
    env = RememberedSearch(kinds=3, blanks=2)
    for seed in range(20):
        first, *blanks, last, after = play(env, lambda _: 0, seed)[1]
        assert (first == first[0]).all() and first[0].sum() == first[0, :3].sum() == 1
        assert len(blanks) == 2 and not np.any(blanks) and not np.any(after)
        assert (last[:, :3].sum(axis=0) == 1).all() and (last[:, 3:].sum(axis=1) == 1).all()
        assert last[env.target, :3].argmax() == first[0].argmax()


@pytest.mark.parametrize("env_id", IDS)
def test_a_seed_fixes_the_episode(env_id: str) -> None:
    env = gym.make(env_id).unwrapped
    episodes = [np.array(play(env, lambda _: 0, seed)[1]).tobytes() for seed in (1, 1, *range(2, 12))]
    assert episodes[0] == episodes[1]
    assert len(set(episodes)) > 1


@pytest.mark.parametrize("env_id", IDS)
def test_every_step_changes_the_frame(env_id: str) -> None:
    """Frames for record-video: uint8, with even sizes, and different after each step."""
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    for _ in range(env.unwrapped.episode_length):
        is_masked = isinstance(env.unwrapped, CardOrder | WindingCorridor)
        env.step(env.unwrapped.action_masks().argmax() if is_masked else 0)
        frames.append(env.render())
    assert all(frame.dtype == np.uint8 and frame.shape == frames[0].shape for frame in frames)
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    assert len({frame.tobytes() for frame in frames}) >= env.unwrapped.episode_length


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MemoryChain(length=0), "length=0 .* at least 1"),
        (lambda: MemoryChain(length=2.5), "length=2.5 .* integer"),
        (lambda: TMaze(length=-1), "length=-1 .* at least 1"),
        (lambda: TMaze(active=2), "active=2 must be True or False"),  # type: ignore[arg-type]
        (lambda: AssociativeRecall(pairs=0), "pairs=0 .* at least 1"),
        (lambda: AssociativeRecall(values=1), "values=1 .* at least 2"),
        (lambda: RememberedSearch(kinds=1), "kinds=1 .* at least 2"),
        (lambda: RememberedSearch(blanks=-1), "blanks=-1 .* at least 0"),
        (lambda: RememberedGlyph(delay=0), "delay=0 .* at least 1"),
        (lambda: RememberedGlyph(n_distractors=49), "n_distractors=49 .* at most 48"),
        (lambda: MemoryChain(render_mode="human"), "render_mode='human' .*rgb_array"),
    ],
)
def test_bad_arguments_are_refused(make: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_an_episode_that_an_invalid_action_has_ended_is_over() -> None:
    env = CardOrder(cards=2)
    env.reset(seed=0)
    assert env.step(np.int64(0))[2]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.int64(2))
    env.reset()
    assert not env.step(np.int64(2))[2]


def test_there_is_no_picture_before_the_first_episode() -> None:
    with pytest.raises(RuntimeError, match=r"render\(\) was called outside an episode"):
        TMaze(render_mode="rgb_array").render()


def test_steps_outside_an_episode_and_unknown_actions_are_refused() -> None:
    env = MemoryChain(length=1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.int64(0))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action=2 .* Discrete\(2\)"):
        env.step(np.int64(2))
    for _ in range(3):
        env.step(np.int64(0))
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.int64(0))
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.render() is None
