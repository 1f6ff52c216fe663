"""The parts of the network, tested through its Q-values."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_attn import R2D2, LSTMCore, RecurrentDQN, RecurrentDQNPolicy
from sb3_attn.recurrent_dqn.networks import RecurrentQNetwork
from tests.helpers.environments import counters
from tests.helpers.models import make_rdqn


def net(**policy_kwargs: Any) -> RecurrentQNetwork:
    return make_rdqn(policy_kwargs=policy_kwargs).q_net


def random_observations(*shape: int) -> th.Tensor:
    return th.randn(*shape, 3, generator=th.Generator().manual_seed(0))


@pytest.mark.parametrize("net_arch", [[], [8], [8, 6]], ids=str)
def test_dueling_values_are_v_plus_the_advantages_less_their_mean(net_arch: list[int]) -> None:
    """Wang et al. (2016), eq. 9: so the mean over the actions is V, whatever the advantages."""
    q_net = net(net_arch=net_arch)
    obs, state = random_observations(5), q_net.initial_state(5)
    values, _ = q_net(obs, state)
    with th.no_grad():
        q_net.q_net[-1].bias[0] += 3.0
        th.testing.assert_close(q_net(obs, state)[0], values + 3)
        q_net.q_net[-1].bias[1:] += 5.0
        th.testing.assert_close(q_net(obs, state)[0], values + 3)
        q_net.q_net[-1].bias[1:] += th.tensor([1.0, -1.0])
        th.testing.assert_close(q_net(obs, state)[0], values + 3 + th.tensor([1.0, -1.0]))


@pytest.mark.parametrize("skip_connection", [True, False])
def test_only_the_skip_connection_leads_past_the_memory(skip_connection: bool) -> None:
    q_net = net(skip_connection=skip_connection)
    with th.no_grad():
        for parameter in q_net.core.parameters():
            parameter.zero_()
    values, _ = q_net(random_observations(5), q_net.initial_state(5))
    assert bool((values != values[0]).any()) == skip_connection


@pytest.mark.parametrize("activation_fn", [th.nn.ReLU, th.nn.Tanh])
def test_encoder_and_head_have_the_given_layers(activation_fn: type) -> None:
    q_net = net(encoder_arch=[7, 5], net_arch=[6], activation_fn=activation_fn)
    layers = [*q_net.encoder, *q_net.q_net]
    assert [(layer.in_features, layer.out_features) for layer in layers[::2]] == [(3, 7), (7, 5), (8 + 5, 6), (6, 1 + 2)]
    assert {type(layer) for layer in layers[1::2]} == {activation_fn}


def test_the_default_layers() -> None:
    image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    sizes = {}
    for policy, env in (("MlpPolicy", counters()), ("CnnPolicy", counters(space=image))):
        q_net = RecurrentDQN(policy, env, buffer_size=200, device="cpu").q_net
        sizes[policy] = [layer.out_features for layer in q_net.encoder[::2]], q_net.core.output_size, q_net.net_arch
    assert sizes == {"MlpPolicy": ([64], 64, [256]), "CnnPolicy": ([], 64, [256])}


@pytest.mark.parametrize("core", ["lstm", "LSTM", LSTMCore])
def test_lstm_hidden_size_sets_the_size_as_in_sb3_contrib(core: Any) -> None:
    policy = make_rdqn(policy_kwargs=dict(core=core, core_kwargs=dict(forget_bias=2.0), lstm_hidden_size=9)).policy
    assert policy.q_net.core.output_size == 9
    assert policy._get_constructor_parameters()["core_kwargs"] == dict(forget_bias=2.0, hidden_size=9)


def test_lstm_hidden_size_replaces_the_default_of_r2d2() -> None:
    policy_kwargs = dict(lstm_hidden_size=9, encoder_arch=[8], net_arch=[8])
    model = R2D2("MlpPolicy", counters(), buffer_size=1000, policy_kwargs=policy_kwargs, device="cpu")
    assert model.q_net.core.output_size == 9


@pytest.mark.parametrize("normalize_images", [True, False])
def test_images_are_divided_by_255_by_default(normalize_images: bool) -> None:
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    q_net = make_rdqn(counters(space=space), "CnnPolicy", policy_kwargs=dict(normalize_images=normalize_images)).q_net
    seen: list[th.Tensor] = []
    q_net.features_extractor.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    q_net(th.ones(1, 1, 36, 36, dtype=th.uint8), q_net.initial_state(1))
    assert seen[0].max() == pytest.approx(1 / 255 if normalize_images else 1.0)


@pytest.mark.parametrize("as_dict", [False, True])
def test_images_encoded_in_parts_give_the_features_and_gradients_of_all_at_once(monkeypatch, as_dict: bool) -> None:
    space: spaces.Space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    images = th.randint(256, (5, 3, 1, 36, 36), dtype=th.uint8)
    policy, obs = ("MultiInputPolicy", {"image": images}) if as_dict else ("CnnPolicy", images)
    q_net = make_rdqn(counters(space=spaces.Dict({"image": space}) if as_dict else space), policy).q_net
    n_images, results = [], []
    q_net.encoder.register_forward_pre_hook(lambda module, inputs: n_images.append(len(inputs[0])))
    for n_at_once in (15, 4):
        monkeypatch.setattr("sb3_attn.recurrent_dqn.networks.MAX_NUMBERS_ENCODED_AT_ONCE", n_at_once * 36 * 36)
        features = q_net.encode_sequence(obs)
        results.append((features, *th.autograd.grad(features.square().sum(), q_net.features_extractor.parameters())))
    assert n_images == [15, 4, 4, 4, 3]
    for array, expected in zip(*results, strict=True):
        th.testing.assert_close(array, expected, rtol=1e-4, atol=1e-5)


def test_features_in_bfloat16_are_rounded_in_sequences_only() -> None:
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    q_net, rounding = (
        make_rdqn(counters(space=space), "CnnPolicy", policy_kwargs=dict(bf16_features=bf16)).q_net for bf16 in (False, True)
    )
    rounding.load_state_dict(q_net.state_dict())
    images = th.randint(256, (5, 3, 1, 36, 36), dtype=th.uint8)
    assert q_net.encode(images[0]).equal(rounding.encode(images[0]))
    features, rounded = q_net.encode_sequence(images), rounding.encode_sequence(images)
    assert rounded.dtype == th.float32 and not rounded.equal(features)
    th.testing.assert_close(rounded, features, rtol=0.05, atol=0.02)  # bfloat16 has 8 bits: 2^-8 = 0.004
    parameters = [net.features_extractor.linear[0].weight for net in (q_net, rounding)]
    expected, gradient = (
        th.autograd.grad(f.square().sum(), p)[0] for f, p in zip((features, rounded), parameters, strict=True)
    )
    assert (gradient - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("core", ["lstm", "gru", "identity"])
def test_an_unroll_gives_the_values_of_its_steps(core: str) -> None:
    q_net = net(core=core, core_kwargs={})
    obs, state = random_observations(6, 4), q_net.initial_state(4)
    unrolled, end = q_net.unroll(obs, state)
    for t in range(6):
        values, state = q_net(obs[t], state)
        th.testing.assert_close(unrolled[t], values)
    for field, expected in zip(end, state, strict=True):
        th.testing.assert_close(field, expected)


def test_a_network_can_be_rebuilt_from_its_constructor_parameters() -> None:
    q_net = net(core="gru", core_kwargs=dict(hidden_size=5), encoder_arch=[7], dueling=False, skip_connection=False)
    again = RecurrentQNetwork(**q_net._get_constructor_parameters())
    again.load_state_dict(q_net.state_dict())
    obs = random_observations(5)
    assert again(obs, again.initial_state(5))[0].equal(q_net(obs, q_net.initial_state(5))[0])


def test_a_policy_can_be_rebuilt_from_its_constructor_parameters() -> None:
    kwargs = dict(core="gru", core_kwargs=dict(hidden_size=5), encoder_arch=[7], dueling=False, skip_connection=False)
    policy = make_rdqn(policy_kwargs=kwargs).policy
    again = type(policy)(**policy._get_constructor_parameters())
    again.load_state_dict(policy.state_dict())
    obs = random_observations(5)
    assert again._predict(obs).equal(policy(obs, policy.q_net.initial_state(5))[0])


def test_a_subclass_may_move_its_networks_as_those_of_sb3_do() -> None:
    class Moving(RecurrentDQNPolicy):
        def make_q_net(self) -> RecurrentQNetwork:
            return super().make_q_net().to(self.device)

    model = make_rdqn(policy=Moving)
    assert model.policy.device == model.q_net.device == th.device("cpu")


class Caching(FlattenExtractor):
    """Keeps what it computes at the first call."""

    scale: th.Tensor | None = None

    def forward(self, observations: th.Tensor) -> th.Tensor:
        if self.scale is None:
            self.scale = 2 * th.ones(observations.shape[-1])
        return super().forward(observations) * self.scale


def test_what_a_network_keeps_from_acting_can_be_trained_with() -> None:
    model = make_rdqn(policy_kwargs=dict(features_extractor_class=Caching, ema_decay=0.0))
    model.predict(model.env.reset())
    model.learn(60)
    assert model._n_updates > 0


@pytest.mark.filterwarnings("ignore:.*called again without a state")
def test_stock_dqn_is_refused() -> None:
    model = DQN(RecurrentDQNPolicy, "CartPole-v1", buffer_size=100, learning_starts=10, device="cpu")
    with pytest.raises(ValueError, match="needs its memory's state, which DQN does not have; use RecurrentDQN"):
        model.learn(30)
