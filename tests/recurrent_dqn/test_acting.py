"""The memory during acting, with which replay, prediction and evaluation agree."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn.common.exploration import ape_x_epsilons
from sb3_attn.envs import PreviousActionReward
from tests.helpers.callbacks import Recorder, StopAt
from tests.helpers.environments import Counter, counters
from tests.helpers.models import SumCore, assert_same, make_rdqn, parameters


def acted(steps: int, env: Any = None, epsilon: float = 0.5, **kwargs: Any) -> tuple[Any, Recorder]:
    """A model that acts without learning, and what it saw."""
    model = make_rdqn(env, exploration_initial_eps=epsilon, exploration_final_eps=epsilon, learning_starts=0, **kwargs)
    model.train = lambda *args, **kwargs: None
    recorder = Recorder()
    model.learn(steps, recorder)
    return model, recorder


def by_step(recorder: Recorder, what: str) -> list[np.ndarray]:
    """The fields of the recorded states in one array ``[time, env, size]`` each."""
    return [np.stack(field) for field in zip(*getattr(recorder, what), strict=True)]


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_states_do_not_depend_on_exploration(core: str) -> None:
    greedy, random = (acted(23, epsilon=epsilon, policy_kwargs=dict(core=core))[1] for epsilon in (0.0, 1.0))
    assert not np.array_equal(greedy.actions, random.actions)
    np.testing.assert_array_equal(greedy.observations, random.observations)
    for first, second in zip(by_step(greedy, "next_states"), by_step(random, "next_states"), strict=True):
        np.testing.assert_array_equal(first, second)
        assert (np.diff(first, axis=0) != 0).any(axis=-1).all()  # the memory moves at every step


def test_states_advance_in_the_warm_up_too() -> None:
    recorder = Recorder()
    make_rdqn(learning_starts=100).learn(10, recorder)
    _, acting = acted(10, epsilon=0.0)
    for warm_up, later in zip(by_step(recorder, "next_states"), by_step(acting, "next_states"), strict=True):
        np.testing.assert_array_equal(warm_up, later)


class ConstantObservation(gym.Env[Any, Any]):
    """One of 50 actions, always the same observation: a random action is nearly never the greedy one."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(50)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return np.ones(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return np.ones(2, np.float32), 0.0, False, False, {}


def exploring(model: Any, recorder: Recorder) -> np.ndarray:
    """True where a recorded action differs from the greedy one, bool ``[time, env]``."""
    differ = []
    for obs, before, actions in zip(recorder.observations, recorder.states, recorder.actions, strict=True):
        greedy, _ = model.policy.predict(obs, before)
        differ.append(greedy != actions)
    return np.array(differ)


def test_each_environment_tosses_its_own_coin() -> None:
    model, recorder = acted(64 * 20, DummyVecEnv([ConstantObservation] * 64), buffer_size=64 * 20, target_update_interval=64)
    per_step = exploring(model, recorder).sum(axis=1)[1:]  # SB3 sets the first exploration rate after the first step
    assert len(per_step) == 19
    # 64 coins at 0.5 x 49/50: 31.4 +- 4; one coin for all would give 0 or about 63
    assert per_step.min() > 10 and per_step.max() < 54
    assert abs(per_step.mean() - 64 * 0.5 * 49 / 50) < 4


def test_predict_tosses_a_coin_for_each_environment_and_advances_all() -> None:
    model = make_rdqn(DummyVecEnv([ConstantObservation] * 64), buffer_size=64 * 20, target_update_interval=64)
    model.exploration_rate = 0.5
    obs = np.ones((64, 2), np.float32)
    greedy, after_greedy = model.predict(obs, deterministic=True)
    actions, after = model.predict(obs, after_greedy, np.ones(64, bool), deterministic=False)
    assert 10 < (actions != greedy).sum() < 54
    for first, second in zip(after, after_greedy, strict=True):
        np.testing.assert_array_equal(first, second)


def test_each_environment_can_have_its_own_epsilon() -> None:
    model, recorder = acted(8 * 200, DummyVecEnv([ConstantObservation] * 8), per_env_epsilons=True, buffer_size=1600)
    rates = exploring(model, recorder).mean(axis=0)
    np.testing.assert_allclose(rates, ape_x_epsilons(8) * 49 / 50, atol=0.11)
    assert rates[0] > 0.25 and rates[-1] < 0.03
    assert model.exploration_rate == ape_x_epsilons(8)[-1]


def test_no_state_leaks_across_episodes() -> None:
    """Two episodes in a row are, to the bit, two separate runs of predict()."""
    model, recorder = acted(10, epsilon=0.0)
    after = by_step(recorder, "next_states")
    for episode in range(2):
        state = None
        for t in range(5 * episode, 5 * episode + 5):
            action, state = model.predict(recorder.observations[t], state, deterministic=True)
            np.testing.assert_array_equal(action, recorder.actions[t])
            for field, recorded in zip(state, after, strict=True):
                np.testing.assert_array_equal(field, recorded[t])
    assert not any(field[5].any() for field in by_step(recorder, "states"))


def test_environments_reset_their_rows_one_by_one() -> None:
    """Episodes of 3 and of 5 steps side by side: each row as if it were alone."""
    lengths = (3, 5)
    _, together = acted(40, DummyVecEnv([lambda n=n: Counter(n) for n in lengths]), epsilon=0.0)
    for i, length in enumerate(lengths):
        _, alone = acted(20, counters(length=length), epsilon=0.0)
        np.testing.assert_array_equal([obs[i] for obs in together.observations], np.squeeze(alone.observations, 1))
        for field, expected in zip(by_step(together, "next_states"), by_step(alone, "next_states"), strict=True):
            np.testing.assert_allclose(field[:, i], expected[:, 0], atol=1e-6)


def test_the_state_before_the_step_is_stored_and_gives_the_values_of_acting() -> None:
    """From each stored state, the unroll of the window passes through the states that acting had at these steps."""
    model, recorder = acted(48, counters(length=12), trace_length=3, burn_in_length=2)
    buffer = model.replay_buffer
    before, after = by_step(recorder, "states"), by_step(recorder, "next_states")
    batch = buffer.sample(64)
    seen = 0
    for b in range(64):
        first_trained = int(batch.indices[b])  # one environment, and the ring is not full: the position is the time
        t = first_trained - int(batch.burn_in_lengths[b])
        if batch.episode_starts[b]:
            assert t % 12 == 0
            continue
        seen += 1
        for stored, acting in zip(batch.core_state, before, strict=True):
            np.testing.assert_array_equal(stored[b], acting[t, 0])
        state = model.q_net.initial_state(1)._make(array[b : b + 1] for array in batch.core_state)
        with th.no_grad():
            state = model.q_net.advance(batch.burn_in_observations[: batch.burn_in_lengths[b], b : b + 1], state)
            n = int(batch.mask[:, b].sum())
            q_values, state = model.q_net.unroll(batch.observations[:n, b : b + 1], state)
        for k in range(n):
            acting_state = model.q_net.initial_state(1)._make(th.as_tensor(f[first_trained + k]) for f in before)
            obs = th.as_tensor(recorder.observations[first_trained + k])
            with th.no_grad():
                acting_q_values, _ = model.q_net(obs, acting_state)
            th.testing.assert_close(q_values[k], acting_q_values, atol=1e-6, rtol=1e-5)
        for field, expected in zip(state, after, strict=True):
            np.testing.assert_allclose(field, expected[first_trained + n - 1], atol=1e-6)
    assert seen > 10


def windows(model: Any) -> set[tuple[int, int]]:
    """First and last position of every window of the only environment, burn-in included."""
    buffer = model.replay_buffer
    buffer.check_valid()
    found = set()
    for position in np.flatnonzero(buffer.window_lengths[:, 0]):
        burn_in = min(buffer.episode_steps[position, 0], buffer.burn_in_length)
        found.add((int(position - burn_in), int(position + buffer.window_lengths[position, 0] - 1)))
    return found


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_no_window_spans_the_seam_of_two_calls_of_learn(reset_num_timesteps: bool) -> None:
    """The first call ends within an episode; the second starts another, or goes on with it."""
    model = make_rdqn(counters(length=50), learning_starts=0, trace_length=4, burn_in_length=2)
    seam = 8
    model.learn(seam)
    model.learn(8, reset_num_timesteps=reset_num_timesteps)
    buffer = model.replay_buffer
    assert buffer.size() == 2 * seam
    restarted = bool(buffer.dones[seam - 1, 0])
    assert restarted == reset_num_timesteps
    spanning = {(first, last) for first, last in windows(model) if first < seam <= last}
    if reset_num_timesteps:
        assert buffer.timeouts[seam - 1, 0]  # bootstrapped from its own next observation
        assert not spanning
        assert buffer.episode_steps[seam, 0] == 0
        np.testing.assert_array_equal(buffer._final_observations[seam - 1, 0]["observation"][0], np.float32(seam / 5))
    else:
        assert spanning  # SB3 goes on with the same episode, so its windows are whole
        assert buffer.episode_steps[seam, 0] == seam


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_a_callback_may_stop_learn_in_the_middle_of_a_step(reset_num_timesteps: bool) -> None:
    """The step that was not stored is lost; what follows is a new episode and not its continuation."""
    model = make_rdqn(counters(length=50), learning_starts=0)
    model.learn(100, StopAt(7))
    assert model.num_timesteps == 7 and model.replay_buffer.size() == 6
    recorder = Recorder()
    model.learn(8, recorder, reset_num_timesteps=reset_num_timesteps)
    assert model.replay_buffer.timeouts[5, 0] and model.replay_buffer.episode_steps[6, 0] == 0
    assert not any(field.any() for field in recorder.states[0])
    assert all(last < 6 or first >= 6 for first, last in windows(model))
    np.testing.assert_array_equal(model.replay_buffer.observations[6, 0], recorder.observations[0][0])
    assert recorder.observations[0][0, 0] == 0  # the environment was reset


def test_evaluation_does_not_disturb_training() -> None:
    plain = make_rdqn()
    plain.learn(90)
    evaluated = make_rdqn()
    evaluated.learn(90, EvalCallback(counters(2, length=4), eval_freq=7, n_eval_episodes=3, verbose=0, warn=False))
    assert plain._n_updates > 10
    assert_same(parameters(plain), parameters(evaluated))


class Kind(Counter):
    """The same episode over and over, of a length and with observations of its own."""

    def __init__(self, kind: int) -> None:
        super().__init__(length=6 + kind)
        self.kind = kind

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        self.episode = self.kind - 1
        return super().reset(**kwargs)


@pytest.mark.parametrize("n_envs", [1, 4])
def test_evaluate_policy_gives_the_returns_of_single_episodes(n_envs: int) -> None:
    """Side by side run episodes of other lengths, whose actions depend on the memory; oracle: a loop by hand."""
    bare = dict(core=SumCore, core_kwargs=dict(decay=1.0), encoder_arch=[], net_arch=[], dueling=False, skip_connection=False)
    model = make_rdqn(policy_kwargs=bare)
    with th.no_grad():  # 0 once the third numbers seen, of at most 0.75 each, have summed up to 0.9; 1 before
        model.q_net.q_net[0].weight.copy_(th.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
        model.q_net.q_net[0].bias.copy_(th.tensor([-0.9, 0.0]))

    def episode(kind: int, remembers: bool) -> float:
        env = Kind(kind)
        obs, _ = env.reset()
        state, done, total = None, False, 0.0
        while not done:
            action, state = model.predict(obs, state, np.array([not remembers]), deterministic=True)
            obs, reward, done, _, _ = env.step(action)
            total += reward
        return total

    expected = [episode(kind, remembers=True) for kind in range(n_envs)]
    assert expected != [episode(kind, remembers=False) for kind in range(n_envs)], "a lost memory would show"
    env = DummyVecEnv([lambda kind=kind: Kind(kind) for kind in range(n_envs)])
    returns, lengths = evaluate_policy(model, env, 3 * n_envs, return_episode_rewards=True, warn=False)
    assert sorted(zip(lengths, returns, strict=True)) == sorted([(6 + k, r) for k, r in enumerate(expected)] * 3)


def test_previous_action_and_reward_are_the_same_in_acting_and_in_training() -> None:
    env = DummyVecEnv([lambda: PreviousActionReward(Counter(5))])
    model, recorder = acted(30, env, trace_length=4, burn_in_length=3)
    batch = model.replay_buffer.sample(64)
    for b in range(64):
        t = int(batch.indices[b])
        n, burn_in = int(batch.mask[:, b].sum()), int(batch.burn_in_lengths[b])
        acting = np.concatenate(recorder.observations[t - burn_in : t + n])
        replayed = th.cat((batch.burn_in_observations[:burn_in, b], batch.observations[:n, b]))
        np.testing.assert_array_equal(replayed, acting)
        # and they are what the agent did and got: one-hot action, then reward, at the observation that follows
        for k in range(n - int(batch.terminations[n - 1, b])):
            previous_action, previous_reward = batch.observations[k + 1, b, 3:5], batch.observations[k + 1, b, 5]
            assert previous_action.argmax() == batch.actions[k, b] and previous_action.sum() == 1
            assert previous_reward == batch.rewards[k, b]


def test_predict_without_a_state_warns_once() -> None:
    model = make_rdqn()
    obs = np.zeros((1, 3), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(obs)  # the first step of an episode
        model.predict(obs, episode_start=np.ones(1, bool))  # and of another
        model.predict(obs)
    with pytest.warns(UserWarning, match="the memory is reset at every step"):
        model.predict(obs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(obs)


def test_predict_with_a_state_never_warns() -> None:
    model = make_rdqn()
    obs, state = np.zeros((1, 3), np.float32), None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            _, state = model.predict(obs, state, np.zeros(1, bool))
    assert isinstance(state, tuple) and all(isinstance(field, np.ndarray) and len(field) == 1 for field in state)


def test_episode_start_resets_the_marked_rows_only() -> None:
    model = make_rdqn(counters(2))
    obs = np.ones((2, 3), np.float32)
    _, once = model.predict(obs)
    _, twice = model.predict(obs, once, np.array([False, True]))
    for first, second in zip(once, twice, strict=True):
        np.testing.assert_array_equal(second[1], first[1])
        assert (second[0] != first[0]).any()
