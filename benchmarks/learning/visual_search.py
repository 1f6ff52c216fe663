"""
Stock DQN with and without attention on visual search, with the shipped hyperparameters and, for other networks, what differs.

The task shows 16 glyphs; one of them counts, and only its rotation is asked for. The score is the accuracy of the model saved
at the end of training, on 1,000 new images. "Mass" is the share of the attention that the cell of this glyph gets, "picks" how
often it gets the largest share. Mean pooling is the same network with all weights equal.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import preprocess_obs

from benchmarks.learning.zoo import hyperparameters, train
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn.extractors import AttentionExtractor

N_BATCHES, BATCH_SIZE = 20, 50


def _attention(policy: str, kwargs: str) -> dict[str, Any]:
    kwargs = f"dict(features_extractor_kwargs=dict(trunk='patches', {kwargs}))"  # evaluated by RL Zoo; JSON has no infinity
    return {"policy": f"sb3_attn.{policy}", "policy_kwargs": kwargs}


NATURE_CNN = {"policy": "CnnPolicy", "policy_kwargs": {}}
MEAN_POOLING = _attention("SoftAttentionPolicy", "temperature=float('inf')")

#: Number of images to train each network on, the hyperparameters that differ from the shipped ones, and the threshold
TASKS: dict[str, dict[str, tuple[int, dict[str, Any], str]]] = {
    "VisualSearch-v0": {
        "soft attention": (10_000, {}, "0.95, mass 0.7"),
        "hard attention": (15_000, _attention("HardAttentionPolicy", ""), "0.95, picks 0.9"),
        "NatureCNN": (16_000, NATURE_CNN, "-"),
        "mean pooling": (10_000, MEAN_POOLING, "-"),
    },
    "VisualSearchCue-v0": {
        "query attention": (30_000, {}, "0.9, mass 0.5"),
        "mean pooling": (30_000, MEAN_POOLING, "-"),
        "NatureCNN": (30_000, NATURE_CNN, "-"),
        "self-attention, largest": (30_000, _attention("SelfAttentionPolicy", "n_blocks=2"), "-"),
        "self-attention, at the cue": (30_000, _attention("SelfAttentionPolicy", "pooling=0"), "-"),
    },
}


def settings(options: Options) -> Settings:
    """A variant for each task and network."""
    variants = {}
    for task, networks in TASKS.items():
        for name, (images, changes, _) in networks.items():
            entry = hyperparameters("dqn", task, options, n_timesteps=images, **changes)
            variants[f"{task}, {name}"] = dict(task=task, network=name, hyperparameters=entry)
    return variants


def measure(context: Context, task: str, network: str, hyperparameters: dict[str, Any]) -> dict[str, float]:
    """Train once; returns the accuracy of the greedy policy, and for networks that attend mass and picks."""
    model = DQN.load(train(context, task, "dqn", hyperparameters), device="cpu")
    images = make_vec_env(task, n_envs=BATCH_SIZE, seed=EVALUATION_SEED)
    vec_env = model._wrap_env(images, verbose=0, monitor_wrapper=False)
    extractor = model.q_net.features_extractor
    model.policy.set_training_mode(False)
    result: dict[str, list[float]] = {}
    obs: Any = vec_env.reset()
    for _ in range(N_BATCHES):
        cells = np.array([info["target_cell"] for info in images.reset_infos])
        if isinstance(extractor, AttentionExtractor):
            with th.no_grad():
                tensors = preprocess_obs(model.policy.obs_to_tensor(obs)[0], model.observation_space)
                _, weights = extractor.attend(tensors, need_weights=True)
            assert weights is not None
            shares = weights.mean(dim=1).numpy()  # over heads
            result.setdefault("mass", []).append(float(shares[np.arange(BATCH_SIZE), cells].mean()))
            result.setdefault("picks", []).append(float((shares.argmax(axis=1) == cells).mean()))
        actions, _ = model.predict(obs, deterministic=True)
        obs, rewards, _, _ = vec_env.step(actions)
        result.setdefault("accuracy", []).append(float(rewards.mean()))
    vec_env.close()
    return {name: float(np.mean(batches)) for name, batches in result.items()}


def rows(variants: Variants) -> Iterator[Row]:
    """A network a row."""
    for runs in variants.values():
        task, network, hyperparameters = (runs[0].settings[key] for key in ("task", "network", "hyperparameters"))
        attends = "mass" in runs[0].result
        yield {
            "task": task,
            "network": network,
            "images": f"{hyperparameters['n_timesteps']:,}",
            "accuracy": f"{np.mean(values(runs, 'accuracy')):.2f}",
            "each seed": each(values(runs, "accuracy")),
            **{key: f"{np.mean(values(runs, key)):.2f}" if attends else "-" for key in ("mass", "picks")},
            "threshold": TASKS[task][network][2],
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=5, quick="VisualSearch-v0, *")
