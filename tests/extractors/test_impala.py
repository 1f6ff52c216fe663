"""IMPALA's residual convolutions: the paper's layers, sizes at 40 and 84 pixels, and their use in DQN and RecurrentDQN."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from torch.nn import functional as F

from sb3_attn import ImpalaCNN, RecurrentDQN
from sb3_attn.dqn.policies import ImpalaPolicy
from tests.helpers.environments import counters


def images(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def test_the_features_are_those_of_the_papers_figure() -> None:
    """Espeholt et al. (2018), figure 3, right: written as one expression for each arrow."""
    th.manual_seed(0)
    extractor = ImpalaCNN(images(3, 20, 24), features_dim=7, pool_size=None).double()
    inputs = th.rand(2, 3, 20, 24, dtype=th.float64)
    convolutions = iter([module for module in extractor.modules() if isinstance(module, th.nn.Conv2d)])

    def convolve(x: th.Tensor) -> th.Tensor:
        layer = next(convolutions)
        return F.conv2d(x, layer.weight, layer.bias, padding=1)

    x = inputs
    for _ in range(3):
        x = F.max_pool2d(convolve(x), 3, stride=2, padding=1)
        for _ in range(2):
            x = x + convolve(convolve(x.relu()).relu())
    assert next(convolutions, None) is None and x.shape == (2, 32, 3, 3)
    expected = F.linear(x.relu().reshape(2, -1), extractor.linear[0].weight, extractor.linear[0].bias).relu()
    th.testing.assert_close(extractor(inputs), expected)


@pytest.mark.parametrize("n_channels", [1, 4])
def test_convolutions_get_the_layout_in_which_they_are_fastest(n_channels: int) -> None:
    extractor = ImpalaCNN(images(n_channels, 20, 20))
    layouts = []
    for module in extractor.cnn[1:].modules():
        if isinstance(module, th.nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=th.channels_last))
            )
    extractor(th.rand(3, n_channels, 20, 20))
    assert layouts == [True] * 14


@pytest.mark.parametrize(
    ("n_pixels", "pool_size", "width", "n_inputs"),
    [(84, 6, 1, 32 * 36), (84, None, 1, 32 * 121), (40, 6, 1, 32 * 25), (40, 3, 2, 64 * 9)],
)
def test_pooling_bounds_the_linear_layer(n_pixels: int, pool_size: int | None, width: int, n_inputs: int) -> None:
    extractor = ImpalaCNN(images(1, n_pixels, n_pixels), width=width, pool_size=pool_size)
    assert extractor.linear[0].in_features == n_inputs
    assert extractor(th.rand(2, 1, n_pixels, n_pixels)).shape == (2, 256)


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (spaces.Box(0, 1, (4,)), {}, "is not an image"),
        (images(1, 40, 40), {"width": 0}, "width=0"),
        (images(1, 40, 40), {"pool_size": 0}, "pool_size=0"),
    ],
)
def test_a_wrong_argument_is_named(space: spaces.Space, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImpalaCNN(space, **kwargs)


@pytest.mark.parametrize(("algorithm", "policy"), [(DQN, ImpalaPolicy), (RecurrentDQN, "ImpalaPolicy")])
def test_a_policy_has_them_by_name(algorithm: type[DQN], policy: type | str, tmp_path) -> None:
    env = counters(space=images(40, 40, 1))
    model = algorithm(policy, env, buffer_size=2000, learning_starts=50, batch_size=2, device="cpu")
    before = [parameter.clone() for parameter in model.q_net.features_extractor.parameters()]
    model.learn(200)
    assert isinstance(model.q_net.features_extractor, ImpalaCNN)
    assert not any(map(th.equal, before, model.q_net.features_extractor.parameters()))
    model.save(tmp_path / "model")
    obs = env.reset()
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
