"""Learning does not depend on the unit of the rewards, nor its pace on the number of environments."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_attn import RecurrentDQN
from sb3_attn.recurrent_dqn.return_scale import ReturnScale
from tests.helpers.actors import make_actor
from tests.helpers.environments import Counter
from tests.helpers.models import make_r2d2, make_rdqn


def scaled_counters(factor: float, n_envs: int = 2) -> VecEnv:
    return DummyVecEnv([lambda n=n: gym.wrappers.TransformReward(Counter(n), lambda r: factor * r) for n in (3, 5)[:n_envs]])


def test_the_scale_is_four_standard_deviations_of_all_returns() -> None:
    """Against returns that are added up from the end of the data, for each number of steps; some episodes still run."""
    rng = np.random.default_rng(0)
    rewards, dones = rng.normal(loc=3.0, size=(40, 3)), rng.random((40, 3)) < 0.1
    episode_starts = np.roll(dones, 1, axis=0)
    scale = ReturnScale(gamma=0.9)
    scale.reset(n_envs=3)
    for n_steps in range(1, 41):
        scale.update(rewards[n_steps - 1], episode_starts[n_steps - 1])
        returns = np.zeros((n_steps + 1, 3))
        for t in reversed(range(n_steps)):
            returns[t] = rewards[t] + 0.9 * np.where(dones[t], 0.0, returns[t + 1])
        assert scale.value == pytest.approx(4 * returns[:-1].std(), rel=1e-9)
    scale.reset(n_envs=3)  # other episodes, of one step each
    before = scale.value
    scale.update(np.full(3, 100.0), np.ones(3, bool))
    scale.update(np.full(3, -100.0), np.ones(3, bool))
    assert scale.value > before


def test_a_scale_that_was_saved_with_other_moments_goes_on() -> None:
    """Models once kept the moments of sums of past rewards, in SB3's RunningMeanStd, with one deviation as the scale."""
    moments = RunningMeanStd(epsilon=0.0, shape=())
    moments.update(np.array([1.0, 3.0, 8.0]))
    scale = ReturnScale.__new__(ReturnScale)
    scale.__setstate__(dict(gamma=0.5, _moments=moments, _sums=np.zeros(2)))
    assert scale.value == pytest.approx(np.std([1, 3, 8]))
    scale.reset(1)
    scale.update(np.array([4.0]), np.array([True]))
    assert scale.value == pytest.approx(4 * np.sqrt(3 / 4 * np.var([1, 3, 8]) / 16))


def test_environments_have_returns_of_their_own() -> None:
    """Steps that arrive one environment after the other, as from actors, give the same scale."""
    rng = np.random.default_rng(0)
    rewards, episode_starts = rng.normal(size=(20, 4)), rng.random((20, 4)) < 0.2
    together, apart = ReturnScale(0.9), ReturnScale(0.9)
    together.reset(4)
    apart.reset(4)
    for t in range(20):
        together.update(rewards[t], episode_starts[t])
    for envs in (np.array([0, 1]), np.array([2, 3])):
        for t in range(20):
            apart.update(rewards[t, envs], episode_starts[t, envs], envs)
    assert apart.value == pytest.approx(together.value, rel=1e-9)


def parameters_after(model: RecurrentDQN, n_steps: int = 120) -> list[th.Tensor]:
    model.learn(n_steps)
    assert model._n_updates > 5
    return [parameter.detach().clone() for parameter in model.q_net.parameters()]


@pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
@pytest.mark.parametrize("prioritized_replay", [False, True])
@pytest.mark.parametrize("policy_kwargs", [{}, dict(head="quantile")], ids=str)
@pytest.mark.parametrize("factor", [2.0**-7, 2.0**7])
def test_rewards_in_another_unit_give_the_same_parameters(
    make: Any, policy_kwargs: dict[str, Any], prioritized_replay: bool, factor: float
) -> None:
    """Bit for bit, since these factors are powers of 2; but actors' first values, of some 1e-7, do not grow with them."""
    switches: dict[str, Any] = dict(reward_scaling=True, value_rescaling=False, prioritized_replay=prioritized_replay)
    switches["policy_kwargs"] = policy_kwargs
    # One after the other, since each constructor seeds the global generators
    one = make(scaled_counters(1.0), **switches)
    parameters = parameters_after(one)
    other = make(scaled_counters(factor), **switches)
    equal = partial(th.allclose, atol=1e-4) if prioritized_replay and make is make_r2d2 else th.equal
    assert all(map(equal, parameters, parameters_after(other)))
    obs = th.rand(4, 3)
    q_values, other_q_values = (m.q_net(obs, m.q_net.initial_state(4))[0] for m in (one, other))
    assert equal(factor * q_values, other_q_values), "Q-values keep the unit of the rewards"


def test_without_scaling_the_unit_matters() -> None:
    one, other = (parameters_after(make_rdqn(scaled_counters(f), reward_scaling=False)) for f in (1.0, 0.01))
    assert not all(map(th.equal, one, other))


def test_rewards_that_have_all_been_0_do_no_harm() -> None:
    assert all(parameter.isfinite().all() for parameter in parameters_after(make_rdqn(scaled_counters(0.0))))


@pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
def test_under_vec_normalize_the_scale_is_that_of_normalized_rewards(make: Any) -> None:
    """Those that the update gets; the original ones have a scale of some hundreds."""
    env = VecNormalize(scaled_counters(100.0), norm_obs=False)
    model = make(env, reward_scaling=True, value_rescaling=False).learn(120)
    assert np.sqrt(env.ret_rms.var) > 100 and 0.1 < model.return_scale.value < 10


def test_the_scale_survives_saving(tmp_path: Any) -> None:
    model = make_rdqn(scaled_counters(30.0)).learn(60)
    model.save(tmp_path / "model")
    loaded = RecurrentDQN.load(tmp_path / "model", env=scaled_counters(30.0, n_envs=1), device="cpu")
    assert loaded.return_scale.value == model.return_scale.value > 1
    obs = th.rand(4, 3)
    for net in ("q_net", "q_net_target"):
        mine, theirs = (getattr(m, net) for m in (model, loaded))
        assert th.equal(mine(obs, mine.initial_state(4))[0], theirs(obs, theirs.initial_state(4))[0])
    loaded.learn(20)  # with another number of environments


@pytest.mark.parametrize("n_envs", [1, 3, 8, 16])
def test_by_default_the_number_of_updates_does_not_depend_on_the_number_of_environments(n_envs: int) -> None:
    env = DummyVecEnv([Counter] * n_envs)
    model = RecurrentDQN("MlpPolicy", env, buffer_size=2000, trace_length=3, batch_size=2, learning_starts=0, device="cpu")
    model.learn(480)
    assert model._n_updates == model.num_timesteps // 10 == 480 // 10


@pytest.mark.parametrize("given", [{}, {"train_freq": 3}, {"gradient_steps": 2}])
def test_a_model_that_is_loaded_with_other_environments_keeps_the_ratio_of_the_defaults(given: Any, tmp_path: Path) -> None:
    env = DummyVecEnv([Counter])
    RecurrentDQN("MlpPolicy", env, buffer_size=2000, trace_length=3, device="cpu").save(tmp_path / "model")
    loaded = RecurrentDQN.load(tmp_path / "model", env=DummyVecEnv([Counter] * 16), device="cpu", **given)
    expected = {"train_freq": 10, "gradient_steps": 1} | given if given else {"train_freq": 5, "gradient_steps": 8}
    assert {"train_freq": loaded.train_freq.frequency, "gradient_steps": loaded.gradient_steps} == expected


def test_a_model_of_an_earlier_version_keeps_its_frequency(tmp_path: Path) -> None:
    """Its zip does not tell whether that was the default."""
    env = DummyVecEnv([Counter])
    model = RecurrentDQN("MlpPolicy", env, buffer_size=2000, trace_length=3, train_freq=2, device="cpu")
    model.save(tmp_path / "model", exclude=["default_frequency"])
    loaded = RecurrentDQN.load(tmp_path / "model", env=DummyVecEnv([Counter] * 16), device="cpu")
    assert (loaded.train_freq.frequency, loaded.gradient_steps) == (2, 1)


@pytest.mark.parametrize("make", [make_rdqn, partial(make_r2d2, n_actors=0), partial(make_r2d2, n_actors=1)])
@pytest.mark.parametrize("reset", [True, False])
def test_returns_end_where_learn_begins_new_episodes(make: Any, reset: bool) -> None:
    """With rewards of 1 a return is the larger the longer it is."""
    env = DummyVecEnv([partial(Counter, 1000, reward=1.0)])
    model = make(env, learning_starts=10**6, reward_scaling=True, value_rescaling=False)
    for _ in range(5):
        model.learn(20, reset_num_timesteps=reset)
    goes_on = not reset and getattr(model, "n_actors", 0) == 0
    expected = ReturnScale(model.gamma)
    expected.reset(1)
    for t in range(100):
        expected.update(np.ones(1), np.array([t % 20 == 0 and not goes_on]))
    assert model.return_scale.value == pytest.approx(expected.value)


def test_the_returns_of_an_episode_that_failed_end_there() -> None:
    """It has no last step with ``dones``: its environment has been made anew."""
    model = make_r2d2(DummyVecEnv([partial(Counter, 1000, reward=1.0)]), reward_scaling=True, value_rescaling=False)
    trajectory = make_actor(model).collect(20)
    trajectory.episode_starts[7] = True
    assert not trajectory.dones.any()
    model._update_return_scale(trajectory)
    expected = ReturnScale(model.gamma)
    expected.reset(1)
    for t in range(20):
        expected.update(np.ones(1), np.array([t in (0, 7)]))
    assert model.return_scale.value == expected.value


def test_another_discount_is_that_of_the_scale(tmp_path: Path) -> None:
    make_rdqn(scaled_counters(1.0)).save(tmp_path / "model")
    assert RecurrentDQN.load(tmp_path / "model", gamma=0.5, device="cpu").return_scale.gamma == 0.5


def test_a_given_frequency_counts_as_in_sb3() -> None:
    only_frequency = make_rdqn(DummyVecEnv([Counter] * 3), train_freq=2)
    only_steps = make_rdqn(DummyVecEnv([Counter] * 3), train_freq=None, gradient_steps=5)
    assert (only_frequency.train_freq.frequency, only_frequency.gradient_steps) == (2, 1)
    assert (only_steps.train_freq.frequency, only_steps.gradient_steps) == (4, 5)


@pytest.mark.parametrize(("length", "n_windows"), [(20, 52), (50, 26), (3, 64)])
def test_by_default_a_batch_has_1024_trained_steps(length: int, n_windows: int) -> None:
    """Episodes shorter than the window of 40 steps, longer ones, and some of which there would be too many."""
    env = DummyVecEnv([lambda: Counter(length)])
    model = make_rdqn(env, trace_length=40, batch_size=None, learning_starts=10**6, buffer_size=200).learn(150)
    assert model.n_windows_per_batch(model.batch_size) == n_windows
    assert model.n_windows_per_batch(7) == 7
    model.train(1, model.batch_size)
    assert model._n_updates == 1
