"""Matrices with a varying number of entities: padding has no weight and no influence."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import preprocess_obs

from sb3_attn import (
    DARQNPolicy,
    HardAttentionExtractor,
    RecurrentDQN,
    SelfAttentionExtractor,
    SoftAttentionExtractor,
    SoftAttentionPolicy,
)
from sb3_attn.extractors import RegionExtractor
from sb3_attn.viz import record_episode, tokens_figure
from sb3_attn.viz.sources import token_parts

N, F, B = 5, 3, 4
UNITS = spaces.Box(-1.0, 1.0, (N, F), np.float32)
SELF = spaces.Box(-1.0, 1.0, (2,), np.float32)
#: Gymnasium sorts the keys: self has tokens 0 and 1, units the others
SPACE = spaces.Dict({"self": SELF, "units": UNITS, "units_mask": spaces.MultiBinary(N)})
ALONE = spaces.Dict(units=UNITS, units_mask=spaces.MultiBinary(N))
MASK_KEYS = {"units": "units_mask"}
MASK = np.array([[1, 1, 0, 0, 1], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], np.int8)
REAL = th.as_tensor(MASK, dtype=th.bool)

VARIANTS = {
    "soft": (SoftAttentionExtractor, {}),
    "soft, mean query": (SoftAttentionExtractor, dict(score="dot_product", query="mean", n_heads=2)),
    "soft, query": (SoftAttentionExtractor, dict(score="bilinear", query=0)),
    "soft, apart": (SoftAttentionExtractor, dict(sum_tokens=False)),
    "hard": (HardAttentionExtractor, dict(n_heads=2)),
    "self, max": (SelfAttentionExtractor, dict(n_blocks=2)),
    "self, mean": (SelfAttentionExtractor, dict(pooling="mean")),
    "self, token": (SelfAttentionExtractor, dict(pooling=0)),
}


def make(variant: str, space: spaces.Dict = SPACE):
    th.manual_seed(0)
    extractor_class, kwargs = VARIANTS[variant]
    return extractor_class(space, features_dim=16, mask_keys=MASK_KEYS, **kwargs).eval()


def batch(space: spaces.Dict = SPACE) -> dict[str, th.Tensor]:
    """Preprocessed observations, as an extractor receives them, with ``MASK``."""
    space.seed(0)
    samples = [space.sample() for _ in range(B)]
    tensors = {key: th.as_tensor(np.stack([sample[key] for sample in samples])) for key in space.spaces}
    tensors["units_mask"] = th.as_tensor(MASK)
    return preprocess_obs(tensors, space)


@pytest.mark.parametrize("space", [SPACE, ALONE], ids=["with others", "alone"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_has_no_weight_and_no_influence(variant, space):
    """Whatever the padding contains, including NaN, features, weights and all gradients are the same."""
    extractor, observations = make(variant, space), batch(space)
    results = []
    for content in (0.0, 1e30, float("nan")):
        units = th.where(REAL.unsqueeze(-1), observations["units"], content).requires_grad_()
        extractor.zero_grad()
        features, weights = extractor.attend({**observations, "units": units}, need_weights=True)
        features.sum().backward()
        gradients = [parameter.grad.clone() for parameter in extractor.parameters() if parameter.grad is not None]
        results.append([features, weights, units.grad, *gradients])
        assert all(tensor.isfinite().all() for tensor in results[-1])
        assert all(map(th.equal, results[-1], results[0]))
        assert not units.grad[~REAL].any()
    n_others = weights.shape[-1] - N
    padding = th.cat((th.zeros(B, n_others, dtype=th.bool), ~REAL), dim=1).unsqueeze(1).expand_as(weights)
    assert (weights[padding] == 0).all()
    has_tokens = (~padding).any(dim=-1)
    th.testing.assert_close(weights.sum(dim=-1), has_tokens.float())
    th.testing.assert_close(extractor(observations), features, atol=1e-5, rtol=1e-5)  # without the weights


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "soft, apart"])
def test_padding_is_the_same_as_no_padding(variant):
    """The same as an extractor with the same parameters over a space without the padding."""
    extractor, observations = make(variant), batch()
    for row in range(B):
        real = REAL[row]
        n = int(real.sum())
        if n == 0:
            continue
        space = spaces.Dict({"self": SELF, "units": spaces.Box(-1.0, 1.0, (n, F), np.float32)})
        extractor_class, kwargs = VARIANTS[variant]
        unpadded = extractor_class(space, features_dim=16, **kwargs).eval()
        unpadded.load_state_dict(extractor.state_dict())
        one = {key: value[row : row + 1] for key, value in observations.items()}
        features, weights = extractor.attend(one, need_weights=True)
        expected, expected_weights = unpadded.attend({"self": one["self"], "units": one["units"][:, real]}, need_weights=True)
        th.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
        th.testing.assert_close(weights[..., th.cat((th.ones(2, dtype=th.bool), real))], expected_weights)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "soft, apart"])
def test_entities_and_their_masks_can_change_places(variant):
    extractor, observations = make(variant), batch()
    order = th.randperm(N)
    permuted = {**observations, **{key: observations[key][:, order] for key in ("units", "units_mask")}}
    features, weights = extractor.attend(observations, need_weights=True)
    permuted_features, permuted_weights = extractor.attend(permuted, need_weights=True)
    th.testing.assert_close(permuted_features, features, atol=1e-5, rtol=1e-5)
    th.testing.assert_close(permuted_weights[..., 2:], weights[..., 2:][..., order])


@pytest.mark.parametrize(
    "mask_space",
    [
        spaces.MultiBinary(N),
        spaces.Box(0, 1, (N,), np.float32),
        spaces.Box(0, 1, (N,), np.uint8),
        spaces.Box(0, 1, (N,), bool),
    ],
    ids=str,
)
def test_masks_may_be_of_any_type(mask_space):
    space = spaces.Dict({"self": SELF, "units": UNITS, "units_mask": mask_space})
    extractor = SoftAttentionExtractor(space, mask_keys=MASK_KEYS)
    observations = preprocess_obs({**batch(), "units_mask": th.as_tensor(MASK.astype(mask_space.dtype))}, space)
    assert extractor.tokenizer.n_tokens == 2 + N
    assert th.equal(extractor.tokenizer.mask(observations)[:, 2:], REAL)
    assert extractor.tokenizer.mask(observations)[:, :2].all()


def test_matrices_may_share_a_mask_or_have_none():
    space = spaces.Dict(a=UNITS, b=UNITS, c=UNITS, mask=spaces.MultiBinary(N))
    tokenizer = SoftAttentionExtractor(space, mask_keys={"a": "mask", "b": "mask"}).tokenizer
    observations = {key: th.rand(B, N, F) for key in "abc"} | {"mask": th.as_tensor(MASK).float()}
    assert th.equal(tokenizer.mask(observations), th.cat((REAL, REAL, th.ones_like(REAL)), dim=1))


def test_images_may_stand_beside_masked_entities():
    space = spaces.Dict(image=spaces.Box(0, 255, (3, 64, 64), np.uint8), **ALONE.spaces)
    extractor = SoftAttentionExtractor(space, trunk="patches", mask_keys=MASK_KEYS)
    observations = {**batch(ALONE), "image": th.rand(B, 3, 64, 64)}
    weights = extractor.attend(observations)[1]
    assert weights.shape == (B, 1, 64 + N) and (weights[:, 0, 64:][~REAL] == 0).all()


class Units(gym.Env):
    """A varying number of units, sometimes none, with NaN in the padding, for a few steps."""

    metadata = {"render_modes": []}
    observation_space = SPACE
    action_space = spaces.Discrete(3)

    def _observe(self):
        observation = SPACE.sample()
        n = int(self.np_random.integers(N + 1))
        observation["units_mask"] = (np.arange(N) < n).astype(np.int8)
        observation["units"][n:] = np.nan
        return observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), float(action == 0), self.steps == 4, False, {}


def observations_of(env: Units, n: int = 20) -> dict[str, np.ndarray]:
    samples = [env._observe() for _ in range(n)]
    return {key: np.stack([sample[key] for sample in samples]) for key in SPACE.spaces}


@pytest.mark.parametrize("extractor_class", [SoftAttentionExtractor, HardAttentionExtractor, SelfAttentionExtractor])
@pytest.mark.parametrize("algorithm", [DQN, QRDQN, PPO])
def test_algorithms_take_masks(algorithm, extractor_class, tmp_path):
    env = Units()
    kwargs = dict(n_steps=8, batch_size=8) if algorithm is PPO else dict(learning_starts=8, buffer_size=100)
    policy_kwargs = dict(
        features_extractor_class=extractor_class, features_extractor_kwargs=dict(features_dim=16, mask_keys=MASK_KEYS)
    )
    model = algorithm("MultiInputPolicy", env, policy_kwargs=policy_kwargs, device="cpu", seed=0, **kwargs)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    check_training_and_loading(model.learn(24), before, env, tmp_path)


RECURRENT = dict(learning_starts=8, buffer_size=100, trace_length=3, burn_in_length=2, batch_size=4, device="cpu", seed=0)


class FiniteUnits(Units):
    """Finite padding, since RecurrentDQN refuses observations that are not finite."""

    def _observe(self):
        observation = super()._observe()
        return {**observation, "units": np.nan_to_num(observation["units"], nan=7.0)}


@pytest.mark.parametrize("extractor_class", [SoftAttentionExtractor, HardAttentionExtractor, SelfAttentionExtractor])
def test_recurrent_dqn_takes_masks(extractor_class, tmp_path):
    env = FiniteUnits()
    policy_kwargs = dict(
        features_extractor_class=extractor_class, features_extractor_kwargs=dict(features_dim=16, mask_keys=MASK_KEYS)
    )
    model = RecurrentDQN("MultiInputPolicy", env, policy_kwargs=policy_kwargs, **RECURRENT)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    check_training_and_loading(model.learn(24), before, env, tmp_path)


@pytest.mark.parametrize("selection", ["soft", "straight_through", "reinforce"])
def test_a_memory_that_attends_takes_masks(selection, tmp_path):
    env = FiniteUnits()
    policy_kwargs = dict(
        features_extractor_kwargs=dict(mask_keys=MASK_KEYS),
        core_kwargs=dict(hidden_size=8, attention_size=8, selection=selection),
    )
    model = RecurrentDQN(DARQNPolicy, env, policy_kwargs=policy_kwargs, **RECURRENT)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    check_training_and_loading(model.learn(24), before, env, tmp_path)


def check_training_and_loading(model, before, env, tmp_path):
    parameters = list(model.policy.parameters())
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert any(not th.equal(old, new) for old, new in zip(before, parameters, strict=True))
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=env)
    observations, first = observations_of(env), np.ones(20, dtype=bool)
    actions = model.predict(observations, episode_start=first, deterministic=True)[0]
    real = observations["units_mask"].astype(bool)[..., None]
    other = {**observations, "units": np.where(real, observations["units"], -3.0).astype(np.float32)}
    for inputs in (observations, other):
        np.testing.assert_array_equal(loaded.predict(inputs, episode_start=first, deterministic=True)[0], actions)
    evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=2)


@pytest.mark.parametrize("space", [SPACE, ALONE], ids=["with others", "alone"])
@pytest.mark.parametrize("selection", ["soft", "straight_through", "reinforce"])
def test_a_memory_never_looks_at_padding(selection, space):
    """Nor in training mode, where regions are drawn."""
    policy = DARQNPolicy(
        space,
        spaces.Discrete(2),
        lambda _: 1e-3,
        features_extractor_kwargs=dict(mask_keys=MASK_KEYS),
        core_kwargs=dict(hidden_size=8, attention_size=8, selection=selection),
    )
    network, observations, results = policy.q_net.train(), batch(space), []
    for content in (0.0, float("nan")):
        units = th.where(REAL.unsqueeze(-1), observations["units"], content)
        inputs = network.features_extractor({**observations, "units": units})
        th.manual_seed(0)
        outputs, state = network.core(inputs, network.initial_state(B))
        _, weights = network.core.attend(inputs, state)
        network.zero_grad()
        (outputs.sum() + network.core.surrogate_loss(th.arange(float(B)), state)).backward()
        gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        results.append([outputs, state.log_probability, weights, *gradients])
    assert all(map(th.equal, *results)) and all(tensor.isfinite().all() for tensor in results[0])
    assert (weights[:, 0, -N:][~REAL] == 0).all()


def test_pictures_of_a_model_with_masks():
    policy_kwargs = dict(features_extractor_kwargs=dict(features_dim=16, mask_keys=MASK_KEYS))
    model = DQN(SoftAttentionPolicy, Units(), policy_kwargs=policy_kwargs, buffer_size=10, device="cpu", seed=0)
    tokenizer = model.q_net.features_extractor.tokenizer
    parts = token_parts(tokenizer, model.observation_space)
    assert [(part.key, part.kind, part.start, part.stop) for part in parts] == [
        ("self", "entry", 0, 2),
        ("units", "entity", 2, 7),
    ]
    episode = record_episode(model, Units())
    (recorded,) = episode.recorded_weights
    assert recorded.weights.shape == (4, 1, 7) and np.isfinite(recorded.entropy).all()
    assert (recorded.weights[:, 0, 2:][episode.observations["units_mask"] == 0] == 0).all()
    tokens_figure(recorded)


@pytest.mark.parametrize(
    ("space", "mask_keys", "message"),
    [
        (SPACE, {"unit": "units_mask"}, r"there is no key 'unit'; choose from \['self', 'units', 'units_mask'\]"),
        (SPACE, {"units": "mask"}, "there is no key 'mask'"),
        (SPACE, {"self": "units_mask"}, "'self' is .*; only rows of a Box with two axes can be masked"),
        (SPACE, {"units": "self"}, r"'self' is .* does not fit the 5 rows of 'units'; make it MultiBinary\(5\)"),
        (spaces.Dict(a=UNITS, b=spaces.MultiDiscrete([2] * N)), {"a": "b"}, "does not fit the 5 rows of 'a'"),
        (UNITS, MASK_KEYS, "name entries of a Dict, but observation_space=.*; put both into a Dict"),
    ],
    ids=["matrix missing", "mask missing", "no matrix", "length", "one-hot", "no Dict"],
)
@pytest.mark.parametrize(
    "extractor_class", [SoftAttentionExtractor, HardAttentionExtractor, SelfAttentionExtractor, RegionExtractor]
)
def test_masks_that_do_not_fit_are_refused(extractor_class, space, mask_keys, message):
    with pytest.raises(ValueError, match=message):
        extractor_class(space, mask_keys=mask_keys)
