"""Arguments that both algorithms take: those that do not fit are refused with a sentence that says what to change."""

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.dqn import policies

from sb3_attn import R2D2, PrioritizedSequenceReplayBuffer, RecurrentDQN, SequenceReplayBuffer
from sb3_attn.recurrent_dqn.heads import QuantileHead
from tests.helpers.environments import Counter, counters
from tests.helpers.models import Make, make_rdqn


class MyQuantileHead(QuantileHead):
    """A subclass, which has quantiles as well."""


WHOLE_EPISODES = dict(trace_length=None, burn_in_length=0, sequence_period=None)
BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    (dict(trace_length=0), "trace_length=0 leaves no step"),
    (dict(burn_in_length=-1), "burn_in_length=-1 is negative"),
    (dict(sequence_period=0), "sequence_period=0 must be at least 1"),
    (dict(sequence_period=4), "sequence_period=4 is larger than trace_length=3"),
    (dict(trace_length=None), "trace_length=None takes whole episodes.*burn_in_length=2"),
    (WHOLE_EPISODES | dict(sequence_period=2), "trace_length=None.*sequence_period=2"),
    (dict(batch_size=0), "batch_size=0 must be at least 1"),
    (dict(n_steps=0, td_lambda=None), "n_steps=0 must be at least 1"),
    (dict(target_update_interval=0), "target_update_interval=0 must be at least 1"),
    (dict(n_steps=2.5, td_lambda=None), r"n_steps=2\.5 must be a whole number, not of type float"),
    *((dict(td_lambda=None) | {name: 8.0}, rf"{name}=8\.0 must be a whole number") for name in ("n_steps", "batch_size")),
    (dict(buffer_size=1e5), r"buffer_size=100000\.0 must be a whole number, not of type float"),
    (dict(trace_length="16"), r"trace_length='16' must be a whole number, not of type str"),
    (dict(burn_in_length=1.5), r"burn_in_length=1\.5 must be a whole number"),
    (dict(sequence_period=True), r"sequence_period=True must be a whole number, not of type bool"),
    (dict(stored_state="no"), "stored_state='no' must be True or False"),
    (dict(prioritized_replay="yes"), "prioritized_replay='yes' must be True or False"),
    (dict(clipped_double_q=2), "clipped_double_q=2 must be True or False"),
    (dict(learning_rate="1e-3"), "learning_rate='1e-3' must be a number, not of type str, or be a function"),
    (dict(target_update_interval=2.5), r"target_update_interval=2\.5 must be a whole number"),
    (dict(learning_starts=-1), "learning_starts=-1 must be at least 0"),
    (dict(exploration_fraction=2), "exploration_fraction=2 must lie between 0 and 1"),
    (dict(exploration_initial_eps=1.1), r"exploration_initial_eps=1\.1 must lie between 0 and 1"),
    (dict(exploration_final_eps=float("nan")), "exploration_final_eps=nan must lie between 0 and 1"),
    (dict(td_lambda="0.9", n_steps=1), r"td_lambda='0\.9' must be a number, not of type str, or be None"),
    (dict(trace_tolerance=float("nan")), "trace_tolerance=nan must be at least 0, or be None"),
    (dict(munchausen_temperature=float("nan")), r"munchausen_temperature=nan must be positive; 0\.03 is usual"),
    (dict(max_grad_norm=None), r"max_grad_norm=None must be a number, not of type NoneType; float\('inf'\)"),
    (dict(replay_buffer_kwargs="x"), r"replay_buffer_kwargs='x' must be a dict"),
    (dict(gamma=1.5), r"gamma=1\.5 must lie between 0 and 1"),
    (dict(tau=-1), "tau=-1 must lie between 0 and 1"),
    (dict(max_grad_norm=-1), r"max_grad_norm=-1 must be positive; float\('inf'\) means no limit"),
    (dict(policy_kwargs=dict(head_kwargs=dict(n_values=8))), 'n_values=8 of Head must be 1; leave it out, or use head="q'),
    (
        dict(policy_kwargs=dict(head="quantile", head_kwargs=dict(n_values=0)), value_rescaling=False),
        "n_values=0 of QuantileHead must be at least 1",
    ),
    (dict(policy_kwargs=dict(net_arch=dict(pi=[8], vf=[8]))), r"net_arch=\{.*\} must be a list, as in net_arch=\[64\]"),
    (
        dict(policy_kwargs=dict(head="quantile"), value_rescaling=True),
        "value_rescaling=True bends the quantiles of head='quan",
    ),
    (
        dict(policy_kwargs=dict(head=MyQuantileHead), value_rescaling=True),
        "value_rescaling=True bends the quantiles of head=<class '.*MyQuantileHead'>",
    ),
    (dict(policy_kwargs=dict(net_arch=64)), r"net_arch=64 must be a list"),
    (dict(policy_kwargs=dict(hidden_size=64)), r"hidden_size is not supported; use core_kwargs=dict\(hidden_size=\.\.\.\)"),
    (dict(td_lambda=1.5, n_steps=1), r"td_lambda=1\.5 must lie between 0 and 1, or be None"),
    (dict(td_lambda=-0.1, n_steps=1), r"td_lambda=-0\.1 must lie between 0 and 1"),
    (dict(trace_tolerance=-0.1), r"trace_tolerance=-0\.1 must be at least 0, or be None"),
    (dict(td_lambda=0.8, n_steps=3), r"td_lambda=0\.8 and n_steps=3 are two kinds of return"),
    (
        dict(double_q=False, clipped_double_q=True),
        "clipped_double_q=True needs double_q=True; pass clipped_double_q=False, too",
    ),
    (dict(replay_buffer_class=ReplayBuffer), "replay_buffer_class=ReplayBuffer does not store sequences"),
    (dict(replay_buffer_class="PrioritizedSequenceReplayBuffer"), "replay_buffer_class='Pr.*' does not store sequences"),
    (dict(replay_buffer_class=SequenceReplayBuffer, prioritized_replay=True), "prioritized_replay=True, but .* uniform"),
    (
        dict(replay_buffer_class=PrioritizedSequenceReplayBuffer, prioritized_replay=False),
        "prioritized_replay=False, but .* prioritized",
    ),
    (dict(replay_buffer_kwargs=dict(trace_length=3)), r"\['trace_length'\] to the algorithm instead"),
    (dict(prioritized_replay=True, replay_buffer_kwargs=dict(priority_exponent=2)), "priority_exponent=2 must lie"),
    (dict(policy_kwargs=dict(core="lsmt")), r"core='lsmt' is unknown; choose one of .*'key_value', 'lstm', 'mingru'"),
    (dict(policy_kwargs=dict(core=th.nn.LSTM)), "is not a subclass of MemoryCore"),
    (dict(policy_kwargs=dict(core_kwargs=dict(size=3))), "core_kwargs=.*size.* do not fit LSTMCore"),
    (dict(policy_kwargs=dict(core_kwargs=dict(hidden_size=0))), "=0 of LSTMCore must be at least 1"),
    (
        dict(policy_kwargs=dict(core="gru", core_kwargs={}, lstm_hidden_size=9)),
        r"lstm_hidden_size=9 .*core='gru'; use core_kw",
    ),
    (
        dict(policy_kwargs=dict(core_kwargs=dict(hidden_size=8), lstm_hidden_size=9)),
        r"lstm_hidden_size=9 and core_kwargs=\{'hidden_size': 8\} both set the size",
    ),
    (dict(policy_kwargs=dict(n_lstm_layers=2)), r"n_lstm_layers is not supported; use core_kwargs=dict\(num_layers="),
    (dict(policy_kwargs=dict(shared_lstm=True)), "shared_lstm is not supported; there is one network"),
    (dict(policy_kwargs=dict(enable_critic_lstm=False)), "enable_critic_lstm is not supported; there is one network"),
    (dict(policy_kwargs=dict(lstm_kwargs={})), "lstm_kwargs is not supported; use core_kwargs"),
    (dict(policy="MultiInputPolicy"), "does not fit observation_space=Box.*'MlpPolicy'"),
    (
        dict(policy=policies.MlpPolicy),
        "policy=DQNPolicy is not a RecurrentDQNPolicy, which R.* needs; use one of .*core=.*extractor_class=",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_ARGUMENTS, ids=[str(bad) for bad, _ in BAD_ARGUMENTS])
def test_a_bad_argument_is_named(make: Make, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(counters(), **arguments)


def test_episodes_are_counted_in_a_single_environment(tmp_path: Path) -> None:
    by_episodes = dict(train_freq=(1, "episode"))
    make_rdqn(counters(1), **by_episodes).save(tmp_path / "model")
    for make in (partial(make_rdqn, **by_episodes), partial(RecurrentDQN.load, tmp_path / "model")):
        with pytest.raises(
            ValueError, match=r"train_freq=\(1, 'episode'\) needs a single .* there are 2; give a number of st"
        ):
            make(env=counters(2))


def test_an_argument_of_the_policy_is_sent_there(make: Make) -> None:
    with pytest.raises(
        TypeError, match=r"core='gru', dueling=False: for the policy.*policy_kwargs=dict\(core=..., dueling=...\)"
    ):
        make(counters(), core="gru", dueling=False)


@pytest.mark.parametrize("algorithm", [RecurrentDQN, R2D2])
def test_arguments_of_the_policy_are_a_dict(algorithm: Any) -> None:
    with pytest.raises(ValueError, match=r"policy_kwargs=\[1\] must be a dict"):
        algorithm("MlpPolicy", counters(), policy_kwargs=[1])


def test_arguments_of_on_policy_algorithms_are_named(make: Make) -> None:
    with pytest.raises(TypeError, match=r"gae_lambda=0\.95 is not supported; it belongs to on-policy .*; leave it out"):
        make(counters(), gae_lambda=0.95)


def test_flattened_images_are_warned_about(make: Make) -> None:
    with pytest.warns(UserWarning, match="policy=MlpPolicy flattens the images.*'CnnPolicy'"):
        make(images(), policy="MlpPolicy")


def test_images_with_convolutions_are_not_warned_about(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(images(), policy="MlpPolicy", policy_kwargs=dict(features_extractor_class=NatureCNN))


def images() -> DummyVecEnv:
    return DummyVecEnv([lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)])


def test_the_buffer_needs_room_for_a_window_of_each_environment(make: Make) -> None:
    n_envs = make(counters(4)).n_replay_envs
    size = 5 * n_envs
    sentence = rf"buffer_size={size - 1} leaves 4 steps for each of {n_envs} environments.*at least {size}"
    with pytest.raises(ValueError, match=sentence):
        make(counters(4), buffer_size=size - 1)
    make(counters(4), buffer_size=size)


def test_a_dict_observation_needs_the_multi_input_policy(make: Make) -> None:
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32)})
    with pytest.raises(ValueError, match="`MultiInputPolicy` when working with dict"):
        make(counters(space=space))


class Acting(Counter):
    """
    An environment with other actions.

    :param space: of the actions
    """

    def __init__(self, space: spaces.Space) -> None:
        super().__init__()
        self.action_space = space


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)],
    ids=lambda space: type(space).__name__,
)
def test_actions_have_to_be_discrete(make: Make, space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=rf"action_space={type(space).__name__}.* is neither Discrete nor MultiDiscrete; "):
        make(DummyVecEnv([lambda: Acting(space)]))


BOX = spaces.Box(-1, 1, (2,))
BAD_SPACES = [
    (spaces.Tuple((BOX,)), "has a Tuple, which has to become a Box; wrap each environment in sb3_attn.envs.FlattenSpaces"),
    (spaces.Dict({"a": spaces.Dict({"b": BOX})}), "has a Dict, which has to .*FlattenSpaces"),
    (spaces.Text(3), "has a Text, which has to .*FlattenSpaces"),
    (spaces.Sequence(BOX), "has a Sequence, which is not supported; make it a Box in an ObservationWrapper"),
    (spaces.Tuple((spaces.Sequence(BOX),)), "has a Tuple, which is not supported"),
    (spaces.Discrete(3, start=-1), "must start at 0; shift it with an ObservationWrapper"),
    (spaces.Dict({"a": spaces.MultiDiscrete([2, 2], start=[0, 1])}), "must start at 0"),
]


@pytest.mark.parametrize(("space", "sentence"), BAD_SPACES, ids=[type(space).__name__ for space, _ in BAD_SPACES])
def test_observations_have_to_become_tensors(make: Make, space: spaces.Space, sentence: str) -> None:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=sentence):
        make(Counter(space=space), policy=policy)


@pytest.mark.parametrize("space", [spaces.Discrete(2, start=5), spaces.MultiDiscrete([2, 2], start=[0, 5])], ids=str)
def test_actions_that_do_not_start_at_zero_are_refused(make: Make, space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=rf"action_space={re.escape(str(space))} must start at 0; shift it with an "):
        make(DummyVecEnv([lambda: Acting(space)]))


def test_actions_with_two_axes_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="must have one axis; flatten it with an ActionWrapper"):
        make(DummyVecEnv([lambda: Acting(spaces.MultiDiscrete([[2, 2], [2, 2]]))]))
