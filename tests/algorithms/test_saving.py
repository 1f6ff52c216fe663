"""Zips, replay buffers and parameters come back as they were, and what does not fit a model is refused."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.save_util import load_from_zip_file

import sb3_attn
from sb3_attn import R2D2, RecurrentDQN
from tests.helpers.environments import counters, walks
from tests.helpers.models import Make, SumCore, assert_same, make_rdqn, parameters

WHOLE_EPISODES = dict(trace_length=None, burn_in_length=0, sequence_period=None)
SWITCHED: list[dict[str, Any]] = [
    {},
    dict(prioritized_replay=True, policy_kwargs=dict(core="gru")),
    dict(prioritized_replay=False, stored_state=False, **WHOLE_EPISODES),
    dict(policy_kwargs=dict(core=SumCore, core_kwargs={}, dueling=False, skip_connection=False)),
    dict(policy_kwargs=dict(core="ntm", core_kwargs=dict(hidden_size=6, n_slots=5, word_size=4))),
    dict(policy_kwargs=dict(core="dnc", core_kwargs=dict(hidden_size=6, n_slots=5, word_size=4, n_reads=2))),
    dict(policy_kwargs=dict(core="key_value", core_kwargs=dict(hidden_size=6, n_slots=4, n_hops=2))),
    dict(policy_kwargs=dict(core="key_value", core_kwargs=dict(hidden_size=6, n_slots=4, context="mqn"))),
    dict(policy_kwargs=dict(core="gtrxl", core_kwargs=dict(hidden_size=8, n_heads=2, memory_length=3))),
]
#: Attributes that a zip keeps, besides the parameters
KEPT = [
    *("trace_length", "burn_in_length", "sequence_period", "n_steps", "td_lambda", "trace_tolerance", "value_rescaling"),
    *("double_q", "clipped_double_q", "prioritized_replay"),
    *("stored_state", "per_env_epsilons", "policy_kwargs", "num_timesteps", "_n_updates"),
]
KEPT_BY_R2D2 = [
    *("n_actors", "samples_per_insert", "backend", "rollout_length", "actor_update_interval", "max_env_restarts"),
    *("backend_kwargs", "n_windows_inserted", "n_windows_sampled"),
]


def trajectory(model: Any, n_steps: int = 8) -> tuple[list[np.ndarray], Any]:
    """Greedy actions on fixed observations, and the last state."""
    observations = np.random.default_rng(1).normal(size=(n_steps, 2, 3)).astype(np.float32)
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


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("switches", SWITCHED, ids=str)
def test_a_loaded_model_predicts_and_learns_as_the_saved_one(make: Make, switches: dict[str, Any], tmp_path: Path) -> None:
    model = make(walks(2), **switches).learn(40)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=walks(2), device="cpu", trust=["tests.helpers.models.SumCore"])
    assert_same(parameters(model), parameters(loaded))
    assert_same_trajectory(model, loaded)
    for name in KEPT + (KEPT_BY_R2D2 if isinstance(model, R2D2) else []):
        assert getattr(loaded, name) == getattr(model, name), name
    assert type(loaded.replay_buffer) is type(model.replay_buffer)
    assert loaded.replay_buffer.burn_in_length == model.burn_in_length
    n_updates = loaded._n_updates
    assert loaded.learn(40, reset_num_timesteps=False)._n_updates > n_updates > 0
    assert loaded.num_timesteps == 80


def test_the_policy_can_be_saved_alone(make: Make, tmp_path: Path) -> None:
    model = make(walks(2)).learn(40)
    model.policy.save(tmp_path / "policy")
    assert_same_trajectory(model.policy, type(model.policy).load(tmp_path / "policy", device="cpu"))


def test_parameters_can_be_handed_over(make: Make) -> None:
    """With those of the optimizer: the next update is the same."""
    first, second = make(walks(2)).learn(80), make(walks(2), seed=1).learn(40)
    second.set_parameters(copy.deepcopy(first.get_parameters()))  # torch's optimizers take tensors over uncopied
    second.replay_buffer = copy.deepcopy(first.replay_buffer)
    second.return_scale = copy.deepcopy(first.return_scale)  # what it has seen, like the replay
    assert_same(parameters(first), parameters(second))
    for model in (first, second):
        np.random.seed(0)
        RecurrentDQN.train(model, 1, 8)
    assert_same(parameters(first), parameters(second))


@pytest.mark.parametrize(("saved", "n_envs"), [(2, 2), (1, 16), (16, 1)])
def test_the_number_of_environments_may_change_at_load(make: Make, saved: int, n_envs: int, tmp_path: Path) -> None:
    model = make(counters(saved)).learn(48)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=counters(n_envs), device="cpu")
    assert loaded.replay_buffer.n_envs == loaded.n_replay_envs >= n_envs
    before = parameters(loaded)
    loaded.learn(160)
    loaded.replay_buffer.check_valid()
    assert any(not th.equal(before[name], value) for name, value in parameters(loaded).items())


def test_a_model_can_be_loaded_without_room_for_a_window(make: Make, tmp_path: Path) -> None:
    """RL Zoo loads an agent with ``buffer_size=1`` to show it."""
    model = make(walks(2)).learn(40)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", buffer_size=1, device="cpu")
    assert_same_trajectory(model, loaded)
    assert loaded.predict(np.zeros(3, np.float32))[0].shape == ()
    with_env = type(model).load(tmp_path / "model", env=walks(2), buffer_size=1, device="cpu")
    assert with_env.predict(np.zeros((2, 3), np.float32))[0].shape == (2,)


def test_attributes_can_be_left_out_of_a_zip(make: Make, tmp_path: Path) -> None:
    model = make(gamma=0.5, value_rescaling=False, max_grad_norm=3.0)
    model.save(tmp_path / "model", exclude=["gamma"])
    assert "gamma" not in load_from_zip_file(tmp_path / "model")[0]
    loaded = type(model).load(tmp_path / "model", device="cpu")
    assert loaded.max_grad_norm == 3.0 and loaded.gamma == type(model)("MlpPolicy", counters(), buffer_size=1000).gamma


def test_a_model_can_be_saved_while_it_learns_and_holds_no_live_things(make: Make, tmp_path: Path) -> None:
    class Save(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 13:
                self.model.save(tmp_path / "model")
            return True

    make(walks(2)).learn(40, Save())
    data, _, _ = load_from_zip_file(tmp_path / "model")
    assert not {"_collection", "_core_state", "_step_states", "replay_buffer", "env"} & data.keys()


def test_a_new_environment_begins_new_episodes(make: Make) -> None:
    model = make(counters(2, length=50), learning_starts=0).learn(40)
    buffer = model.replay_buffer
    position, env_indices = buffer.pos.copy(), np.arange(model.n_replay_envs)
    model.set_env(counters(2, length=50))
    model.learn(40, reset_num_timesteps=False)
    assert buffer.timeouts[position - 1, env_indices].all() and not buffer.episode_steps[position, env_indices].any()
    buffer.check_valid()


# ---------------------------------------------------------------- replay buffers


def test_a_replay_buffer_comes_back_as_it_was(make: Make, tmp_path: Path) -> None:
    model = make(walks(2), prioritized_replay=True).learn(80)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = type(model).load(tmp_path / "model", env=walks(2), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay")
    for name in ("td_errors", "rewards", "window_ids", "open_lengths"):
        np.testing.assert_array_equal(getattr(loaded.replay_buffer, name), getattr(model.replay_buffer, name))
    batches = []
    for buffer in (model.replay_buffer, loaded.replay_buffer):
        np.random.seed(3)
        batches.append(buffer.sample(16))
    for name, first, second in zip(batches[0]._fields, *batches, strict=True):
        for array, other in zip(*[x if isinstance(x, tuple) else (x,) for x in (first, second)], strict=True):
            np.testing.assert_array_equal(array, other, err_msg=name)


def test_loading_a_replay_buffer_begins_new_episodes(make: Make, tmp_path: Path) -> None:
    model = make(counters(2, length=50)).learn(40)
    model.save_replay_buffer(tmp_path / "replay")
    model.load_replay_buffer(tmp_path / "replay")
    buffer = model.replay_buffer
    position, env_indices = buffer.pos.copy(), np.arange(model.n_replay_envs)
    model.learn(40, reset_num_timesteps=False)
    assert buffer.timeouts[position - 1, env_indices].all() and not buffer.episode_steps[position, env_indices].any()
    assert (buffer.pos > position).all()
    buffer.check_valid()


# SB3 leaves the file it was writing to be closed by the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["model", "replay"])
def test_a_failed_save_leaves_the_old_file_whole(
    make: Make, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(walks(2)).learn(40)
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


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("other", [PPO, DQN])
def test_the_zip_of_another_algorithm_is_refused(make: Make, other: type, tmp_path: Path) -> None:
    kwargs = dict(n_steps=8, batch_size=8) if other is PPO else dict(buffer_size=10)
    other("MlpPolicy", counters(), device="cpu", **kwargs).save(tmp_path / "other")
    algorithm = type(make())
    message = rf"Policy is not a RecurrentDQNPolicy, which {algorithm.__name__} needs.*another algorithm saved that"
    with pytest.raises(ValueError, match=message):
        algorithm.load(tmp_path / "other")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def changed(content: bytes) -> bytes:
    """In the parameters."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def misplaced(content: bytes) -> bytes:
    """The directory of the zip says that a member starts before the file does."""
    return content[:-6] + b"\xff\xff\xff\x00" + content[-2:]


@pytest.mark.parametrize("damage", [cut, changed, misplaced])
def test_a_damaged_zip_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    make_rdqn().save(tmp_path / "model.zip")
    (tmp_path / "model.zip").write_bytes(damage((tmp_path / "model.zip").read_bytes()))
    with pytest.raises(ValueError, match=r"model.zip is damaged, or is not a zip file of SB3, so it was not loaded: "):
        RecurrentDQN.load(tmp_path / "model.zip")


def test_the_two_algorithms_do_not_load_each_others_zips(make: Make, tmp_path: Path) -> None:
    make().save(tmp_path / "model")
    own, other = (R2D2, RecurrentDQN)[:: 1 if type(make()) is R2D2 else -1]
    message = rf"model was saved by {own.__name__}, but {other.__name__} is to load it; use {own.__name__}.load"
    for trust in (False, True):
        with pytest.raises(ValueError, match=message):
            other.load(tmp_path / "model", trust=trust)


def test_a_users_subclass_and_its_base_load_each_others_zips(make: Make, tmp_path: Path) -> None:
    class Mine(type(make())):  # type: ignore[misc]
        pass

    make(counters()).save(tmp_path / "base")
    mine = Mine.load(tmp_path / "base", device="cpu")
    assert type(mine) is Mine
    mine.save(tmp_path / "mine")
    assert type(Mine.load(tmp_path / "mine", device="cpu")) is Mine
    type(make()).load(tmp_path / "mine", device="cpu")


def test_a_zip_of_a_newer_version_gives_a_warning(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(counters())
    with monkeypatch.context() as patch:
        patch.setattr("sb3_attn.recurrent_dqn.saving.__version__", "7.0.1")
        model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match=rf"saved by sb3_attn 7.0.1, which is newer than {sb3_attn.__version__}"):
        loaded = type(model).load(tmp_path / "model", device="cpu")
    loaded.save(tmp_path / "model")
    type(model).load(tmp_path / "model", device="cpu")  # without a warning, which would be an error


def test_an_environment_with_other_spaces_is_refused(make: Make, tmp_path: Path) -> None:
    model = make(counters())
    model.save(tmp_path / "model")
    other = counters(space=spaces.Box(-1, 1, (5,), np.float32))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        type(model).load(tmp_path / "model", env=other)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(other)


def test_a_replay_buffer_of_another_kind_or_size_is_refused(make: Make, tmp_path: Path) -> None:
    model = make(counters(1))
    n_envs, prioritized = model.n_replay_envs, model.prioritized_replay
    others = {
        f"n_envs={2 * n_envs}, but this model needs n_envs={n_envs}": make(counters(2)),
        "trace_length=4, .*but": make(counters(1), trace_length=4),
        r"class=\w*SequenceReplayBuffer, but": make(counters(1), prioritized_replay=not prioritized),
        "class=ReplayBuffer": DQN("MlpPolicy", counters(), buffer_size=10, device="cpu"),
    }
    for message, other in others.items():
        other.save_replay_buffer(tmp_path / "other")
        with pytest.raises(ValueError, match=message):
            model.load_replay_buffer(tmp_path / "other")
    model.learn(40)  # with its own, still
    make(counters(1)).learn(40).save_replay_buffer(tmp_path / "own")
    model.replay_buffer = None
    model.load_replay_buffer(tmp_path / "own")
    assert model.replay_buffer.n_windows > 0


@pytest.mark.parametrize("memory", [dict(core_kwargs=dict(hidden_size=5)), dict(core="gru", core_kwargs=dict(hidden_size=8))])
def test_a_replay_buffer_with_the_states_of_another_memory_is_refused(make: Make, memory: dict, tmp_path: Path) -> None:
    model, other = make(counters(2)).learn(40), make(counters(2), policy_kwargs=memory).learn(40)
    other.save_replay_buffer(tmp_path / "other")
    own = model.replay_buffer
    with pytest.raises(ValueError, match=r"holds states of a memory of the shapes .*, but this model's has \["):
        model.load_replay_buffer(tmp_path / "other")
    assert model.replay_buffer is own


def test_arguments_given_to_load_are_checked(make: Make, tmp_path: Path) -> None:
    model = make(td_lambda=0.8, n_steps=1, prioritized_replay=False)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"td_lambda=3.0 must lie between 0 and 1"):
        type(model).load(tmp_path / "model", td_lambda=3.0)
    with pytest.raises(ValueError, match=r"prioritized_replay=True, but .* uniform"):
        type(model).load(tmp_path / "model", prioritized_replay=True)
    assert type(model).load(tmp_path / "model", buffer_size=1).buffer_size == 1


def test_load_refuses_arguments_that_the_algorithm_does_not_have(make: Make, tmp_path: Path) -> None:
    """SB3 takes any, and ignores them."""
    model = make(counters())
    model.save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"load\(\) got core='gru', trace_len=4, but R.* has no such arguments; leave"):
        type(model).load(tmp_path / "model", core="gru", trace_len=4, gamma=0.5)
    with pytest.raises(ValueError, match="gamma=5 must lie between 0 and 1"):
        type(model).load(tmp_path / "model", gamma=5)
    loaded = type(model).load(tmp_path / "model", device="cpu", gamma=0.5, bootstrap_n=3, td_lambda=None)  # a former name
    assert (loaded.gamma, loaded.n_steps) == (0.5, 3)


def test_what_earlier_versions_saved_is_not_checked(make: Make, tmp_path: Path) -> None:
    model = make(counters())
    model.exploration_fraction, model.double_q = 1.5, 1
    model.save(tmp_path / "model")
    assert type(model).load(tmp_path / "model", device="cpu").exploration_fraction == 1.5


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_policies_can_be_pickled(make: Make, ema_decay: float) -> None:
    policy = make(policy_kwargs=dict(ema_decay=ema_decay)).learn(60).policy
    copied = pickle.loads(pickle.dumps(policy))
    assert_same(policy.state_dict(), copied.state_dict())
    for each in (policy, copied):
        each.q_net.q_net[0].bias.data += 1
        each.update_average()
    assert_same(policy.state_dict(), copied.state_dict())
