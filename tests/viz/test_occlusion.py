"""Occlusion saliency, compared with a slow loop, and with networks whose inputs are known."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor

from sb3_attn.viz import occlusion_figure, occlusion_saliency, record_episode
from sb3_attn.viz.action_scores import action_scores
from sb3_attn.viz.report import write_occlusion
from tests.helpers.attention import ALGORITHMS, make_env, make_model


@pytest.mark.parametrize("fill", ["mean", "grey", 7])
@pytest.mark.parametrize("algorithm", [DQN, PPO])
def test_saliency_equals_a_slow_loop(algorithm, fill):
    model = make_model(algorithm, make_env("image"), FlattenExtractor)
    observation = make_env("image").reset()[0]
    saliency = occlusion_saliency(model, observation, patch_size=24, stride=16, fill=fill, batch_size=3)
    scores = action_scores(model, observation[None])[0]
    total, count = np.zeros((64, 64)), np.zeros((64, 64))
    for y in range(0, 64 - 24 + 1, 16):
        for x in range(0, 64 - 24 + 1, 16):
            covered = observation.copy()
            for channel in range(3):
                value = {"mean": observation[channel].mean(), "grey": 127.5}.get(fill, fill)
                covered[channel, y : y + 24, x : x + 24] = np.uint8(value)
            change = abs(action_scores(model, covered[None])[0, scores.argmax()] - scores.max())
            total[y : y + 24, x : x + 24] += change
            count[y : y + 24, x : x + 24] += 1
    np.testing.assert_allclose(saliency, total / np.maximum(count, 1), atol=1e-6)
    assert saliency.max() > 0
    of_worst = occlusion_saliency(model, observation, patch_size=24, stride=16, fill=fill, action=int(scores.argmin()))
    assert np.abs(of_worst - saliency).max() > 1e-4


class Crop(BaseFeaturesExtractor):
    """Sees nothing but one patch."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 3 * 8 * 8)

    def forward(self, observations):
        return observations[:, :, 16:24, 40:48].flatten(1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_saliency_is_where_the_network_looks(algorithm):
    model = make_model(algorithm, make_env("image"), Crop)
    saliency = occlusion_saliency(model, make_env("image").reset()[0], patch_size=8, stride=8)
    assert saliency[16:24, 40:48].min() > 1e-4
    saliency[16:24, 40:48] = 0
    assert saliency.max() < 1e-6  # rounding depends on the batch


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_scores_choose_the_action_that_the_model_takes(algorithm):
    model = make_model(algorithm, make_env("image"), channels_last=False)
    episode = record_episode(model, make_env("image"))
    for step in range(len(episode)):
        scores = action_scores(model, np.repeat(episode.observation(step)[None], 2, axis=0), episode.states[step])
        assert scores.shape == (2, 3)
        assert scores[1].argmax() == episode.actions[step]
    if algorithm is PPO:
        np.testing.assert_allclose(np.exp(scores).sum(axis=-1), 1, rtol=1e-5)


def test_the_image_of_a_dict_is_covered():
    model = make_model(DQN, make_env("dict"))
    observation = {key: array[0] for key, array in make_env("dict").reset().items()}
    assert occlusion_saliency(model, observation, patch_size=32, stride=16).shape == (64, 64)
    with pytest.raises(ValueError, match="key='vector': there is no such image"):
        occlusion_saliency(model, observation, key="vector")


def test_bad_images_patches_and_fills_are_refused():
    model = make_model(DQN, make_env("vector"))
    with pytest.raises(ValueError, match="occlusion covers images only"):
        occlusion_saliency(model, np.zeros(4, np.float32))
    model = make_model(DQN, make_env("image"))
    observation = make_env("image").reset()[0]
    with pytest.raises(ValueError, match="patch_size=65 with stride=4 does not fit an image of 64 x 64"):
        occlusion_saliency(model, observation, patch_size=65)
    with pytest.raises(ValueError, match="fill='black' is unknown"):
        occlusion_saliency(model, observation, fill="black")
    for fill in (300, -1, 0.5, float("nan")):
        with pytest.raises(ValueError, match=f"fill={fill} must be a value of uint8 images between 0 and 255"):
            occlusion_saliency(model, observation, fill=fill)
    with pytest.raises(ValueError, match="action=-1 is none of the"):
        occlusion_saliency(model, observation, action=-1)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        occlusion_saliency(model, observation, batch_size=0)


def test_the_figure_has_attention_only_if_there_is_some():
    image, saliency = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64))
    titles = [[a.get_title() for a in occlusion_figure([image], [saliency], maps).axes] for maps in (None, [saliency[None]])]
    assert titles[0][:2] == ["observation 1", "occlusion"]
    assert titles[1][:3] == ["observation 1", "attention, head 1", "occlusion"]


def test_actions_without_scores_are_refused(tmp_path):
    model = PPO("CnnPolicy", FakeImageEnv(discrete=False), n_steps=8, batch_size=8)
    episode = record_episode(model, model.get_env(), n_steps=1)
    with pytest.raises(ValueError, match="has no action scores that are known"):
        write_occlusion(model, episode, 1, tmp_path / "occlusion.png")
