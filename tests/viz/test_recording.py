"""Recordings: the weights are those of the network, and the model stays as it was."""

import copy

import numpy as np
import pytest
import torch as th

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from sb3_attn import HardAttentionExtractor, RecurrentDQN, SelfAttentionExtractor
from sb3_attn.viz import SOURCES, TokenPart, WeightSource, attention_video, find_sources, record_episode
from sb3_attn.viz.sources import acting_network, features_extractor
from tests.helpers.attention import ALGORITHMS, LENGTH, Rendered, make_darqn, make_env, make_model

#: Dividing an image by 255 leaves the weights of an untrained network all alike, so they are scaled up
SCALE = 20.0


def scale(model):
    with th.no_grad():
        for parameter in features_extractor(acting_network(model)).tokenizer.parameters():
            parameter *= SCALE


@pytest.mark.parametrize("kind", ["image", "vector", "entities", "dict"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_weights_are_those_of_the_observations(algorithm, kind):
    model = make_model(algorithm, make_env(kind))
    scale(model)
    episode = record_episode(model, make_env(kind, n_envs=2))
    n_tokens = {"image": 25, "vector": 4, "entities": 3, "dict": 29}[kind]
    assert len(episode) == LENGTH and episode.finished and episode.fps == 7
    (recorded,) = episode.recorded_weights
    assert recorded.weights.shape == (LENGTH, 2, n_tokens)
    np.testing.assert_allclose(recorded.weights.sum(axis=-1), 1, rtol=1e-5)
    assert np.ptp(recorded.weights, axis=0).max() > 1e-3  # they depend on the observation
    for step in range(LENGTH):
        observation = episode.observation(step)
        batch = {k: v[None] for k, v in observation.items()} if kind == "dict" else observation[None]
        tensors, _ = model.policy.obs_to_tensor(batch)
        with th.no_grad():
            inputs = preprocess_obs(tensors, model.policy.observation_space)
            expected = features_extractor(acting_network(model)).attend(inputs, need_weights=True)[1][0]
        np.testing.assert_allclose(recorded.weights[step], expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(episode.rewards, 10.0 * np.arange(1, LENGTH + 1))
    assert episode.frames is not None and episode.frames.shape == (LENGTH, 32, 48, 3)
    assert episode.frames[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160]  # the frame of the observation, not of the next


@pytest.mark.parametrize("algorithm", [DQN, RecurrentDQN])
def test_actions_are_those_that_the_model_predicts(algorithm):
    model = make_model(algorithm, make_env("vector"))
    episode = record_episode(model, make_env("vector"))
    state, starts = None, np.ones(1, dtype=bool)
    for step in range(LENGTH):
        np.testing.assert_equal(episode.states[step], state)
        action, state = model.predict(episode.observation(step)[None], state, starts, deterministic=True)
        starts[:] = False
        assert episode.actions[step] == action[0]
    assert (state is None) is (algorithm is DQN)


@pytest.mark.parametrize("kind", ["image", "vector", "dict"])
def test_wrapped_environments_are_recorded(kind):
    env = make_env(kind, normalize=True, n_stack=2)
    model = make_model(DQN, env)
    normalize = env.venv
    assert isinstance(normalize, VecNormalize)
    env.reset()
    normalize.training = True
    before = copy.deepcopy(normalize.obs_rms)
    episode = record_episode(model, env)
    assert episode.n_stack == 2
    np.testing.assert_array_equal(episode.rewards, 10.0 * np.arange(1, LENGTH + 1))  # not the normalised ones
    after = normalize.obs_rms
    for old, new in zip(*(rms.values() if kind == "dict" else [rms] for rms in (before, after)), strict=True):
        np.testing.assert_array_equal(old.mean, new.mean)
    assert normalize.training


class OneArray(VecEnvWrapper):
    """Returns all its observations in the same array."""

    def reset(self):
        self.array = self.venv.reset()
        return self.array

    def step_wait(self):
        observations, *rest = self.venv.step_wait()
        self.array[:] = observations
        return self.array, *rest


def test_an_environment_may_write_over_its_observations():
    model = make_model(DQN, make_env("vector"))
    expected, found = (record_episode(model, env).observations for env in (make_env("vector"), OneArray(make_env("vector"))))
    np.testing.assert_array_equal(expected, found)


def test_an_environment_without_wrappers_is_wrapped():
    model = make_model(DQN, make_env("image"))
    assert record_episode(model, Rendered("image"), n_steps=2).observations.shape == (2, 3, 64, 64)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(algorithm, training):
    model = make_model(algorithm, make_env("image"))
    model.policy.set_training_mode(training)
    parameters = copy.deepcopy(model.policy.state_dict())
    attributes = {name: sorted(vars(module)) for name, module in model.policy.named_modules()}
    record_episode(model, make_env("image"), n_steps=2)
    assert {name: sorted(vars(module)) for name, module in model.policy.named_modules()} == attributes
    th.testing.assert_close(model.policy.state_dict(), parameters, rtol=0, atol=0)
    assert model.policy.training is training
    for module in model.policy.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_hard_attention_does_not_sample_even_during_training():
    model = make_model(DQN, make_env("image"), HardAttentionExtractor)
    model.policy.set_training_mode(True)
    first, second = (record_episode(model, make_env("image")).recorded_weights[0].weights for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first.max(axis=-1), 1)


def test_the_extractor_of_the_actor_is_recorded_not_that_of_the_value_function():
    env = make_env("vector")
    kwargs = dict(features_extractor_class=SelfAttentionExtractor, share_features_extractor=False)
    model = PPO("MlpPolicy", env, policy_kwargs=kwargs, device="cpu")
    (source,) = find_sources(model)
    assert features_extractor(source.network) is model.policy.pi_features_extractor


def test_a_core_that_attends_is_recorded_with_its_memory():
    model = make_darqn(make_env("image"))
    scale(model)
    episode = record_episode(model, make_env("image"))
    (recorded,) = episode.recorded_weights
    assert recorded.name == "core_attention" and recorded.weights.shape == (LENGTH, 1, 25)
    network = model.policy.q_net
    with th.no_grad():
        state = network.initial_state(1)
        for step in range(LENGTH):
            tensors, _ = model.policy.obs_to_tensor(episode.observation(step)[None])
            regions = network.extract_features(tensors, network.features_extractor)
            expected = network.core.attend(regions, state)[1][0]
            np.testing.assert_allclose(recorded.weights[step], expected.numpy(), atol=1e-6)
            _, state = network(tensors, state)


def test_a_new_source_is_found(monkeypatch):
    class Reads(WeightSource):
        name = "read_weights"

        @classmethod
        def from_network(cls, network):
            return [cls(network, (TokenPart(None, "slot", 0, 8),))]

        def weights(self, observations, state=None, next_state=None):
            return th.as_tensor(next_state[0]).softmax(dim=-1).unsqueeze(1)

    monkeypatch.setattr("sb3_attn.viz.sources.SOURCES", [*SOURCES, Reads])
    episode = record_episode(make_model(RecurrentDQN, make_env("vector")), make_env("vector"))
    assert [recorded.name for recorded in episode.recorded_weights] == ["attention", "read_weights"]
    assert episode.recorded_weights[1].weights.shape == (LENGTH, 1, 8)


def test_a_model_without_attention_is_recorded_without_weights():
    model = make_model(DQN, make_env("vector"), FlattenExtractor)
    episode = record_episode(model, make_env("vector"))
    assert episode.recorded_weights == [] and episode.action_scores is not None
    with pytest.raises(ValueError, match="has no weights to show; draw values_figure"):
        next(iter(attention_video(episode)))
    with pytest.raises(ValueError, match=r"This DQN has no attention .* extractor is FlattenExtractor; train it with .*Soft"):
        find_sources(model)


def test_an_environment_or_length_that_does_not_fit_is_refused():
    model = make_model(DQN, make_env("vector"))
    with pytest.raises(ValueError, match="The environment does not fit the model"):
        record_episode(model, make_env("entities"))
    with pytest.raises(ValueError, match="n_steps=0 records nothing"):
        record_episode(model, make_env("vector"), n_steps=0)


def test_entropy_and_peak():
    model = make_model(DQN, make_env("dict"))
    recorded = record_episode(model, make_env("dict")).recorded_weights[0]
    for step in range(LENGTH):
        for head in range(2):
            row = recorded.weights[step, head].astype(float)
            assert recorded.entropy[step, head] == pytest.approx(sum(-w * np.log(w) for w in row if w > 0), rel=1e-4)
            assert recorded.peak[step, head] == max(recorded.weights[step, head])
    recorded.weights = np.eye(4)[:, None]
    np.testing.assert_array_equal(recorded.entropy, 0)  # 0 ln 0 is 0
    assert not np.signbit(recorded.entropy).any(), "printed as -0.00"


def test_a_saved_episode_has_weights_tokens_and_receptive_fields(tmp_path):
    model = make_model(DQN, make_env("dict"))
    episode = record_episode(model, make_env("dict"))
    episode.save(tmp_path / "episode.npz")
    with np.load(tmp_path / "episode.npz") as arrays:
        np.testing.assert_array_equal(arrays["attention/weights"], episode.recorded_weights[0].weights)
        np.testing.assert_array_equal(arrays["rewards"], episode.rewards)
        assert arrays["attention/image/grid"].tolist() == [5, 5]
        assert arrays["attention/image/receptive_field"].tolist() == [16, 12]
        start, stop = arrays["attention/image/tokens"]
        assert stop - start == 25
