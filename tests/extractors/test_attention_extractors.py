"""Attention extractors in stock DQN and SB3's other algorithms, with tokens of every kind of observation."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import nn

import sb3_attn
from sb3_attn import (
    DQNSAPolicy,
    HardAttentionExtractor,
    HardAttentionPolicy,
    RecurrentDQN,
    SelfAttentionExtractor,
    SelfAttentionPolicy,
    SoftAttentionExtractor,
    SoftAttentionPolicy,
)
from sb3_attn.dqn.policies import AttentionPolicy
from sb3_attn.extractors import RegionExtractor
from sb3_attn.extractors.tokenizers import make_tokenizer

ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
RGB = spaces.Box(0, 255, (3, 64, 64), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (5,), np.float32)
ENTITIES = spaces.Box(-1.0, 1.0, (6, 3), np.float32)
DICT = spaces.Dict(image=RGB, entities=ENTITIES, vector=VECTOR, kind=spaces.Discrete(3))
SPACES = {
    "atari": (ATARI, 49),
    "rgb": (RGB, 16),
    "vector": (VECTOR, 5),
    "entities": (ENTITIES, 6),
    "discrete": (spaces.Discrete(3), 3),
    "binary": (spaces.MultiBinary(4), 4),
    "dict": (DICT, 16 + 6 + 5 + 3),
}
EXTRACTORS = [SoftAttentionExtractor, HardAttentionExtractor, SelfAttentionExtractor]


class Bandit(gym.Env):
    """Random observations, one step."""

    def __init__(self, space: spaces.Space, action_space: spaces.Space | None = None) -> None:
        self.observation_space = space
        self.action_space = spaces.Discrete(4) if action_space is None else action_space

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(np.sum(action) > 0), True, False, {}


def batch(space: spaces.Space, n: int = 3):
    """Preprocessed observations, as an extractor receives them."""
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        tensors = {key: th.as_tensor(np.stack([sample[key] for sample in samples])) for key in space.spaces}
    else:
        tensors = th.as_tensor(np.stack(samples))
    return preprocess_obs(tensors, space)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("extractor_class", EXTRACTORS)
def test_features_and_weights_have_their_shapes(extractor_class, kind):
    space, n_tokens = SPACES[kind]
    extractor = extractor_class(space, features_dim=32, n_heads=2).eval()
    features, weights = extractor.attend(batch(space), need_weights=True)
    assert features.shape == (3, 32) and weights.shape == (3, 2, n_tokens)
    th.testing.assert_close(weights.sum(dim=-1), th.ones(3, 2))
    th.testing.assert_close(extractor(batch(space)), features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("policy", "kwargs", "expected"),
    [
        (DQNSAPolicy, {}, 147_109),
        (DQNSAPolicy, dict(sum_tokens=False), 1_719_973),
        (SoftAttentionPolicy, dict(attention_size=512, coordinates=False), 147_109),
    ],
    ids=str,
)
def test_dqn_sa_has_the_number_of_parameters_of_the_corrected_network(policy, kwargs, expected):
    model = DQN(policy, Bandit(ATARI), buffer_size=1, policy_kwargs=dict(features_extractor_kwargs=kwargs))
    assert sum(parameter.numel() for parameter in model.q_net.parameters()) == expected
    assert model.q_net.features_extractor.attend(batch(ATARI))[1].shape == (3, 1, 49)


def test_weighted_tokens_add_up_to_the_context():
    summed = SoftAttentionExtractor(RGB)
    apart = SoftAttentionExtractor(RGB, sum_tokens=False)
    assert apart.linear[0].in_features == 16 * summed.linear[0].in_features


def test_attention_sees_where_a_region_is_only_with_coordinates():
    image = batch(RGB, 1)
    moved = th.roll(image, (8, 16), dims=(2, 3))  # whole patches, around the edges
    for coordinates in (False, True):
        extractor = SoftAttentionExtractor(RGB, trunk="patches", coordinates=coordinates)
        same = th.allclose(extractor(image), extractor(moved), atol=1e-5)
        assert same is not coordinates


def test_entities_are_a_set_and_entries_are_not():
    for space, is_set in ((ENTITIES, True), (VECTOR, False)):
        extractor = SelfAttentionExtractor(space)
        observations = batch(space)
        same = th.allclose(extractor(observations), extractor(observations.flip(1)), atol=1e-5)
        assert same is is_set


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("trunk", ["nature", "patches", [(16, 8, 4), (32, 3, 2)]], ids=str)
def test_regions_depend_on_the_pixels_of_their_receptive_field(trunk, channels_last):
    """A changed pixel changes exactly those regions whose field covers it."""
    tokenizer = make_tokenizer(RGB, trunk=trunk, coordinates=False, channels_last=channels_last)
    for layer in tokenizer.trunk:
        if isinstance(layer, nn.Conv2d):  # all signs the same, or ReLU would hide changes
            nn.init.constant_(layer.weight, 0.1)
            nn.init.constant_(layer.bias, 0.1)
    field, (rows, columns) = tokenizer.receptive_field, tokenizer.grid
    before = tokenizer(th.zeros(1, 3, 64, 64))
    for y, x in ((0, 0), (13, 40), (63, 20)):
        image = th.zeros(1, 3, 64, 64)
        image[0, :, y, x] = 1.0
        changed = (tokenizer(image) != before).any(dim=-1).reshape(rows, columns)
        starts = field.stride * th.arange(max(rows, columns))
        seen = (starts[:rows, None] <= y) & (y < starts[:rows, None] + field.size)
        seen = seen & (starts[None, :columns] <= x) & (x < starts[None, :columns] + field.size)
        assert th.equal(changed, seen)


def test_the_layout_of_images_changes_nothing():
    first = SoftAttentionExtractor(ATARI, channels_last=False)
    second = SoftAttentionExtractor(ATARI, channels_last=True)
    second.load_state_dict(first.state_dict())
    th.testing.assert_close(second(batch(ATARI)), first(batch(ATARI)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("extractor_class", [SoftAttentionExtractor, SelfAttentionExtractor, RegionExtractor])
def test_former_names_of_parameters_load(extractor_class):
    """The tokenizer was once called tokens, as were the tokenizers of the keys of a Dict."""
    extractor, other = extractor_class(DICT), extractor_class(DICT)
    former = {
        name.replace("tokenizer.", "tokens.").replace("tokenizers.", "tokens."): parameter
        for name, parameter in extractor.state_dict().items()
    }
    assert "tokens.tokens.image.trunk.0.weight" in former
    other.load_state_dict(former)
    assert all(map(th.equal, extractor.state_dict().values(), other.state_dict().values()))


def test_the_mean_is_the_query_where_the_score_needs_one():
    assert SoftAttentionExtractor(ENTITIES, score="bilinear").query == "mean"
    assert SoftAttentionExtractor(ENTITIES, score="additive").query is None


@pytest.mark.parametrize(("pooling", "n_read"), [("max", 6), ("mean", 6), (4, 1), (np.int64(4), 1), (-2, 1)])
def test_self_attention_reads_the_tokens_that_it_pools(pooling, n_read):
    """With the attention between tokens zeroed, they reach the features only through the pooling."""
    extractor = SelfAttentionExtractor(ENTITIES, pooling=pooling)
    with th.no_grad():
        extractor.blocks[0].attention.out_projection.weight.zero_()
    observations = batch(ENTITIES, 20).requires_grad_()
    extractor(observations).sum().backward()
    read = observations.grad.abs().sum(dim=(0, 2)) > 0
    assert read.sum() == n_read and (n_read > 1 or read[pooling])


@pytest.mark.parametrize("index", [2, -4, np.int64(2), np.uint8(2)], ids=repr)
def test_a_token_can_be_the_query(index):
    extractor = SoftAttentionExtractor(ENTITIES, score="bilinear", query=index)
    assert type(extractor.query) is int and extractor.query % 6 == 2
    observations = batch(ENTITIES)
    _, weights = extractor.attend(observations)
    observations[:, 2] += 1.0
    others = [i for i in range(6) if i != 2]
    _, changed = extractor.attend(observations)
    ratio = (changed / weights)[..., others]
    assert (ratio.std(dim=-1) > 1e-3).all()  # the other tokens are compared with something else


@pytest.mark.parametrize("extractor_class", EXTRACTORS)
@pytest.mark.parametrize("algorithm", [DQN, QRDQN, PPO, SAC, RecurrentDQN])
def test_every_algorithm_learns_with_attention_extractors(algorithm, extractor_class, tmp_path):
    actions = spaces.Box(-1.0, 1.0, (2,)) if algorithm is SAC else spaces.Discrete(4)
    env = Bandit(ENTITIES, actions)
    kwargs = dict(n_steps=8, batch_size=8) if algorithm is PPO else dict(learning_starts=8, buffer_size=400)
    policy_kwargs = dict(features_extractor_class=extractor_class, features_extractor_kwargs=dict(features_dim=16))
    model = algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, device="cpu", seed=0, **kwargs)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(24)
    assert any(not th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env)
    observations = np.stack([ENTITIES.sample() for _ in range(7)])
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )
    evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=2)


@pytest.mark.parametrize("extractor_class", EXTRACTORS)
def test_rollouts_and_updates_of_ppo_have_the_same_probabilities(extractor_class):
    policy = PPO(
        "MlpPolicy", Bandit(ENTITIES), policy_kwargs=dict(features_extractor_class=extractor_class), device="cpu"
    ).policy
    observations, actions = batch(ENTITIES, 50), th.arange(50) % 4
    acting, updating = (policy.train(mode).evaluate_actions(observations, actions)[1] for mode in (False, True))
    assert th.equal(acting, updating)


@pytest.mark.parametrize("policy", [HardAttentionPolicy, SoftAttentionPolicy])
def test_updates_of_dqn_draw_with_hard_attention(policy):
    q_net = DQN(policy, Bandit(ENTITIES), buffer_size=50, device="cpu").q_net.train()
    observations = batch(ENTITIES, 50)
    assert th.equal(q_net(observations), q_net(observations)) == (policy is SoftAttentionPolicy)


@pytest.mark.parametrize("extractor_class", EXTRACTORS)
def test_images_go_through_the_orthogonal_initialisation_of_ppo(extractor_class):
    policy_kwargs = dict(features_extractor_class=extractor_class, features_extractor_kwargs=dict(features_dim=16))
    PPO("CnnPolicy", Bandit(RGB), n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=policy_kwargs, device="cpu").learn(8)


NAMED = [name for name in sb3_attn.__all__ if "Attention" in name and name.endswith("Policy")] + ["DQNSAPolicy"]


@pytest.mark.parametrize("name", NAMED)
def test_named_policies_need_no_arguments(name, tmp_path):
    policy = getattr(sb3_attn, name)
    assert issubclass(policy, AttentionPolicy)
    space = ATARI if "Mlp" not in name else VECTOR
    model = DQN(policy, Bandit(space), buffer_size=50, learning_starts=5, batch_size=4, device="cpu").learn(9)
    model.policy.save(tmp_path / "policy")
    loaded = policy.load(tmp_path / "policy")
    for expected, parameter in zip(model.policy.parameters(), loaded.parameters(), strict=True):
        assert th.equal(expected, parameter)
    model.save(tmp_path / "model")
    assert type(DQN.load(tmp_path / "model").policy) is policy


@pytest.mark.parametrize("policy", [SoftAttentionPolicy, HardAttentionPolicy, SelfAttentionPolicy])
def test_targets_and_acting_are_deterministic(policy):
    model = DQN(policy, Bandit(RGB), buffer_size=50, learning_starts=5, batch_size=4, device="cpu").learn(9)
    observations = batch(RGB)
    model.policy.set_training_mode(True)  # as in an update
    assert th.equal(model.q_net_target(observations), model.q_net_target(observations))
    images = np.stack([RGB.sample() for _ in range(5)])
    assert all(
        (model.predict(images, deterministic=True)[0] == model.predict(images, deterministic=True)[0]).all() for _ in range(5)
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(trunk="resnet"), r"trunk='resnet' is unknown; choose one of \['nature', 'patches'\]"),
        (dict(trunk=[(8, 100, 4)]), r"does not fit an image of 64 x 64 pixels: its convolution 0 needs 100 x 100"),
        (dict(query=16), "query=16 is unknown; choose 'mean', or the index of one of 16 tokens"),
        (dict(query=np.int64(-17)), "query=.*-17.* is unknown"),
        (dict(query="median"), "query='median' is unknown"),
        (dict(query=True), "query=True is unknown"),
        (dict(query=2.0), "query=2.0 is unknown"),
        (dict(query=[3]), r"query=\[3\] is unknown"),
        (dict(score="linear", query="mean"), "no use for a query"),
        (dict(score="cosine"), "score='cosine' is unknown"),
        (dict(trunk=[]), r"trunk=\[\] must be a list of \(channels, kernel size, stride\)"),
        (dict(trunk=[(8, 4)]), r"trunk=\[\(8, 4\)\] must be a list"),
        (dict(trunk=[(8, 4, 0)]), r"trunk=\[\(8, 4, 0\)\] must be a list"),
        (dict(trunk=[(8, 4, 2.0)]), r"trunk=\[\(8, 4, 2.0\)\] must be a list"),
        (dict(trunk=[4]), r"trunk=\[4\] must be a list"),
        (dict(trunk=4), "trunk=4 must be a list"),
        (dict(token_size=0), "token_size=0 must be at least 1"),
        (dict(features_dim=0), "features_dim=0 must be at least 1"),
        (dict(sum_tokens="no"), "sum_tokens='no' must be True or False"),
        (dict(coordinates="no"), "coordinates='no' must be True or False"),
        (dict(mask_keys=["units"]), r"mask_keys=\['units'\] must map keys"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SoftAttentionExtractor(RGB, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(pooling="sum"), "pooling='sum' is unknown"),
        (dict(pooling=16), "pooling=16 is unknown; choose 'max', 'mean', or the index of one of 16 tokens"),
        (dict(pooling=np.int64(16)), "pooling=.*16.* is unknown"),
        (dict(pooling=np.bool_(True)), "pooling=.*True.* is unknown"),
        (dict(pooling=1.0), "pooling=1.0 is unknown"),
        (dict(pooling=None), "pooling=None is unknown"),
        (dict(n_blocks=0), "n_blocks=0 must be at least 1"),
        (dict(block_size=0), "block_size=0 must be at least 1"),
        (dict(feedforward_size=0), "feedforward_size=0 must be at least 1"),
        (dict(n_heads=5), "n_heads=5 does not divide the token size 64"),
    ],
    ids=str,
)
def test_bad_arguments_of_self_attention_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SelfAttentionExtractor(RGB, **kwargs)
