"""Every mistake gets a sentence, and NaN or infinity stops training before anything is saved."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.save_util import save_to_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn import PrioritizedSequenceReplayBuffer, RecurrentDQN, SequenceReplayBuffer
from tests.helpers.environments import Counter, counters
from tests.helpers.models import make_rdqn

BAD_ARGUMENTS = [
    (dict(trace_length=0), "trace_length=0 leaves no step"),
    (dict(burn_in_length=-1), "burn_in_length=-1 is negative"),
    (dict(sequence_period=0), "sequence_period=0 must be at least 1"),
    (dict(sequence_period=4), "sequence_period=4 is larger than trace_length=3"),
    (dict(trace_length=None), "trace_length=None takes whole episodes.*burn_in_length=2"),
    (dict(trace_length=None, burn_in_length=0, sequence_period=2), "trace_length=None.*sequence_period=2"),
    (dict(buffer_size=4), "buffer_size=4 leaves 4 steps.*raise buffer_size to at least 5"),
    (dict(batch_size=0), "batch_size=0 must be at least 1"),
    (dict(n_steps=0, td_lambda=None), "n_steps=0 must be at least 1"),
    (dict(target_update_interval=0), "target_update_interval=0 must be at least 1"),
    (dict(td_lambda=1.5), r"td_lambda=1\.5 must lie between 0 and 1, or be None"),
    (dict(td_lambda=-0.1), r"td_lambda=-0\.1 must lie between 0 and 1"),
    (dict(td_lambda=0.8, n_steps=3), r"td_lambda=0\.8 and n_steps=3 are two kinds of return"),
    (dict(replay_buffer_class=ReplayBuffer), "replay_buffer_class=ReplayBuffer does not store sequences"),
    (dict(replay_buffer_class=SequenceReplayBuffer, prioritized_replay=True), "prioritized_replay=True, but .* uniform"),
    (dict(replay_buffer_class=PrioritizedSequenceReplayBuffer), "prioritized_replay=False, but .* prioritized"),
    (dict(replay_buffer_kwargs=dict(trace_length=3)), r"\['trace_length'\] to the algorithm instead"),
    (dict(prioritized_replay=True, replay_buffer_kwargs=dict(priority_exponent=2)), "priority_exponent=2 must lie"),
    (dict(policy_kwargs=dict(core="lsmt")), r"core='lsmt' is unknown; choose one of .*'key_value', 'lstm', 'ntm'"),
    (dict(policy_kwargs=dict(core=th.nn.LSTM)), "is not a subclass of MemoryCore"),
    (dict(policy_kwargs=dict(core_kwargs=dict(size=3))), "core_kwargs=.*size.* do not fit LSTMCore"),
    (dict(policy_kwargs=dict(core_kwargs=dict(hidden_size=0))), "=0 of LSTMCore must be at least 1"),
    (
        dict(policy_kwargs=dict(core="gru", core_kwargs={}, lstm_hidden_size=9)),
        r"lstm_hidden_size=9 .*core='gru'; use core_kw",
    ),
    (
        dict(policy_kwargs=dict(lstm_hidden_size=9)),
        r"lstm_hidden_size=9 and core_kwargs=\{'hidden_size': 8\} both set the size",
    ),
    (dict(policy_kwargs=dict(n_lstm_layers=2)), "n_lstm_layers is not supported; the LSTM has one layer"),
    (dict(policy_kwargs=dict(shared_lstm=True)), "shared_lstm is not supported; there is one network"),
    (dict(policy_kwargs=dict(enable_critic_lstm=False)), "enable_critic_lstm is not supported; there is one network"),
    (dict(policy_kwargs=dict(lstm_kwargs={})), "lstm_kwargs is not supported; use core_kwargs"),
    (dict(policy="MultiInputPolicy"), "does not fit observation_space=Box.*'MlpPolicy'"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_ARGUMENTS, ids=[str(bad) for bad, _ in BAD_ARGUMENTS])
def test_a_bad_argument_is_named(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_rdqn(**arguments)


@pytest.mark.parametrize(
    ("lengths", "burn_in_length"),
    [({}, 8), (dict(trace_length=20), 8), (dict(burn_in_length=3), 3), (dict(trace_length=None), 0)],
    ids=str,
)
def test_whole_episodes_need_no_burn_in_to_be_turned_off(lengths: dict[str, Any], burn_in_length: int) -> None:
    model = RecurrentDQN("MlpPolicy", counters(), buffer_size=100, device="cpu", **lengths)
    assert model.burn_in_length == model.replay_buffer.burn_in_length == burn_in_length


def test_buffer_size_counts_all_environments() -> None:
    with pytest.raises(ValueError, match=r"buffer_size=19 leaves 4 steps for each of 4 environments.*at least 20"):
        make_rdqn(counters(4), buffer_size=19)
    make_rdqn(counters(4), buffer_size=20)


def test_a_policy_of_stock_dqn_is_refused() -> None:
    from stable_baselines3.dqn.policies import MlpPolicy

    with pytest.raises(ValueError, match="policy=DQNPolicy is not a RecurrentDQNPolicy; use one of"):
        RecurrentDQN(MlpPolicy, counters())


def test_a_dict_observation_needs_the_multi_input_policy() -> None:
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32)})
    with pytest.raises(ValueError, match="`MultiInputPolicy` when working with dict"):
        make_rdqn(counters(space=space))


def test_predict_names_a_gym_tuple_and_a_state_of_other_shapes() -> None:
    model = make_rdqn()
    with pytest.raises(ValueError, match="mixing Gym API"):
        model.predict(Counter().reset())
    _, state = model.predict(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"state has arrays of shapes \[\(1, 8\), \(1, 8\)\].*\(2, 8\)"):
        model.predict(np.zeros((2, 3), np.float32), state)
    with pytest.raises(ValueError, match="pass the state that predict"):
        model.predict(np.zeros((1, 3), np.float32), state[:1])


class Broken(Counter):
    """Returns NaN or infinity at its seventh step, as observation or as reward."""

    def __init__(self, what: str, number: float) -> None:
        super().__init__(length=20)
        self.what, self.number = what, number

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, *rest = super().step(action)
        if self.steps == 7:
            obs, reward = (obs, self.number) if self.what == "reward" else (obs * self.number, reward)
        return obs, reward, *rest


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_what_is_not_finite_stops_training_before_it_is_saved(what: str, number: float, tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: Counter(20), lambda: Broken(what, number), lambda: Counter(20)])
    model = make_rdqn(env, learning_starts=0)
    with (
        pytest.raises(ValueError, match=f"environment 1 returned a non-finite {what} at step 21"),
        np.errstate(invalid="ignore"),
    ):
        model.learn(60, CheckpointCallback(save_freq=7, save_path=str(tmp_path)))
    assert not list(tmp_path.iterdir())
    assert np.isfinite(model.replay_buffer.observations).all() and np.isfinite(model.replay_buffer.rewards).all()
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_a_first_observation_that_is_not_finite_stops_learn() -> None:
    class BrokenReset(Counter):
        def reset(self, **kwargs: Any) -> tuple[Any, dict]:
            obs, info = super().reset(**kwargs)
            return obs * np.nan, info

    with pytest.raises(ValueError, match=r"environment 1 .*non-finite observation at step 0"):
        make_rdqn(DummyVecEnv([Counter, BrokenReset])).learn(20)


@pytest.mark.parametrize("truncates", [True, False])
def test_a_final_observation_that_is_not_finite_stops_training(truncates: bool) -> None:
    """The vectorized environment has reset by then, so that only the info has it."""

    class BrokenEnd(Counter):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            obs, *rest = super().step(action)
            return (obs * np.nan if self.steps == self.length else obs), *rest

    env = DummyVecEnv([lambda: Counter(20), lambda: BrokenEnd(5, truncates)])
    with pytest.raises(ValueError, match="environment 1 returned a non-finite final observation at step 10"):
        make_rdqn(env).learn(40)


@pytest.mark.parametrize("truncates", [True, False])
def test_a_final_observation_that_is_not_there_is_not_checked(truncates: bool) -> None:
    """Stock DQN accepts such vectorized environments, whose final observations are lost."""

    class WithoutFinalObservations(DummyVecEnv):
        def step_wait(self) -> Any:
            obs, rewards, dones, infos = super().step_wait()
            for info in infos:
                info.pop("terminal_observation", None)
            return obs, rewards, dones, infos

    model = make_rdqn(WithoutFinalObservations([lambda: Counter(5, truncates)])).learn(40)
    assert model._n_updates > 0
    model.replay_buffer.check_valid()


def test_the_key_of_a_dict_observation_is_named() -> None:
    class BrokenKey(Counter):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            obs, *rest = super().step(action)
            return obs | {"b": obs["b"] * np.nan}, *rest

    space = spaces.Dict({key: spaces.Box(1, 2, (2,), np.float32) for key in "ab"})
    model = make_rdqn(DummyVecEnv([lambda: BrokenKey(space=space)]), "MultiInputPolicy")
    with pytest.raises(ValueError, match="non-finite observation 'b' at step 1"):
        model.learn(20)


def test_a_loss_that_is_not_finite_stops_training() -> None:
    model = make_rdqn(learning_starts=20)
    model.learn(16)
    with th.no_grad():
        model.q_net.q_net[-1].bias[0] = np.inf
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+, update 1; lower learning_rate"):
        model.learn(40, reset_num_timesteps=False)
    assert model._n_updates == 0


@pytest.mark.parametrize("other", [PPO, DQN])
def test_the_zip_of_another_algorithm_is_refused(other: type, tmp_path: Path) -> None:
    kwargs = dict(n_steps=8, batch_size=8) if other is PPO else dict(buffer_size=10)
    other("MlpPolicy", counters(), device="cpu", **kwargs).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"is not a RecurrentDQNPolicy.*another algorithm saved that zip"):
        RecurrentDQN.load(tmp_path / "other")


def test_other_spaces_are_refused(tmp_path: Path) -> None:
    make_rdqn().save(tmp_path / "model")
    other = counters(space=spaces.Box(-1, 1, (5,), np.float32))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        RecurrentDQN.load(tmp_path / "model", env=other)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        make_rdqn().set_env(other)


def test_a_replay_of_another_kind_or_size_is_refused(tmp_path: Path) -> None:
    others = {
        "n_envs=2, but this model needs n_envs=1": make_rdqn(counters(2)),
        "trace_length=4, sequence_period=4, but": make_rdqn(trace_length=4),
        "class=PrioritizedSequenceReplayBuffer, but": make_rdqn(prioritized_replay=True),
        "class=ReplayBuffer": DQN("MlpPolicy", counters(), buffer_size=10, device="cpu"),
    }
    model = make_rdqn()
    for message, other in others.items():
        other.save_replay_buffer(tmp_path / "other")
        with pytest.raises(ValueError, match=message):
            model.load_replay_buffer(tmp_path / "other")
    save_to_pkl(tmp_path / "dict", {})
    with pytest.raises(AssertionError, match="must inherit from ReplayBuffer"):
        model.load_replay_buffer(tmp_path / "dict")
    model.learn(40)  # still with its own
    make_rdqn().learn(20).save_replay_buffer(tmp_path / "own")
    model.replay_buffer = None  # type: ignore[assignment]
    model.load_replay_buffer(tmp_path / "own")
    assert model.replay_buffer.n_windows > 0


def test_arguments_given_to_load_are_checked(tmp_path: Path) -> None:
    make_rdqn().save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"td_lambda=3.0 must lie between 0 and 1"):
        RecurrentDQN.load(tmp_path / "model", td_lambda=3.0)
    with pytest.raises(ValueError, match=r"prioritized_replay=True, but .* uniform"):
        RecurrentDQN.load(tmp_path / "model", prioritized_replay=True)
    assert RecurrentDQN.load(tmp_path / "model", buffer_size=1).buffer_size == 1


def test_actions_that_do_not_start_at_zero_are_refused() -> None:
    env = Counter()
    env.action_space = spaces.Discrete(2, start=5)
    with pytest.raises(ValueError, match=r"action_space=Discrete\(2, start=5\) must start at 0; shift it"):
        make_rdqn(DummyVecEnv([lambda: env]))


def test_episode_starts_may_be_of_any_type_but_not_of_any_number() -> None:
    model = make_rdqn(counters(2))
    obs = model.env.reset()
    _, state = model.predict(obs)
    fresh = model.predict(obs, state, np.ones(2, bool), deterministic=True)[1]
    for starts in (np.ones(2), [1, 1], (True, True)):
        assert all(map(np.array_equal, model.predict(obs, state, starts, deterministic=True)[1], fresh))
    with pytest.raises(ValueError, match=r"episode_start=\[True\] does not fit 2 observations"):
        model.predict(obs, state, [True])
    single = tuple(array[:1] for array in state)
    assert model.predict(obs[0], single, True)[0].shape == ()


def test_no_statistics_are_saved_that_are_not_finite(tmp_path: Path) -> None:
    """The statistics in memory are spoilt, since VecNormalize sees the reward first; those on disk are not."""
    env = VecNormalize(DummyVecEnv([lambda: Broken("reward", np.nan)]))
    with pytest.raises(ValueError, match="non-finite reward at step 7"):
        make_rdqn(env).learn(40, CheckpointCallback(1, str(tmp_path), save_vecnormalize=True))
    saved = list(tmp_path.glob("*vecnormalize*.pkl"))
    assert len(saved) == 6
    assert all(np.isfinite(VecNormalize.load(str(path), counters()).ret_rms.var) for path in saved)


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)],
    ids=lambda space: type(space).__name__,
)
def test_actions_have_to_be_discrete(space: spaces.Space) -> None:
    class Acting(Counter):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = space

    with pytest.raises(AssertionError, match=rf"only supports .*Discrete.* but {type(space).__name__}"):
        make_rdqn(DummyVecEnv([Acting]))
