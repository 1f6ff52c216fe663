"""Learning: seeds, seams between calls of learn(), and observations, environments and switches of every kind."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn import DARQNPolicy
from tests.helpers.environments import Counter, counters, walks
from tests.helpers.models import Make, SumCore, assert_same, make_r2d2, make_rdqn, parameters

WHOLE_EPISODES = dict(trace_length=None, burn_in_length=0, sequence_period=None)


# ---------------------------------------------------------------- one call of learn()


def test_a_seed_determines_everything(make: Make) -> None:
    first, second, other = (make(walks(2), prioritized_replay=True, seed=seed).learn(80) for seed in (5, 5, 6))
    assert_same(parameters(first), parameters(second))
    np.testing.assert_array_equal(first.replay_buffer.td_errors, second.replay_buffer.td_errors)
    for name in ("observations", "actions", "rewards"):
        arrays = [getattr(model.replay_buffer, name) for model in (first, second, other)]
        np.testing.assert_array_equal(arrays[0], arrays[1], err_msg=name)
        assert not np.array_equal(arrays[0], arrays[2]), name
    assert not th.equal(first.q_net.q_net[0].weight, other.q_net.q_net[0].weight)


def test_nothing_is_learned_before_learning_starts(make: Make) -> None:
    model = make(walks(2), learning_starts=80)
    before = parameters(model)
    model.learn(80)
    assert model._n_updates == 0
    assert_same(before, parameters(model))
    assert model.learn(40, reset_num_timesteps=False)._n_updates > 0


def test_the_learning_rate_follows_its_schedule(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(walks(2), learning_rate=lambda progress_remaining: 1e-2 * progress_remaining)
    optimizer, step = model.policy.optimizer, model.policy.optimizer.step
    rates: list[tuple[int, float]] = []

    def note(*args: Any, **kwargs: Any) -> Any:
        rates.append((model.num_timesteps, optimizer.param_groups[0]["lr"]))
        return step(*args, **kwargs)

    monkeypatch.setattr(optimizer, "step", note)
    model.learn(80)
    assert rates[0][0] < 40 and rates[-1][0] == 80
    assert [rate for _, rate in rates] == pytest.approx([1e-2 * (1 - n_steps / 80) for n_steps, _ in rates])


def test_surplus_steps_have_no_negative_learning_rate(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(walks(2), learning_rate=lambda progress_remaining: 1e-2 * progress_remaining)
    optimizer, step = model.policy.optimizer, model.policy.optimizer.step
    rates: list[float] = []
    monkeypatch.setattr(optimizer, "step", lambda *args: (rates.append(optimizer.param_groups[0]["lr"]), step(*args)))
    model.learn(81)
    assert model.num_timesteps > 81 and rates[0] > 0 and rates[-1] == 0 and min(rates) == 0


def test_nothing_is_learned_in_no_steps(make: Make) -> None:
    assert make(walks(2)).learn(0).num_timesteps == 0


@pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
def test_vec_normalize_replay_is_raw_and_batches_are_normalized(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = VecNormalize(counters(2), norm_obs=True, norm_reward=True)
    model = make(env, learning_starts=0)
    buffer, batches = model.replay_buffer, []
    sample = buffer.sample
    monkeypatch.setattr(buffer, "sample", lambda *args, **kwargs: batches.append(sample(*args, **kwargs)) or batches[-1])
    model.learn(80)
    assert set(buffer.observations[:40, 0, 0].round(3)) == {np.float32(k / 5).round(3) for k in range(5)}
    assert (buffer.rewards % 1 == 0).all() and buffer.rewards.max() > 1
    # The last batch is that of the last update, after which the statistics did not change
    positions, env_indices = np.divmod(batches[-1].indices, 2)
    raw_obs, raw_rewards = buffer.observations[positions, env_indices], buffer.rewards[positions, env_indices]
    np.testing.assert_allclose(batches[-1].observations[0], env.normalize_obs(raw_obs), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batches[-1].rewards[0], env.normalize_reward(raw_rewards), rtol=1e-5)


# ---------------------------------------------------------------- several calls of learn()


def test_learning_again_counts_from_zero_but_keeps_what_was_learned(make: Make) -> None:
    model = make(walks(2)).learn(40)
    n_updates, n_windows = model._n_updates, model.replay_buffer.n_windows_added
    model.learn(40)
    assert model.num_timesteps == 40
    assert model._n_updates > n_updates > 0 and model.replay_buffer.n_windows_added > n_windows > 0


def test_learning_can_start_before_the_first_window(make: Make) -> None:
    model = make(counters(2, length=30), learning_starts=0, batch_size=1, **WHOLE_EPISODES).learn(40)
    assert model.replay_buffer.n_windows == model._n_updates == 0
    assert model.learn(40, reset_num_timesteps=False)._n_updates > 0


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_no_window_spans_the_seam_of_two_calls_of_learn(make: Make, reset_num_timesteps: bool) -> None:
    """Each call ends within an episode. The next one starts another, or goes on with it as SB3 does."""
    model = make(counters(2, length=60), learning_starts=0, trace_length=4, burn_in_length=2, sequence_period=1)
    buffer, env_indices = model.replay_buffer, np.arange(model.n_replay_envs)
    seams = []
    for _ in range(3):
        model.learn(40, reset_num_timesteps=reset_num_timesteps)
        seams.append(buffer.pos.copy())
    n_steps = 40 // model.n_replay_envs
    assert [seam.tolist() for seam in seams] == [[i * n_steps] * model.n_replay_envs for i in (1, 2, 3)]
    buffer.check_valid()
    assert buffer.n_windows > 20
    # The same episode goes on only where the learner's environments have not been reset
    continues = getattr(model, "n_actors", 0) == 0 and not reset_num_timesteps
    for seam in seams[:2]:
        assert (buffer.dones[seam - 1, env_indices] != continues).all()
        assert (buffer.timeouts[seam - 1, env_indices] != continues).all()
        np.testing.assert_array_equal(buffer.episode_steps[seam, env_indices], seam if continues else 0)
        if not continues:  # bootstrapped from its own next observation
            finals = [buffer._observations.finals[position - 1, i]["observation"] for i, position in enumerate(seam)]
            assert {float(final.ravel()[0]) for final in finals} == {np.float32(n_steps / 5)}
    spanning = 0
    for position, env_index in np.argwhere(buffer.window_lengths > 0):
        first = position - min(buffer.episode_steps[position, env_index], buffer.burn_in_length)
        last = position + buffer.window_lengths[position, env_index] - 1
        spanning += any(first < seam[env_index] <= last for seam in seams)
    assert (spanning > 0) == continues


@pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
def test_the_memory_goes_on_over_the_seam_of_two_calls_of_learn(make: Make) -> None:
    """The stored states are those of a plain loop over all observations."""
    model = make(counters(1, length=1000), learning_starts=10**6, trace_length=4, burn_in_length=2, sequence_period=1)
    for _ in range(2):
        model.learn(20, reset_num_timesteps=False)
    states, state = model.replay_buffer._core_states, model.q_net.initial_state(1)
    for position, obs in enumerate(model.replay_buffer.observations[:40]):
        if position > 0:
            for array, expected in zip(states.get(np.array([position]), np.array([0])), state, strict=True):
                np.testing.assert_allclose(array, expected, atol=1e-6)
        with th.no_grad():
            _, state = model.q_net(th.as_tensor(obs), state)


# ---------------------------------------------------------------- environments


IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
SPACES = [
    ("MlpPolicy", spaces.Discrete(5)),
    ("MlpPolicy", spaces.MultiDiscrete([3, 2])),
    ("MlpPolicy", spaces.MultiBinary(4)),
    ("MlpPolicy", spaces.Box(-1, 1, (2, 3), np.float32)),
    ("CnnPolicy", IMAGE),
    ("MultiInputPolicy", spaces.Dict({"image": IMAGE, "vector": spaces.Box(-1, 1, (2,), np.float32)})),
    ("MultiInputPolicy", spaces.Dict({"number": spaces.Discrete(3), "bits": spaces.MultiBinary(2)})),
]


@pytest.mark.parametrize(("policy", "space"), SPACES, ids=str)
def test_every_kind_of_observation(make: Make, policy: str, space: spaces.Space, tmp_path: Any) -> None:
    model = make(counters(2, truncates=True, space=space), policy).learn(40)
    assert model._n_updates > 0
    model.replay_buffer.check_valid()
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", device="cpu")
    obs = model.get_env().reset()
    action, state = model.predict(obs, deterministic=True)
    loaded_action, loaded_state = loaded.predict(obs, deterministic=True)
    np.testing.assert_array_equal(action, loaded_action)
    np.testing.assert_array_equal(state[0], loaded_state[0])
    assert action.shape == (2,)
    # One observation without a batch axis
    one = {key: array[0] for key, array in obs.items()} if isinstance(obs, dict) else obs[0]
    single, single_state = model.predict(one, episode_start=np.ones(1, bool), deterministic=True)
    assert single == action[0] and single_state[0].shape == (1, model.q_net.core.output_size)


@pytest.mark.parametrize("n_envs", [1, 3, 16])
def test_any_number_of_environments(make: Make, n_envs: int) -> None:
    model = make(counters(n_envs)).learn(200)
    assert model.num_timesteps % n_envs == 0 and model._n_updates > 0
    model.replay_buffer.check_valid()


# ---------------------------------------------------------------- switches

ATTENTION = dict(hidden_size=6, attention_size=6)
SWITCHES: list[dict[str, Any]] = [
    {},
    dict(policy_kwargs=dict(dueling=False)),
    dict(policy_kwargs=dict(skip_connection=False)),
    dict(policy_kwargs=dict(core="gru")),
    dict(policy_kwargs=dict(core="identity", core_kwargs={})),
    dict(policy_kwargs=dict(core="key_value", core_kwargs=dict(hidden_size=6, n_slots=4, n_hops=2))),
    dict(policy_kwargs=dict(core="ntm", core_kwargs=dict(hidden_size=6, n_slots=5, word_size=4))),
    dict(policy_kwargs=dict(core="gtrxl", core_kwargs=dict(hidden_size=8, n_heads=2, memory_length=3))),
    dict(policy_kwargs=dict(core=SumCore, core_kwargs=dict(decay=0.9))),
    dict(policy_kwargs=dict(core=SumCore, core_kwargs={}, encoder_arch=[], net_arch=[])),
    dict(policy=DARQNPolicy, policy_kwargs=dict(core_kwargs=ATTENTION)),
    dict(policy=DARQNPolicy, policy_kwargs=dict(core_kwargs=dict(selection="reinforce", **ATTENTION))),
    dict(double_q=False, value_rescaling=False),
    dict(td_lambda=None, n_steps=1),
    dict(td_lambda=None, n_steps=3),
    dict(td_lambda=0.0, n_steps=1),
    dict(td_lambda=0.8, n_steps=1),
    dict(value_rescaling=True),
    dict(value_rescaling=True, td_lambda=None, n_steps=2, prioritized_replay=True),
    dict(stored_state=False),
    dict(burn_in_length=0),
    dict(burn_in_length=7),
    dict(prioritized_replay=True),
    dict(prioritized_replay=False),
    dict(sequence_period=1),
    dict(sequence_period=2, prioritized_replay=True),
    dict(**WHOLE_EPISODES),
    dict(prioritized_replay=True, policy_kwargs=dict(core="gru"), **WHOLE_EPISODES),
    dict(tau=0.5),
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_switch_trains(make: Make, switches: dict[str, Any]) -> None:
    switches = dict(switches)
    if switches.get("policy") is DARQNPolicy:  # it takes no encoder
        switches["policy_kwargs"] = dict(encoder_arch=[]) | switches["policy_kwargs"]
    model = make(DummyVecEnv([lambda i=i: Counter(3 + i, truncates=i == 1) for i in range(3)]), **switches)
    before = [parameter.clone() for parameter in model.q_net.parameters()]
    model.learn(120)
    model.replay_buffer.check_valid()
    assert model._n_updates >= 5
    # train() raises at a loss that is not finite
    after = list(model.q_net.parameters())
    assert all(p.isfinite().all() for p in after)
    unused = {name for (name, p), old in zip(model.q_net.named_parameters(), before, strict=True) if not th.any(p != old)}
    # Every parameter learns, except a bias that moves the scores of all regions alike
    assert unused <= {"core.attention.score.vector.bias"}
