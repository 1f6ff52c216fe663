"""predict() and evaluate_policy(): the memory is carried from step to step and reset at the start of episodes."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from tests.helpers.environments import ConstantObservation, Counter, counters, walks
from tests.helpers.models import Make, SumCore


def test_predict_without_a_state_warns_once(make: Make) -> None:
    model = make(counters())
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


def test_predict_with_a_state_never_warns(make: Make) -> None:
    model = make(counters())
    obs, state = np.zeros((1, 3), np.float32), None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            _, state = model.predict(obs, state, np.zeros(1, bool))
    assert isinstance(state, tuple) and all(isinstance(field, np.ndarray) and len(field) == 1 for field in state)


def test_episode_start_resets_the_marked_rows_only(make: Make) -> None:
    model = make(counters(2))
    obs = np.ones((2, 3), np.float32)
    _, once = model.predict(obs)
    _, twice = model.predict(obs, once, np.array([False, True]))
    for first, second in zip(once, twice, strict=True):
        np.testing.assert_array_equal(second[1], first[1])
        assert (second[0] != first[0]).any()


def test_episode_starts_may_have_any_type_but_not_any_length(make: Make) -> None:
    model = make(counters(2))
    obs = model.env.reset()
    _, state = model.predict(obs)
    fresh = model.predict(obs, state, np.ones(2, bool), deterministic=True)[1]
    for starts in (np.ones(2), [1, 1], (True, True)):
        assert all(map(np.array_equal, model.predict(obs, state, starts, deterministic=True)[1], fresh))
    with pytest.raises(ValueError, match=r"episode_start=\[True\] does not fit 2 observations"):
        model.predict(obs, state, [True])
    single = tuple(array[:1] for array in state)
    assert model.predict(obs[0], single, True)[0].shape == ()


def test_predict_refuses_the_tuple_that_a_gym_reset_returns(make: Make) -> None:
    with pytest.raises(ValueError, match="mixing Gym API"):
        make(counters()).predict(Counter().reset())


def test_predict_refuses_a_state_of_another_shape(make: Make) -> None:
    model = make(counters())
    _, state = model.predict(np.zeros((1, 3), np.float32))
    (size,) = {array.shape[1] for array in state}
    with pytest.raises(ValueError, match=rf"state has arrays of shapes \[\(1, {size}\), \(1, {size}\)\].*\(2, {size}\)"):
        model.predict(np.zeros((2, 3), np.float32), state)
    with pytest.raises(ValueError, match=r"state=5 must be the tuple of arrays that predict\(\) returned, or None"):
        model.predict(np.zeros((1, 3), np.float32), 5)
    with pytest.raises(ValueError, match="pass the state that predict"):
        model.predict(np.zeros((1, 3), np.float32), state[:1])


def test_predict_explores_in_each_environment_on_its_own_and_advances_all(make: Make) -> None:
    model = make(DummyVecEnv([ConstantObservation] * 64), buffer_size=64 * 20, target_update_interval=64)
    model.exploration_rate = 0.5
    obs = np.ones((64, 2), np.float32)
    greedy, after_greedy = model.predict(obs, deterministic=True)
    actions, after = model.predict(obs, after_greedy, np.ones(64, bool), deterministic=False)
    # 64 coins at 0.5 x 49/50: 31.4 +- 4; one coin for all would give 0 or about 63
    assert 10 < (actions != greedy).sum() < 54
    for first, second in zip(after, after_greedy, strict=True):
        np.testing.assert_array_equal(first, second)


class Fixed(Counter):
    """The same episode over and over; its length and its observations depend on ``kind``."""

    def __init__(self, kind: int) -> None:
        super().__init__(length=6 + kind)
        self.kind = kind

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        self.episode = self.kind - 1
        return super().reset(**kwargs)


@pytest.mark.parametrize("n_envs", [1, 4])
def test_evaluate_policy_gives_the_returns_of_single_episodes(make: Make, n_envs: int) -> None:
    """Side by side run episodes of other lengths, whose actions depend on the memory; oracle: a loop by hand."""
    bare = dict(core=SumCore, core_kwargs=dict(decay=1.0), encoder_arch=[], net_arch=[], dueling=False, skip_connection=False)
    model = make(counters(), policy_kwargs=bare)
    with th.no_grad():  # 0 once the third numbers seen, of at most 0.75 each, have summed up to 0.9; 1 before
        model.q_net.q_net[0].weight.copy_(th.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
        model.q_net.q_net[0].bias.copy_(th.tensor([-0.9, 0.0]))

    def episode(kind: int, remembers: bool) -> float:
        env = Fixed(kind)
        obs, _ = env.reset()
        state, done, total = None, False, 0.0
        while not done:
            action, state = model.predict(obs, state, np.array([not remembers]), deterministic=True)
            obs, reward, done, _, _ = env.step(action)
            total += reward
        return total

    expected = [episode(kind, remembers=True) for kind in range(n_envs)]
    assert expected != [episode(kind, remembers=False) for kind in range(n_envs)], "a lost memory would show"
    env = DummyVecEnv([lambda kind=kind: Fixed(kind) for kind in range(n_envs)])
    returns, lengths = evaluate_policy(model, env, 3 * n_envs, return_episode_rewards=True, warn=False)
    assert sorted(zip(lengths, returns, strict=True)) == sorted([(6 + k, r) for k, r in enumerate(expected)] * 3)


def test_evaluate_policy_after_learning(make: Make) -> None:
    model = make(walks(2)).learn(40)
    returns, lengths = evaluate_policy(model, VecMonitor(walks(2)), 6, return_episode_rewards=True)
    assert len(returns) == 6 and 2 <= min(lengths) <= max(lengths) <= 8
