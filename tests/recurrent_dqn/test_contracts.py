"""What every algorithm of Stable-Baselines3 promises, kept by one with a memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from toys import Counter, Recorder, SumCore, assert_same, make, parameters, vec

from sb3_attn import MlpPolicy, RecurrentDQN

SWITCHED = [
    {},
    dict(prioritized_replay=True, policy_kwargs=dict(core="gru")),
    dict(trace_length=None, burn_in_length=0, epsilon_ladder=True),
    dict(policy_kwargs=dict(core=SumCore, core_kwargs={}, dueling=False, skip_connection=False)),
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
    model = make(vec(2), **switches).learn(60)
    model.save(tmp_path / "model")
    loaded = RecurrentDQN.load(tmp_path / "model", env=vec(2), device="cpu")
    assert_same(parameters(model), parameters(loaded))
    assert_same_trajectory(model, loaded)
    for name in ("trace_length", "burn_in_length", "td_lambda", "prioritized_replay", "epsilon_ladder", "stored_state"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert type(loaded.replay_buffer) is type(model.replay_buffer)
    assert loaded.replay_buffer.burn_in_length == model.burn_in_length
    n_updates = loaded._n_updates
    loaded.learn(60)
    assert loaded._n_updates > n_updates


def test_the_policy_can_be_saved_alone(tmp_path: Path) -> None:
    model = make().learn(40)
    model.policy.save(tmp_path / "policy")
    assert_same_trajectory(model.policy, MlpPolicy.load(tmp_path / "policy", device="cpu"))


def test_parameters_can_be_handed_over() -> None:
    first, second = make().learn(60), make(seed=1)
    second.set_parameters(first.get_parameters())
    assert_same(parameters(first), parameters(second))
    assert second.policy.optimizer.state_dict()["state"].keys() == first.policy.optimizer.state_dict()["state"].keys()


@pytest.mark.parametrize("n_envs", [1, 2, 16])
def test_the_number_of_environments_may_change_at_load(n_envs: int, tmp_path: Path) -> None:
    make(vec(2)).learn(40).save(tmp_path / "model")
    loaded = RecurrentDQN.load(tmp_path / "model", env=vec(n_envs), target_update_interval=20, device="cpu")
    assert loaded.replay_buffer.n_envs == n_envs
    before = parameters(loaded)
    loaded.learn(160)
    loaded.replay_buffer.check_valid()
    assert any(not th.equal(before[name], value) for name, value in parameters(loaded).items())


@pytest.mark.parametrize("n_envs", [1, 3, 16])
def test_any_number_of_environments(n_envs: int) -> None:
    model = make(vec(n_envs)).learn(96)
    assert model.num_timesteps % n_envs == 0 and model._n_updates > 0
    model.replay_buffer.check_valid()


def test_a_buffer_of_one_step_at_load_is_accepted(tmp_path: Path) -> None:
    """RL Zoo loads so to enjoy an agent without its memory for replay."""
    model = make(vec(2)).learn(40)
    model.save(tmp_path / "model")
    assert_same_trajectory(model, RecurrentDQN.load(tmp_path / "model", buffer_size=1, device="cpu"))
    RecurrentDQN.load(tmp_path / "model", env=vec(2), buffer_size=1, device="cpu").predict(np.zeros((2, 3), np.float32))


def test_set_env_begins_new_episodes() -> None:
    model = make(vec(length=50), learning_starts=0).learn(8)
    model.set_env(vec(length=50))
    recorder = Recorder()
    model.learn(8, recorder, reset_num_timesteps=False)
    assert not any(field.any() for field in recorder.states[0])
    assert model.replay_buffer.timeouts[7, 0] and model.replay_buffer.episode_steps[8, 0] == 0
    model.replay_buffer.check_valid()


def test_a_replay_comes_back_as_it_was(tmp_path: Path) -> None:
    model = make(vec(2), prioritized_replay=True).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = RecurrentDQN.load(tmp_path / "model", env=vec(2), device="cpu")
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


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_learning_twice(reset_num_timesteps: bool) -> None:
    model = make().learn(40)
    model.learn(40, reset_num_timesteps=reset_num_timesteps)
    assert model.num_timesteps == (40 if reset_num_timesteps else 80)
    model.replay_buffer.check_valid()


def test_a_seed_determines_everything() -> None:
    first, second, third = (make(vec(2), prioritized_replay=True, seed=seed).learn(80) for seed in (5, 5, 6))
    assert_same(parameters(first), parameters(second))
    assert not th.equal(first.q_net.q_net[0].weight, third.q_net.q_net[0].weight)
    np.testing.assert_array_equal(first.replay_buffer.actions, second.replay_buffer.actions)


def test_vec_normalize(tmp_path: Path) -> None:
    env = VecNormalize(vec(2), norm_obs=True, norm_reward=True)
    model = make(env, learning_starts=0).learn(60)
    buffer = model.replay_buffer
    assert set(buffer.observations[:5, 0, 0].round(3)) <= {np.float32(k / 5).round(3) for k in range(5)}, "kept raw"
    np.random.seed(0)
    raw = buffer.sample(8)
    np.random.seed(0)
    normalized = buffer.sample(8, env=env)
    th.testing.assert_close(normalized.observations, th.as_tensor(env.normalize_obs(raw.observations.numpy())).float())
    expected = th.as_tensor(env.normalize_reward(raw.rewards.numpy())).float()
    th.testing.assert_close(normalized.rewards[raw.mask], expected[raw.mask])


def test_callbacks(tmp_path: Path) -> None:
    evaluation = EvalCallback(
        vec(), eval_freq=20, best_model_save_path=str(tmp_path), log_path=str(tmp_path), warn=False, verbose=0
    )
    checkpoints = CheckpointCallback(20, str(tmp_path), save_replay_buffer=True)
    calls: list[int] = []
    make().learn(40, [evaluation, checkpoints])
    make().learn(20, lambda locals_, globals_: calls.append(1) or True)
    assert len(calls) == 20
    names = {path.name for path in tmp_path.iterdir()}
    assert {"best_model.zip", "evaluations.npz", "rl_model_20_steps.zip", "rl_model_replay_buffer_40_steps.pkl"} <= names
    RecurrentDQN.load(tmp_path / "rl_model_40_steps", device="cpu")


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bar() -> None:
    pytest.importorskip("rich")
    pytest.importorskip("tqdm")
    make().learn(20, progress_bar=True)


def test_tensorboard_keys(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make(VecMonitor(vec()), tensorboard_log=str(tmp_path)).learn(80)
    events = EventAccumulator(str(tmp_path / "RecurrentDQN_1"))
    events.Reload()
    expected = {"train/loss", "train/td_error", "train/learning_rate", "rollout/exploration_rate", "rollout/ep_rew_mean"}
    assert expected <= set(events.Tags()["scalars"])


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
    model = make(env, policy).learn(48)
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
    model = make().learn(40)
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
