"""Figures and scalars in tensorboard's files."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")
pytest.importorskip("tensorboard")

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.torch_layers import FlattenExtractor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_attn import DNCExtractor, GTrXLExtractor, RecurrentDQN
from sb3_attn.viz import AttentionFiguresCallback
from tests.helpers.attention import make_darqn, make_env, make_model


@pytest.mark.parametrize("algorithm", [DQN, PPO, RecurrentDQN])
@pytest.mark.parametrize("kind", ["image", "vector", "dict"])
def test_figures_and_scalars_are_written(algorithm, kind, tmp_path):
    kwargs = {} if kind == "vector" else dict(channels_last=False)
    model = make_model(algorithm, make_env(kind, n_envs=2), **kwargs)
    model.tensorboard_log = str(tmp_path)
    model.learn(16, callback=AttentionFiguresCallback(n_steps=4, n_observations=2))
    (folder,) = tmp_path.iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Images("attention/observations")] == [8, 16]
    entropies, peaks = (events.Scalars(f"attention/{name}") for name in ("entropy", "peak"))
    n_tokens = {"image": 25, "vector": 4, "dict": 29}[kind]
    assert all(0 < event.value <= np.log(n_tokens) + 1e-5 for event in entropies)
    assert all(1 / n_tokens <= event.value <= 1 for event in peaks)


def test_observations_are_spread_over_the_interval(monkeypatch):
    callback = AttentionFiguresCallback(n_steps=6, n_observations=3)
    seen = []
    monkeypatch.setattr(callback, "_write", lambda: seen.append([float(obs[0]) for obs in callback._observations]))
    callback.model = make_model(DQN, make_env("vector"))
    callback._init_callback()
    for step in range(1, 13):
        callback.update_locals({"new_obs": np.array([[step], [-1]])})
        callback.on_step()
    assert seen == [[2, 4, 6], [8, 10, 12]]


def test_bad_arguments_and_models_without_attention_are_refused():
    with pytest.raises(ValueError, match="n_steps=0 must be at least 1"):
        AttentionFiguresCallback(n_steps=0)
    with pytest.raises(ValueError, match="has no attention and no memory to show"):
        make_model(DQN, make_env("vector"), FlattenExtractor).learn(8, callback=AttentionFiguresCallback())
    with pytest.raises(ValueError, match="depend on its memory"):
        make_darqn(make_env("image")).learn(8, callback=AttentionFiguresCallback())


@pytest.mark.parametrize("extractor", [DNCExtractor, GTrXLExtractor])
def test_memories_over_frames_are_drawn_and_measured(extractor, tmp_path):
    kwargs = dict(features_extractor_class=extractor, features_extractor_kwargs=dict(n_stack=2))
    env = make_env("vector", n_stack=2)
    model = DQN("MlpPolicy", env, policy_kwargs=kwargs, buffer_size=100, device="cpu", tensorboard_log=str(tmp_path))
    model.learn(4, callback=AttentionFiguresCallback(n_steps=4, n_observations=2))
    (folder,) = tmp_path.iterdir()
    tags = EventAccumulator(str(folder)).Reload().Tags()
    names = ["attention"] if extractor is GTrXLExtractor else ["read", "write", "usage", "link"]
    assert {f"frames_{name}/observations" for name in names} == set(tags["images"])
    found = {tag for tag in tags["scalars"] if tag.startswith("frames_")}
    distributions = [name for name in names if name not in ("usage", "link")]
    assert found == {f"frames_{name}/peak" for name in names} | {f"frames_{name}/entropy" for name in distributions}


def test_a_memory_core_is_refused_since_it_needs_an_episode():
    env = make_env("vector")
    model = RecurrentDQN("MlpPolicy", env, policy_kwargs=dict(core="ntm"), buffer_size=400, device="cpu")
    with pytest.raises(ValueError, match="depend on its memory, which a callback does not see; record an episode"):
        model.learn(4, callback=AttentionFiguresCallback(n_steps=4))
