"""The promises of every Stable-Baselines3 algorithm, kept by one with a memory."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn import MlpPolicy, RecurrentDQN
from sb3_attn.common.exploration import ape_x_epsilons
from tests.helpers.callbacks import Recorder
from tests.helpers.environments import Counter, counters
from tests.helpers.models import SumCore, assert_same, make_rdqn, parameters

SWITCHED = [
    {},
    dict(prioritized_replay=True, policy_kwargs=dict(core="gru")),
    dict(trace_length=None, burn_in_length=0, per_env_epsilons=True),
    dict(policy_kwargs=dict(core=SumCore, core_kwargs={}, dueling=False, skip_connection=False)),
    dict(policy_kwargs=dict(core="ntm", core_kwargs=dict(hidden_size=6, n_slots=5, word_size=4))),
    dict(policy_kwargs=dict(core="dnc", core_kwargs=dict(hidden_size=6, n_slots=5, word_size=4, n_reads=2))),
    dict(policy_kwargs=dict(core="key_value", core_kwargs=dict(hidden_size=6, n_slots=4, n_hops=2))),
    dict(policy_kwargs=dict(core="key_value", core_kwargs=dict(hidden_size=6, n_slots=4, context="mqn"))),
    dict(policy_kwargs=dict(core="gtrxl", core_kwargs=dict(hidden_size=8, n_heads=2, memory_length=3))),
]


def trajectory(model: Any, steps: int = 8) -> tuple[list[np.ndarray], Any]:
    """Greedy actions on fixed observations, and the last state."""
    observations = np.random.default_rng(1).normal(size=(steps, 2, 3)).astype(np.float32)
    actions, state = [], None
    for obs in observations:
        action, state = model.predict(obs, state, np.zeros(2, bool), deterministic=True)
        actions.append(action)
    return actions, state


def assert_same_trajectory(first: Any, second: Any) -> None:
    (actions, state), (other_actions, other_state) = trajectory(first), trajectory(second)
    np.testing.assert_array_equal(actions, other_actions)
    assert len(state) == len(other_state) > 0
    for field, other in zip(state, other_state, strict=True):
        np.testing.assert_array_equal(field, other)


@pytest.mark.parametrize("switches", SWITCHED, ids=str)
def test_a_loaded_model_predicts_and_trains_as_the_saved_one(switches: dict, tmp_path: Path) -> None:
    model = make_rdqn(counters(2), **switches).learn(60)
    model.save(tmp_path / "model")
    loaded = RecurrentDQN.load(tmp_path / "model", env=counters(2), device="cpu")
    assert_same(parameters(model), parameters(loaded))
    assert_same_trajectory(model, loaded)
    for name in ("trace_length", "burn_in_length", "td_lambda", "prioritized_replay", "per_env_epsilons", "stored_state"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert type(loaded.replay_buffer) is type(model.replay_buffer)
    assert loaded.replay_buffer.burn_in_length == model.burn_in_length
    n_updates = loaded._n_updates
    loaded.learn(60)
    assert loaded._n_updates > n_updates


def test_the_policy_can_be_saved_alone(tmp_path: Path) -> None:
    model = make_rdqn().learn(40)
    model.policy.save(tmp_path / "policy")
    assert_same_trajectory(model.policy, MlpPolicy.load(tmp_path / "policy", device="cpu"))


def test_parameters_can_be_handed_over() -> None:
    """With those of the optimizer: the next update is the same."""
    first, second = make_rdqn().learn(60), make_rdqn(seed=1).learn(20)
    second.set_parameters(copy.deepcopy(first.get_parameters()))  # torch's optimizers take tensors over uncopied
    second.replay_buffer = first.replay_buffer
    assert_same(parameters(first), parameters(second))
    for model in (first, second):
        np.random.seed(0)
        model.train(1, 8)
    assert_same(parameters(first), parameters(second))


@pytest.mark.parametrize(("saved", "n_envs"), [(2, 2), (1, 16), (16, 1)])
def test_the_number_of_environments_may_change_at_load(saved: int, n_envs: int, tmp_path: Path) -> None:
    make_rdqn(counters(saved), per_env_epsilons=True).learn(48).save(tmp_path / "model")
    loaded = RecurrentDQN.load(tmp_path / "model", env=counters(n_envs), device="cpu")
    assert loaded.replay_buffer.n_envs == n_envs
    before = parameters(loaded)
    loaded.learn(160)
    assert loaded.exploration_rate == ape_x_epsilons(n_envs)[-1]
    loaded.replay_buffer.check_valid()
    assert any(not th.equal(before[name], value) for name, value in parameters(loaded).items())


@pytest.mark.parametrize("n_envs", [1, 3, 16])
def test_any_number_of_environments(n_envs: int) -> None:
    model = make_rdqn(counters(n_envs)).learn(96)
    assert model.num_timesteps % n_envs == 0 and model._n_updates > 0
    model.replay_buffer.check_valid()


def test_a_buffer_of_one_step_at_load_is_accepted(tmp_path: Path) -> None:
    """RL Zoo loads so to enjoy an agent without its memory for replay."""
    model = make_rdqn(counters(2)).learn(40)
    model.save(tmp_path / "model")
    assert_same_trajectory(model, RecurrentDQN.load(tmp_path / "model", buffer_size=1, device="cpu"))
    RecurrentDQN.load(tmp_path / "model", env=counters(2), buffer_size=1, device="cpu").predict(np.zeros((2, 3), np.float32))


def test_set_env_begins_new_episodes() -> None:
    model = make_rdqn(counters(length=50), learning_starts=0).learn(8)
    model.set_env(counters(length=50))
    recorder = Recorder()
    model.learn(8, recorder, reset_num_timesteps=False)
    assert not any(field.any() for field in recorder.states[0])
    assert model.replay_buffer.timeouts[7, 0] and model.replay_buffer.episode_steps[8, 0] == 0
    model.replay_buffer.check_valid()


def test_a_replay_comes_back_as_it_was(tmp_path: Path) -> None:
    model = make_rdqn(counters(2), prioritized_replay=True).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = RecurrentDQN.load(tmp_path / "model", env=counters(2), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay")
    batches = []
    for buffer in (model.replay_buffer, loaded.replay_buffer):
        np.random.seed(3)
        batches.append(buffer.sample(16))
    for name, first, second in zip(batches[0]._fields, *batches, strict=True):
        for array, other in zip(*[x if isinstance(x, tuple) else (x,) for x in (first, second)], strict=True):
            np.testing.assert_array_equal(array, other, err_msg=name)
    size = loaded.replay_buffer.size()
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.replay_buffer.size() > size and (loaded.replay_buffer.episode_steps[size] == 0).all()
    loaded.replay_buffer.check_valid()


def test_loading_a_replay_begins_new_episodes(tmp_path: Path) -> None:
    model = make_rdqn(counters(length=50)).learn(8)
    model.save_replay_buffer(tmp_path / "replay")
    model.load_replay_buffer(tmp_path / "replay")
    model.learn(8, reset_num_timesteps=False)
    assert model.replay_buffer.timeouts[7, 0] and model.replay_buffer.episode_steps[8, 0] == 0


def test_learning_on_is_learning_in_one_go() -> None:
    constant = dict(env=counters(2, length=7), exploration_initial_eps=0.3, exploration_final_eps=0.3, prioritized_replay=True)
    once, twice = make_rdqn(**constant).learn(80), make_rdqn(**constant | dict(env=counters(2, length=7)))
    for _ in range(2):
        twice.learn(40, reset_num_timesteps=False)
    assert twice.num_timesteps == 80 and twice._n_updates == once._n_updates > 5
    assert_same(parameters(once), parameters(twice))
    np.testing.assert_array_equal(once.replay_buffer.actions, twice.replay_buffer.actions)


def test_learning_anew_counts_and_explores_anew_but_keeps_what_was_learned() -> None:
    model = make_rdqn().learn(40)
    n_updates, rates = model._n_updates, []
    assert model.exploration_rate == 0.05
    model.learn(40, lambda *_: rates.append(model.exploration_rate) or True)
    assert model.num_timesteps == 40 and max(rates[1:]) > 0.8
    assert model._n_updates > n_updates and model.replay_buffer.size() == 80


def test_learning_can_start_before_the_first_window() -> None:
    model = make_rdqn(counters(length=20), learning_starts=0, trace_length=None, burn_in_length=0).learn(16)
    assert model.replay_buffer.n_windows == model._n_updates == 0
    assert model.learn(8, reset_num_timesteps=False)._n_updates > 0


def test_a_seed_determines_everything() -> None:
    first, second, third = (make_rdqn(counters(2), prioritized_replay=True, seed=seed).learn(80) for seed in (5, 5, 6))
    assert_same(parameters(first), parameters(second))
    assert not th.equal(first.q_net.q_net[0].weight, third.q_net.q_net[0].weight)
    np.testing.assert_array_equal(first.replay_buffer.actions, second.replay_buffer.actions)


def test_vec_normalize_replay_is_raw_and_batches_are_normalized(monkeypatch: pytest.MonkeyPatch) -> None:
    env = VecNormalize(counters(2), norm_obs=True, norm_reward=True)
    model = make_rdqn(env, learning_starts=0)
    buffer, batches = model.replay_buffer, []
    sample = buffer.sample
    monkeypatch.setattr(buffer, "sample", lambda *args, **kwargs: batches.append(sample(*args, **kwargs)) or batches[-1])
    model.learn(64)
    assert set(buffer.observations[:5, 0, 0].round(3)) <= {np.float32(k / 5).round(3) for k in range(5)}
    assert (buffer.rewards % 1 == 0).all() and buffer.rewards.max() > 1
    # the last batch is that of the last update, after which the statistics did not change
    positions, env_indices = np.divmod(batches[-1].indices, 2)
    raw_obs, raw_rewards = buffer.observations[positions, env_indices], buffer.rewards[positions, env_indices]
    np.testing.assert_allclose(batches[-1].observations[0], env.normalize_obs(raw_obs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batches[-1].rewards[0], env.normalize_reward(raw_rewards), rtol=1e-5)


def test_the_burn_in_that_refreshes_old_states_is_on_by_default() -> None:
    """Stored states come from older weights, and under VecNormalize from older statistics."""
    model = RecurrentDQN("MlpPolicy", counters(), device="cpu")
    assert model.stored_state and model.replay_buffer.burn_in_length > 0


def test_what_is_saved_can_be_chosen(tmp_path: Path) -> None:
    make_rdqn(gamma=0.5, td_lambda=0.3).save(tmp_path / "model", exclude=["gamma"])
    assert "gamma" not in load_from_zip_file(tmp_path / "model")[0]
    loaded = RecurrentDQN.load(tmp_path / "model", device="cpu")
    assert (loaded.gamma, loaded.td_lambda) == (0.99, 0.3)


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
def test_every_kind_of_observation(policy: str, space: spaces.Space, tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: Counter(5, truncates=True, space=space)] * 2)
    model = make_rdqn(env, policy).learn(48)
    assert model._n_updates > 0
    model.replay_buffer.check_valid()
    model.save(tmp_path / "model")
    loaded = RecurrentDQN.load(tmp_path / "model", device="cpu")
    obs = model.get_env().reset()
    action, state = model.predict(obs, deterministic=True)
    loaded_action, loaded_state = loaded.predict(obs, deterministic=True)
    np.testing.assert_array_equal(action, loaded_action)
    np.testing.assert_array_equal(state[0], loaded_state[0])
    assert action.shape == (2,)
    # one observation without a batch axis
    one = {key: array[0] for key, array in obs.items()} if isinstance(obs, dict) else obs[0]
    single, single_state = model.predict(one, episode_start=np.ones(1, bool), deterministic=True)
    assert single == action[0] and single_state[0].shape == (1, 8)


# SB3 leaves the file it was writing to be closed by the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["model", "replay"])
def test_a_failed_save_leaves_the_old_file_whole(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_rdqn().learn(40)
    path = tmp_path / ("model.zip" if what == "model" else "replay.pkl")
    save = model.save if what == "model" else model.save_replay_buffer
    save(path)
    old = path.read_bytes()

    class Unpicklable:
        def __reduce__(self) -> Any:
            raise OSError("no space left on device")

    if what == "model":
        monkeypatch.setattr(th, "save", lambda *args, **kwargs: Unpicklable().__reduce__())
    else:
        model.replay_buffer.broken = Unpicklable()
    with pytest.raises(OSError, match="no space left"):
        save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
