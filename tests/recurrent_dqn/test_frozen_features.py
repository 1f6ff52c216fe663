"""Frozen features: encoders, the wrapper that adds them to observations, and the network whose memory reads only them."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn import FrozenEncoder, RecurrentDQN, VecFrozenFeatures
from sb3_attn.extractors.frozen import Decoder, collect_images
from tests.helpers.environments import counters
from tests.helpers.models import make_rdqn

IMAGE = spaces.Box(0, 255, (40, 36, 3), np.uint8)


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder.random(counters(2, space=IMAGE), features_dim=12, n_images=50)


# ---------------------------------------------------------------- encoders


@pytest.mark.parametrize("make", [FrozenEncoder.random, FrozenEncoder.autoencoder])
def test_features_have_mean_0_and_variance_1_over_the_images(make: Any) -> None:
    encoder = make(counters(3, space=IMAGE), features_dim=12, n_images=301)
    features = encoder(collect_images(counters(3, space=IMAGE), 301))
    assert features.shape == (301, 12)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("make", [FrozenEncoder.random, FrozenEncoder.autoencoder])
def test_the_seed_decides_all_weights_and_nothing_else(make: Any) -> None:
    encoders = []
    for seed in (1, 2):
        th.manual_seed(seed)
        before = th.get_rng_state()
        encoders.append(make(counters(2, space=IMAGE), features_dim=4, n_images=40, seed=0))
        assert th.equal(th.get_rng_state(), before)
    first, second = (encoder.state_dict().values() for encoder in encoders)
    assert all(map(th.equal, first, second))


def test_numbers_that_leave_nothing_to_learn_from_are_refused() -> None:
    for arguments in (dict(n_images=1), dict(n_epochs=0), dict(batch_size=0)):
        ((name, value),) = arguments.items()
        with pytest.raises(ValueError, match=f"{name}={value} must be at least"):
            FrozenEncoder.autoencoder(counters(2, space=IMAGE), **arguments)  # type: ignore[arg-type]


def test_a_file_that_is_no_encoder_is_refused(tmp_path) -> None:
    (tmp_path / "text.md").write_text("no encoder")
    th.save({"weights": th.ones(3)}, tmp_path / "other.pt")
    for name in ("text.md", "other.pt"):
        with pytest.raises(ValueError, match=f"{name} is not an encoder that save\\(\\) has written"):
            FrozenEncoder.load(tmp_path / name)


def test_a_feature_that_never_differs_is_0() -> None:
    network = th.nn.Sequential(th.nn.AdaptiveAvgPool2d(1), th.nn.Flatten(), th.nn.ReLU(), th.nn.Threshold(2.0, 1.0))
    encoder = FrozenEncoder(IMAGE, network, features_dim=3)
    encoder.standardise(images := collect_images(counters(1, space=IMAGE), 7))
    assert not encoder(images).any()


def test_the_layout_of_the_image_does_not_matter(encoder: FrozenEncoder) -> None:
    images = collect_images(counters(1, space=IMAGE), 7)
    first = spaces.Box(0, 255, (3, 40, 36), np.uint8)
    like = FrozenEncoder(first, encoder.network, 12)
    like.load_state_dict(encoder.state_dict())
    np.testing.assert_array_equal(like(images.transpose(0, 3, 1, 2)), encoder(images))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 84, 84), (3, 40, 37)])
def test_a_decoder_draws_images_of_any_size(shape: tuple[int, ...]) -> None:
    assert Decoder(5, shape)(th.zeros(2, 5)).shape == (2, *shape)


def test_training_keeps_what_differs_between_images() -> None:
    """Four features of an autoencoder say more about which of four large glyphs is seen than four random ones."""

    def explained(make: Any) -> float:
        env = make_vec_env("RememberedGlyph-v0", 4, seed=0, env_kwargs=dict(delay=1, n_distractors=8))
        features = make(env, features_dim=4)(images := collect_images(env, 400, seed=5))
        pixels = images.reshape(len(images), -1) / 255
        columns = np.concatenate((features, np.ones((len(features), 1))), axis=1)
        errors = pixels - columns @ np.linalg.lstsq(columns, pixels, rcond=None)[0]
        return 1 - float((errors**2).sum() / ((pixels - pixels.mean(axis=0)) ** 2).sum())

    trained = explained(lambda env, **kwargs: FrozenEncoder.autoencoder(env, n_images=600, n_epochs=4, **kwargs))
    assert trained > explained(FrozenEncoder.random) + 0.05


def test_a_saved_encoder_is_the_same_again(encoder: FrozenEncoder, tmp_path) -> None:
    encoder.save(tmp_path / "encoder")
    images = collect_images(counters(1, space=IMAGE), 7)
    np.testing.assert_array_equal(FrozenEncoder.load(tmp_path / "encoder.pt")(images), encoder(images))
    obs = VecFrozenFeatures(counters(1, space=IMAGE), tmp_path / "encoder").reset()
    np.testing.assert_array_equal(obs["frozen_features"], encoder(obs["image"]).astype(np.float16))


def test_a_network_of_ones_own_can_be_used_but_not_saved(tmp_path) -> None:
    own = FrozenEncoder(IMAGE, th.nn.Sequential(th.nn.AdaptiveAvgPool2d(2), th.nn.Flatten()), features_dim=12)
    images = collect_images(counters(1, space=IMAGE), 3)
    np.testing.assert_allclose(own(images)[:, 0], images[:, :20, :18, 0].mean(axis=(1, 2)) / 255, rtol=1e-5)
    with pytest.raises(ValueError, match="network=Sequential is one's own"):
        own.save(tmp_path / "encoder")


# ---------------------------------------------------------------- wrapper


@pytest.mark.parametrize("as_dict", [False, True])
def test_observations_get_the_features_of_their_image_the_final_ones_too(encoder: FrozenEncoder, as_dict: bool) -> None:
    key = "camera" if as_dict else "image"
    space = spaces.Dict({"camera": IMAGE, "speed": spaces.Box(0, 1, (2,))}) if as_dict else IMAGE
    env = VecFrozenFeatures(counters(2, space=space, length=3), encoder)
    assert set(env.observation_space) == {key, "frozen_features"} | ({"speed"} if as_dict else set())
    observations, n_final = [env.reset()], 0
    for _ in range(4):
        obs, _, _, infos = env.step(np.zeros(2, int))
        observations.append(obs)
        for i, info in enumerate(infos):
            if "terminal_observation" in info:
                assert not np.array_equal(info["terminal_observation"][key], obs[key][i])  # that is of the next episode
                observations.append({name: array[None] for name, array in info["terminal_observation"].items()})
                assert env.observation_space.contains(info["terminal_observation"])
                n_final += 1
    assert n_final == 2
    for obs in observations:
        np.testing.assert_allclose(obs["frozen_features"], encoder(obs[key]), atol=5e-3)
        assert obs["frozen_features"].dtype == np.float16


def test_final_observations_may_have_python_ints(encoder: FrozenEncoder) -> None:
    class WithDirection(gym.Env):
        observation_space = spaces.Dict({"image": IMAGE, "direction": spaces.Discrete(4)})
        action_space = spaces.Discrete(2)

        def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return {"image": np.zeros(IMAGE.shape, np.uint8), "direction": 3}, {}

        def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
            return self.reset()[0], 0.0, True, False, {}

    env = VecFrozenFeatures(DummyVecEnv([WithDirection]), encoder)
    env.reset()
    final = env.step(np.zeros(1, int))[3][0]["terminal_observation"]
    assert final["direction"] == 3 and final["frozen_features"].shape == (12,)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(0, 1, (3,)), "0 images"),
        (spaces.Dict({"a": IMAGE, "b": IMAGE}), "2 images"),
        (spaces.Box(0, 255, (64, 64, 3), np.uint8), r"images of shape \(40, 36, 3\), but venv has \(64, 64, 3\)"),
        (spaces.Dict({"a": IMAGE, "frozen_features": spaces.Box(0, 1, (3,))}), "wrap it only once"),
    ],
)
def test_what_does_not_fit_is_refused(encoder: FrozenEncoder, space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VecFrozenFeatures(counters(space=space), encoder)


# ---------------------------------------------------------------- network


def make_model(encoder: FrozenEncoder, **kwargs: Any) -> RecurrentDQN:
    env: DummyVecEnv = counters(2, space=IMAGE, length=9)
    return make_rdqn(VecFrozenFeatures(env, encoder), "FrozenFeaturesPolicy", **kwargs)


def random_observations(*shape: int) -> dict[str, th.Tensor]:
    images = th.randint(256, (*shape, 3, 40, 36), dtype=th.uint8)
    return {"image": images, "frozen_features": th.randn(*shape, 12).half()}


def test_the_memory_reads_the_frozen_features_and_the_head_sees_the_present_image_too(encoder: FrozenEncoder) -> None:
    q_net = make_model(encoder).q_net
    obs = random_observations(3)
    values, state = q_net(obs, q_net.initial_state(3))
    other_image = obs | {"image": 255 - obs["image"]}
    other_values, other_state = q_net(other_image, q_net.initial_state(3))
    assert all(map(th.equal, state, other_state)) and not values.equal(other_values)
    other_features = obs | {"frozen_features": -obs["frozen_features"]}
    assert not q_net(other_features, q_net.initial_state(3))[1].hidden.equal(state.hidden)


def test_an_unroll_gives_the_values_of_its_steps_and_images_are_not_needed_to_advance(encoder: FrozenEncoder) -> None:
    q_net = make_model(encoder).q_net
    obs = random_observations(6, 4)
    unrolled, end = q_net.unroll(obs, q_net.initial_state(4))
    state = q_net.initial_state(4)
    for t in range(6):
        values, state = q_net({key: array[t] for key, array in obs.items()}, state)
        th.testing.assert_close(unrolled[t], values)
    advanced = q_net.advance({"frozen_features": obs["frozen_features"]}, q_net.initial_state(4))
    for field, expected, also in zip(end, state, advanced, strict=True):
        th.testing.assert_close(field, expected)
        th.testing.assert_close(also, expected)


@pytest.mark.parametrize("burn_in_gradient", [True, False])
def test_gradients_pass_through_the_burn_in_or_not(encoder: FrozenEncoder, burn_in_gradient: bool) -> None:
    policy_kwargs = dict(burn_in_gradient=burn_in_gradient)
    model = make_model(encoder, trace_length=3, burn_in_length=6, policy_kwargs=policy_kwargs, learning_starts=100)
    model.learn(60)
    batch, q_net = model.replay_buffer.sample(32), model.q_net
    rows = np.flatnonzero((batch.burn_in_lengths == 6) & batch.mask.all(dim=0).numpy())
    assert rows.size  # these windows start with their episode, from the initial state
    values = q_net.unroll(batch.observations, q_net.burn_in(batch))[0][:, rows]
    whole = {
        key: th.cat((batch.burn_in_observations[key][:6, rows], trained[:, rows]))
        for key, trained in batch.observations.items()
    }
    expected = q_net.unroll(whole, q_net.initial_state(len(rows)))[0][6:]
    th.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)
    weights = q_net.core.lstm.weight_ih_l0
    (gradient,), (full,) = (th.autograd.grad(v.square().sum(), weights, retain_graph=True) for v in (values, expected))
    assert th.allclose(gradient, full, rtol=1e-3, atol=1e-5) == burn_in_gradient
    with th.no_grad():
        assert not q_net.burn_in(batch).hidden.requires_grad


@pytest.mark.parametrize("keys", [["a"], [], ["frozen_features", "b"]])
def test_unknown_memory_keys_are_named(encoder: FrozenEncoder, keys: list[str]) -> None:
    with pytest.raises(ValueError, match=r"memory_keys=.* must be keys .* \['frozen_features', 'image'\]"):
        make_model(encoder, policy_kwargs=dict(memory_keys=keys))


def test_an_environment_without_frozen_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"observation_space=Box.* has no 'frozen_features'; wrap .* VecFrozenFeatures"):
        make_rdqn(counters(space=IMAGE), "FrozenFeaturesPolicy")


def test_a_model_trains_is_evaluated_and_saved(encoder: FrozenEncoder, tmp_path) -> None:
    model = make_model(encoder)
    before = {name: parameter.clone() for name, parameter in model.q_net.named_parameters()}
    model.learn(200)
    assert not any(parameter.equal(before[name]) for name, parameter in model.q_net.named_parameters() if "weight" in name)
    model.save(tmp_path / "model")
    models = (model, RecurrentDQN.load(tmp_path / "model", device="cpu"))
    envs = (VecFrozenFeatures(counters(2, space=IMAGE, length=9), encoder) for _ in models)
    returns = [evaluate_policy(*pair, 4, warn=False) for pair in zip(models, envs, strict=True)]
    assert returns[0] == returns[1]
