"""Windows against the history they were cut from."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from episode_player import ACTION_SPACE, OBSERVATION_SPACE, EpisodePlayer
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


def make_buffer(buffer_size=200, n_envs=1, buffer_class=SequenceReplayBuffer, **kwargs) -> SequenceReplayBuffer:
    return buffer_class(buffer_size, OBSERVATION_SPACE, ACTION_SPACE, device="cpu", n_envs=n_envs, **kwargs)


def play(buffer, lengths, n_steps=None, truncate=0.5) -> EpisodePlayer:
    """Play episodes of the given lengths, one after the other in every lane, then (unless ``n_steps`` ends it) stop."""
    plan = iter([length for length in lengths for _ in range(buffer.n_envs)])
    player = EpisodePlayer(buffer, lambda: next(plan, 10**6), truncate)
    for _ in range(sum(lengths) if n_steps is None else n_steps):
        player.step()
    return player


LENGTHS = [(4, 0, None), (4, 3, None), (6, 4, 3), (5, 7, 2), (3, 2, 1), (1, 0, None), (1, 5, 1), (None, 0, None)]


@pytest.mark.parametrize(("trace_length", "burn_in_length", "sequence_period"), LENGTHS)
def test_every_step_of_every_episode_is_trained(trace_length, burn_in_length, sequence_period):
    buffer = make_buffer(400, 2, trace_length=trace_length, burn_in_length=burn_in_length, sequence_period=sequence_period)
    lengths = [1, 13, 2, 4, 1, 7, 3, 5, 12, 6]
    player = play(buffer, lengths)
    windows = player.sampled_windows()
    trained = [(lane, episode, step) for lane, episode, start, length in windows for step in range(start, start + length)]
    expected = {(lane, e, step) for lane in range(2) for e, length in enumerate(lengths) for step in range(length)}
    assert set(trained) == expected
    if sequence_period is None:
        assert len(trained) == len(expected), "each step lies in one window"
    for lane, episode, start, length in windows:
        last = (lane, episode, start - buffer.sequence_period, buffer.trace_length)
        assert last not in windows or start + length > last[2] + last[3], "a window that brings no new step"


def random_lengths(rng: np.random.Generator) -> dict:
    trace_length = int(rng.integers(1, 9))
    return dict(
        trace_length=trace_length,
        burn_in_length=int(rng.integers(0, 10)),
        sequence_period=None if rng.random() < 0.3 else int(rng.integers(1, trace_length + 1)),
    )


@pytest.mark.parametrize("buffer_class", [SequenceReplayBuffer, PrioritizedSequenceReplayBuffer])
@pytest.mark.parametrize("seed", range(16))
def test_nothing_breaks_when_the_ring_is_overwritten(seed, buffer_class):
    """Random lengths, lanes, ends and seams: after every step the windows are just those that lie whole in the ring."""
    rng = np.random.default_rng(seed)
    lengths = random_lengths(rng) if seed % 5 else {}  # now and then whole episodes
    n_envs, longest = int(rng.integers(1, 5)), int(rng.choice([3, 12, 40]))
    buffer = make_buffer(int(rng.integers(1, 40)) * n_envs, n_envs, buffer_class, **lengths)
    player = EpisodePlayer(buffer, lambda: int(rng.integers(1, longest + 1)), seed=seed)
    for _ in range(3 * buffer.buffer_size + 40):
        lanes = rng.permutation(n_envs)[: rng.integers(1, n_envs + 1)] if rng.random() < 0.7 else None
        if rng.random() < 0.05:
            player.abandon(int(rng.integers(n_envs)))
        player.step(lanes)
        buffer.check_valid()
        expected = player.expected_windows()
        # Episodes that were abandoned are closed when the next one begins
        pending = [lane for lane in range(n_envs) if player.lengths[lane][-1] == 0 and buffer.open_lengths[lane] > 0]
        if not pending:
            assert buffer.n_windows == len(expected)
        if buffer.n_windows > 0:
            sampled = player.check(buffer.sample(8))
            assert sampled <= expected
    if buffer_class is SequenceReplayBuffer and buffer.n_windows > 0 and not pending:
        assert player.sampled_windows() == expected


def test_an_episode_is_sampled_no_further_than_it_has_come():
    buffer = make_buffer(trace_length=5, burn_in_length=2)
    player = EpisodePlayer(buffer, lambda: 1000)
    for step in range(1, 31):
        player.step()
        assert buffer.n_windows == step // 5
        if step >= 5:
            player.check(buffer.sample(20))


def test_an_episode_of_one_step_is_a_window():
    buffer = make_buffer(trace_length=5, burn_in_length=3)
    player = play(buffer, [1], truncate=1.0)
    batch = buffer.sample(3)
    assert player.check(batch) == {(0, 0, 0, 1)}
    assert batch.mask.shape == (1, 3) and batch.observations.shape == (2, 3, 3)
    assert batch.burn_in_observations.shape == (0, 3, 3) and batch.episode_starts.all()


def test_a_truncated_episode_ends_with_its_own_final_observation_and_no_termination():
    buffer = make_buffer(trace_length=4)
    player = play(buffer, [6, 3], truncate=1.0)
    batch = buffer.sample(100)
    player.check(batch)
    assert batch.terminations.sum() == 0
    tail = int(((batch.observations[0] == th.tensor([0, 0, 4])).all(dim=-1)).nonzero()[0])
    assert batch.observations[2, tail].tolist() == [0, 0, 6]  # not [0, 1, 0]


def test_a_terminated_episode_says_so_at_its_last_step_only():
    buffer = make_buffer(trace_length=4)
    player = play(buffer, [6], truncate=0.0)
    batch = buffer.sample(100)
    assert player.check(batch) == {(0, 0, 0, 4), (0, 0, 4, 2)}
    tail = batch.mask.sum(dim=0) == 2
    assert batch.terminations[:, ~tail].sum() == 0
    assert (batch.terminations[:2, tail] == th.tensor([[0.0], [1.0]])).all()


@pytest.mark.parametrize("buffer_size", [8, 9, 16])
def test_the_newest_step_is_followed_by_its_own_next_observation(buffer_size):
    """There the ring holds the oldest observation, or nothing yet."""
    buffer = make_buffer(buffer_size, trace_length=4)
    player = EpisodePlayer(buffer, lambda: 1000)
    for _ in range(40):
        player.step()
        if buffer.n_windows:
            player.check(buffer.sample(30))


def test_a_seam_closes_the_open_episode_as_truncated():
    buffer = make_buffer(n_envs=2, trace_length=4)
    player = EpisodePlayer(buffer, lambda: 1000)
    for _ in range(6):
        player.step()
    player.abandon(0)
    for _ in range(6):
        player.step()
    assert player.sampled_windows() == {(0, 0, 0, 4), (0, 0, 4, 2), (0, 1, 0, 4), (1, 0, 0, 4), (1, 0, 4, 4), (1, 0, 8, 4)}
    assert buffer.sample(200).terminations.sum() == 0
    buffer.check_valid()


def test_short_episodes_do_not_use_up_the_room_for_states():
    """Each of them passes a step at which a burn-in could start, but ends before the window that would need it."""
    buffer = make_buffer(80, trace_length=8, burn_in_length=7)
    player = play(buffer, [18] + [2] * 30)
    assert {(0, 0, 8, 8), (0, 0, 16, 2)} <= player.sampled_windows()


def test_without_a_stored_state_there_is_none():
    buffer = make_buffer(trace_length=4, burn_in_length=2, stored_state=False)
    player = play(buffer, [11, 3])
    player.sampled_windows()
    assert buffer.sample(5).core_state == ()


def test_states_come_as_tensors_too():
    buffer = make_buffer(trace_length=2)
    code = np.zeros((1, 3))
    for step in range(5):
        state = (th.full((1, 4), float(step), requires_grad=True),)
        buffer.add(code + step, code + step + 1, np.zeros(1), np.zeros(1), np.zeros(1, bool), [{}], core_state=state)
    batch = buffer.sample(50)
    expected = batch.observations[0, :, :1].float().expand(-1, 4)
    later = ~batch.episode_starts
    assert later.any() and batch.core_state[0][later].equal(expected[later])


def test_writing_into_a_batch_leaves_the_buffer_alone():
    buffer = make_buffer(trace_length=4, burn_in_length=2)
    player = play(buffer, [11, 3, 1, 9])
    batch = buffer.sample(200)
    for array in (batch.observations, batch.burn_in_observations, batch.actions, batch.rewards, *batch.core_state):
        array.fill_(99)
    for array in (batch.terminations, batch.burn_in_lengths, batch.mask, batch.indices, batch.window_ids):
        array[...] = 1
    player.sampled_windows()
    buffer.check_valid()


def test_windows_are_drawn_equally_often():
    buffer = make_buffer(n_envs=2, trace_length=3, sequence_period=2)
    play(buffer, [1, 9, 4, 2, 20])
    _, counts = np.unique(buffer.sample(1000 * buffer.n_windows).window_ids, return_counts=True)
    assert len(counts) == buffer.n_windows
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_sampling_follows_the_global_seed():
    buffer = make_buffer(trace_length=3)
    play(buffer, [9, 9, 9])
    np.random.seed(5)
    first = buffer.sample(20).indices
    assert not np.array_equal(buffer.sample(20).indices, first)
    np.random.seed(5)
    assert np.array_equal(buffer.sample(20).indices, first)


def all_arrays(thing, seen=None) -> dict[int, np.ndarray]:
    """Every array that an object holds, by identity."""
    seen = {} if seen is None else seen
    if isinstance(thing, np.ndarray):
        seen[id(thing)] = thing
    elif isinstance(thing, dict):
        for value in thing.values():
            all_arrays(value, seen)
    elif isinstance(thing, list | tuple):
        for value in thing:
            all_arrays(value, seen)
    elif type(thing).__module__.startswith("sb3_attn."):
        all_arrays(vars(thing), seen)
    return seen


@pytest.mark.parametrize("buffer_class", [SequenceReplayBuffer, PrioritizedSequenceReplayBuffer])
def test_memory_is_hardly_more_than_one_frame_for_each_step(buffer_class):
    n_steps, n_envs = 40_000, 4
    space = spaces.Box(0, 255, (1, 84, 84), np.uint8)
    buffer = buffer_class(n_steps, space, ACTION_SPACE, "cpu", n_envs, trace_length=80, burn_in_length=40, sequence_period=40)
    frames, state = np.zeros((n_envs, 1, 84, 84), np.uint8), np.zeros((n_envs, 512), np.float32)
    buffer.add(frames, frames, np.zeros(n_envs), np.zeros(n_envs), np.zeros(n_envs, bool), [{}] * n_envs, (state, state))
    n_bytes = sum(array.nbytes for array in all_arrays(buffer).values())
    assert n_steps * 84 * 84 + n_steps // 40 * 2 * 512 * 4 <= n_bytes <= 1.05 * n_steps * 84 * 84


SPACES = {
    "box": spaces.Box(0, 255, (2, 3, 3), np.uint8),
    "discrete": spaces.Discrete(50),
    "multi_discrete": spaces.MultiDiscrete([50, 3]),
    "multi_binary": spaces.MultiBinary(4),
    "dict": spaces.Dict({"image": spaces.Box(0, 255, (1, 2, 2), np.uint8), "number": spaces.Discrete(50)}),
}


@pytest.mark.parametrize("name", SPACES)
def test_observations_come_back_as_the_space_has_them(name):
    space, n_envs, n_steps = SPACES[name], 2, 12
    space.seed(0)
    buffer = SequenceReplayBuffer(100, space, ACTION_SPACE, "cpu", n_envs, trace_length=5, burn_in_length=3)
    history = [[space.sample() for _ in range(n_envs)] for _ in range(n_steps + 1)]

    def stack(step: int):
        if isinstance(space, spaces.Dict):
            return {key: np.stack([obs[key] for obs in history[step]]) for key in space.spaces}
        return np.stack(history[step])

    for step in range(n_steps):
        done = np.full(n_envs, step == n_steps - 1)
        infos = [{"TimeLimit.truncated": True}] * n_envs
        buffer.add(stack(step), stack(step + 1), np.zeros((n_envs, 1)), np.zeros(n_envs), done, infos)
    batch = buffer.sample(30)
    keys = list(space.spaces) if isinstance(space, spaces.Dict) else [None]
    for b, index in enumerate(batch.indices):
        start, lane = divmod(int(index), n_envs)
        length, burn_in_length = int(batch.mask[:, b].sum()), int(batch.burn_in_lengths[b])
        for key in keys:
            trained, past = (o if key is None else o[key] for o in (batch.observations, batch.burn_in_observations))
            actual = np.concatenate([past[:burn_in_length, b], trained[: length + 1, b]])
            steps = range(start - burn_in_length, start + length + 1)
            expected = np.stack([np.asarray(history[s][lane] if key is None else history[s][lane][key]) for s in steps])
            np.testing.assert_array_equal(actual, expected.reshape(actual.shape))
            assert actual.dtype == expected.dtype


def test_vec_normalize_is_applied_to_what_is_sampled():
    class Env(gym.Env):
        observation_space, action_space = OBSERVATION_SPACE, ACTION_SPACE

    env = VecNormalize(DummyVecEnv([Env]), training=False)
    env.obs_rms.mean, env.obs_rms.var = np.array([0.0, 0.0, 2.0]), np.full(3, 4.0)
    env.ret_rms.var = np.array(100.0)
    buffer = make_buffer(trace_length=3, burn_in_length=2)
    play(buffer, [7])
    np.random.seed(1)
    raw = buffer.sample(20)
    np.random.seed(1)
    normalized = buffer.sample(20, env=env)
    for field in ("observations", "burn_in_observations"):
        expected = env.normalize_obs(getattr(raw, field).numpy())
        np.testing.assert_allclose(getattr(normalized, field), expected, rtol=1e-6)
    expected = np.where(raw.mask, env.normalize_reward(raw.rewards.numpy()), 0)
    np.testing.assert_allclose(normalized.rewards, expected, rtol=1e-6)
    assert not normalized.rewards.equal(raw.rewards)


@pytest.mark.parametrize("buffer_class", [SequenceReplayBuffer, PrioritizedSequenceReplayBuffer])
def test_a_pickled_buffer_goes_on_where_it_was(buffer_class):
    buffer = make_buffer(40, 2, buffer_class, trace_length=4, burn_in_length=3)
    player = EpisodePlayer(buffer, lambda: 9)
    for _ in range(50):
        player.step()
    player.buffer = pickle.loads(pickle.dumps(buffer))
    np.random.seed(3)
    expected = buffer.sample(10)
    np.random.seed(3)
    for actual, wanted in zip(player.buffer.sample(10), expected, strict=True):
        th.testing.assert_close(actual, wanted, rtol=0, atol=0)
    for _ in range(50):
        player.step()
        player.buffer.check_valid()
        player.check(player.buffer.sample(10))


def test_whole_episodes_are_one_window_each():
    buffer = make_buffer(100, trace_length=None)
    player = play(buffer, [1, 30, 7, 62])
    assert player.sampled_windows() == {(0, 0, 0, 1), (0, 1, 0, 30), (0, 2, 0, 7), (0, 3, 0, 62)}


def test_an_open_episode_is_no_window_when_episodes_are_taken_whole():
    buffer = make_buffer(100, trace_length=None)
    player = play(buffer, [7, 50], n_steps=56)
    assert player.sampled_windows() == {(0, 0, 0, 7)}


@pytest.mark.parametrize("buffer_class", [SequenceReplayBuffer, PrioritizedSequenceReplayBuffer])
def test_reset_forgets_everything(buffer_class):
    buffer = make_buffer(40, 2, buffer_class, trace_length=4, burn_in_length=3)
    play(buffer, [5] * 6)
    assert buffer.size() == 20 and buffer.n_windows > 0
    buffer.reset()
    assert buffer.size() == 0 and buffer.n_windows == 0
    with pytest.raises(ValueError, match="no complete window yet"):
        buffer.sample(1)
    player = EpisodePlayer(buffer, lambda: 6)
    for _ in range(50):
        player.step()
        if buffer.n_windows:
            assert player.check(buffer.sample(20)) <= player.expected_windows()


def test_reset_leaves_a_valid_buffer():
    buffer = make_buffer(40, trace_length=4)
    play(buffer, [5, 5], truncate=1.0)
    buffer.reset()
    buffer.check_valid()


def test_check_valid_finds_a_fault():
    buffer = make_buffer(40, trace_length=4, sequence_period=2)
    play(buffer, [9, 9], truncate=1.0)
    buffer.check_valid()
    for name in ("window_lengths", "dones", "timeouts", "episode_steps"):
        broken = pickle.loads(pickle.dumps(buffer))
        getattr(broken, name)[3, 0] += 1 if name != "window_lengths" else 3
        with pytest.raises(AssertionError):
            broken.check_valid()


def test_size_counts_the_steps_of_the_fullest_lane():
    buffer = make_buffer(20, 2, trace_length=3)
    player = EpisodePlayer(buffer, lambda: 4)
    for step in range(30):
        player.step(np.array([1]))
        assert buffer.size() == min(step + 1, 10)


def test_a_lane_holds_at_least_one_sequence():
    buffer = make_buffer(1, 2, trace_length=5, burn_in_length=3)
    player = EpisodePlayer(buffer, lambda: 100)
    for _ in range(50):
        player.step()
    assert player.sampled_windows() == player.expected_windows()
    assert len(player.expected_windows()) == 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(trace_length=0), r"trace_length=0 leaves no step to learn from"),
        (dict(trace_length=4, burn_in_length=-1), r"burn_in_length=-1 is negative"),
        (dict(trace_length=4, sequence_period=0), r"sequence_period=0 must be at least 1"),
        (dict(trace_length=4, sequence_period=5), r"sequence_period=5 is larger than trace_length=4"),
        (dict(trace_length=None, burn_in_length=3), r"trace_length=None takes whole episodes.*burn_in_length=3"),
        (dict(trace_length=None, sequence_period=3), r"trace_length=None takes whole episodes.*sequence_period=3"),
    ],
)
def test_lengths_that_leave_steps_out_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_buffer(**kwargs)


def test_an_empty_buffer_says_why_it_cannot_be_sampled():
    buffer = make_buffer(trace_length=5)
    play(buffer, [100], n_steps=4)
    with pytest.raises(ValueError, match=r"no complete window yet \(4 steps per lane, trace_length=5\)"):
        buffer.sample(1)
