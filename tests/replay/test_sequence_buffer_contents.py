"""The contents of a sequence buffer, which come back as they were: spaces, states, statistics, files, sizes."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from tests.helpers.episode_player import ACTION_SPACE, OBSERVATION_SPACE, EpisodePlayer, make_buffer, play


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
        start, env_index = divmod(int(index), n_envs)
        length, burn_in_length = int(batch.mask[:, b].sum()), int(batch.burn_in_lengths[b])
        for key in keys:
            trained, past = (o if key is None else o[key] for o in (batch.observations, batch.burn_in_observations))
            actual = np.concatenate([past[:burn_in_length, b], trained[: length + 1, b]])
            steps = range(start - burn_in_length, start + length + 1)
            expected = np.stack(
                [np.asarray(history[s][env_index] if key is None else history[s][env_index][key]) for s in steps]
            )
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


@pytest.mark.parametrize("handle", [True, False])
def test_without_timeout_handling_a_truncation_terminates(handle):
    buffer = make_buffer(trace_length=4, handle_timeout_termination=handle)
    play(buffer, [3], truncate=1.0)
    assert buffer.sample(1).terminations[:, 0].tolist() == [0.0, 0.0, float(not handle)]
    buffer.check_valid()


def test_size_counts_the_steps_of_the_fullest_ring():
    buffer = make_buffer(20, 2, trace_length=3)
    player = EpisodePlayer(buffer, lambda: 4)
    for step in range(30):
        player.step(np.array([1]))
        assert buffer.size() == min(step + 1, 10)


def test_a_ring_holds_at_least_one_window():
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
