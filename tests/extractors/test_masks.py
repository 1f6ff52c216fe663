"""Matrices with a varying number of entities: padding has no weight and no influence."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.preprocessing import preprocess_obs

from sb3_attn import (
    HardAttentionExtractor,
    RecurrentDQN,
    SelfAttentionExtractor,
    SoftAttentionExtractor,
)
from sb3_attn.extractors import RegionExtractor
from tests.helpers.masks import (
    ALONE,
    MASK,
    MASK_KEYS,
    REAL,
    SELF,
    SPACE,
    UNITS,
    B,
    F,
    FiniteUnits,
    N,
    Units,
    batch,
    check_training_and_loading,
)

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


def make_extractor(variant: str, space: spaces.Dict = SPACE):
    th.manual_seed(0)
    extractor_class, kwargs = VARIANTS[variant]
    return extractor_class(space, features_dim=16, mask_keys=MASK_KEYS, **kwargs).eval()


@pytest.mark.parametrize("space", [SPACE, ALONE], ids=["with others", "alone"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_has_no_weight_and_no_influence(variant, space):
    """Whatever the padding contains, including NaN, features, weights and all gradients are the same."""
    extractor, observations = make_extractor(variant, space), batch(space)
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
    extractor, observations = make_extractor(variant), batch()
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
    extractor, observations = make_extractor(variant), batch()
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


@pytest.mark.parametrize("extractor_class", [SoftAttentionExtractor, HardAttentionExtractor, SelfAttentionExtractor])
@pytest.mark.parametrize("algorithm", [DQN, QRDQN, PPO, RecurrentDQN])
def test_algorithms_take_masks(algorithm, extractor_class, tmp_path):
    kwargs = dict(n_steps=8, batch_size=8) if algorithm is PPO else dict(learning_starts=8, buffer_size=400)
    if algorithm is RecurrentDQN:
        kwargs |= dict(trace_length=3, burn_in_length=2, batch_size=4)
    policy_kwargs = dict(
        features_extractor_class=extractor_class, features_extractor_kwargs=dict(features_dim=16, mask_keys=MASK_KEYS)
    )
    env = FiniteUnits() if algorithm is RecurrentDQN else Units()
    model = algorithm("MultiInputPolicy", env, policy_kwargs=policy_kwargs, device="cpu", seed=0, **kwargs)
    check_training_and_loading(model, tmp_path)


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
