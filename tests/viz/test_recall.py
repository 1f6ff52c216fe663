"""Recall densities, compared with differences of Q-values when one number of one observation changes a little."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_attn import RecurrentDQN
from sb3_attn.recurrent_dqn import networks
from sb3_attn.viz import Episode, recall_density, recall_figure, record_episode

N_STEPS, CHANGE = 6, 1e-6


class Random(gym.Env):
    """Random observations."""

    action_space = spaces.Discrete(3)

    def __init__(self, space: spaces.Space) -> None:
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def record(space: spaces.Space, policy: str, **policy_kwargs: Any) -> tuple[RecurrentDQN, Episode]:
    model = RecurrentDQN(policy, Random(space), buffer_size=400, seed=0, device="cpu", policy_kwargs=policy_kwargs)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter *= 2  # the values of an untrained network hardly depend on the past
    return model, record_episode(model, model.get_env(), N_STEPS, sources=[], render=False)


def changes_of_values(model: RecurrentDQN, observations: np.ndarray) -> np.ndarray:
    """Vectors one after the other, in double precision, ``[T, T]``: central differences, summed over actions and entries."""
    net = copy.deepcopy(model.q_net).double()

    def q_values(vectors: np.ndarray) -> np.ndarray:
        state, values = net.initial_state(1), []
        for vector in vectors:
            inputs = net.encoder(th.as_tensor(vector[None]))
            outputs, state = net.core(inputs, state)
            values.append(net.head(th.cat([outputs, inputs], dim=-1)).flatten().numpy())
        return np.array(values)

    sums = np.zeros((len(observations), len(observations)))
    for past, entry in np.ndindex(observations.shape):
        nearby = [observations.copy(), observations.copy()]
        nearby[0][past, entry] -= CHANGE
        nearby[1][past, entry] += CHANGE
        with th.no_grad():
            sums[:, past] += np.abs(q_values(nearby[1]) - q_values(nearby[0])).sum(axis=1) / (2 * CHANGE)
    return sums


@pytest.mark.parametrize("core", ["lstm", "gru", "key_value", "gtrxl", "ntm", "dnc"])
def test_the_density_is_that_of_finite_differences(core: str) -> None:
    model, episode = record(spaces.Box(-1, 1, (2,), np.float32), "MlpPolicy", core=core, activation_fn=th.nn.Tanh)
    density = recall_density(model, episode)
    expected = changes_of_values(model, episode.observations.astype(np.float64))
    np.testing.assert_allclose(density, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)
    assert density[-1, 0] > 3e-3, "what was seen first matters at the end"
    assert not np.triu(density, k=1).any()


def test_a_memory_that_is_reset_recalls_nothing() -> None:
    model, episode = record(spaces.Discrete(4), "MlpPolicy", core="identity")
    np.testing.assert_array_equal(recall_density(model, episode), np.eye(N_STEPS))


@pytest.mark.parametrize("memory_keys", [None, ["cue"]])
def test_a_dict_and_images_in_parts(memory_keys: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images are encoded together; and only what the memory is given can be recalled."""
    space = spaces.Dict(image=spaces.Box(0, 255, (1, 36, 36), np.uint8), cue=spaces.Box(-1, 1, (2,), np.float32))
    model, episode = record(space, "MultiInputPolicy", memory_keys=memory_keys)
    together = recall_density(model, episode)
    np.testing.assert_allclose(together.sum(axis=1), 1, rtol=1e-5)
    monkeypatch.setattr(networks, "MAX_NUMBERS_ENCODED_AT_ONCE", 4 * 36 * 36)
    np.testing.assert_allclose(recall_density(model, episode), together, atol=1e-5)
    episode.observations["image"][0] = 255 - episode.observations["image"][0]
    changed = np.abs(recall_density(model, episode)[-1] - together[-1]).max()
    assert changed == 0 if memory_keys else changed > 0


def test_the_network_stays_as_it_was() -> None:
    model, episode = record(spaces.Discrete(4), "MlpPolicy")
    model.policy.set_training_mode(True)
    recall_density(model, episode)
    assert model.policy.training and not model.q_net.features_extractor._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def test_a_model_without_memory_is_refused() -> None:
    model: BaseAlgorithm = DQN("MlpPolicy", "CartPole-v1", buffer_size=200, device="cpu")
    episode = record_episode(model, model.get_env(), 2, render=False)
    with pytest.raises(ValueError, match="Recall is that of a RecurrentDQN or R2D2, and this model is a DQN"):
        recall_density(model, episode)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model, episode = record(spaces.Box(-1, 1, (2,), np.float32), "MlpPolicy")
    episode.observations[2] = np.nan
    with pytest.raises(ValueError, match="a gradient of the Q-values is not finite"):
        recall_density(model, episode)


def test_the_figure_hides_what_is_still_to_come() -> None:
    density = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    image = recall_figure(density).axes[0].images[0]
    drawn = image.get_array()
    assert drawn.mask.tolist() == np.tril(np.ones((4, 4), dtype=bool), k=-1).tolist()
    np.testing.assert_allclose(drawn[:, 3], 0.25)
    assert image.get_clim() == (0, pytest.approx(1 / 3)), "the first steps have seen too little to be compared"
