"""
Stock DQN with and without attention on visual search, through the shipped YAML.

    python -m benchmarks.visual_search --seeds 5 --jobs 2

The task shows 16 glyphs; one of them counts, and only its rotation is asked for. The score is the accuracy of the model
saved at the end of training on 1,000 new images. "Mass" is the share of the attention on the cell of that glyph, "picks" how
often it is the cell with the largest share. Mean pooling is the same network with all weights equal.
"""

import argparse
import importlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import preprocess_obs

from benchmarks.learning import EVALUATION_SEED, train
from benchmarks.runs import finish, read
from sb3_attn.extractors import AttentionExtractor
from sb3_attn.zoo import register

N_BATCHES, BATCH_SIZE = 20, 50


class Variant(NamedTuple):
    """
    A network to compare.

    :param steps: Number of images to train on.
    :param overrides: What differs from the shipped hyperparameters, as RL Zoo's ``--hyperparams`` takes it.
    :param bar: What is expected of it, if anything.
    """

    steps: int
    overrides: dict[str, str]
    bar: str = "-"


NATURE_CNN = {"policy": "'CnnPolicy'", "policy_kwargs": "dict()"}
MEAN_POOLING = {"policy_kwargs": "dict(features_extractor_kwargs=dict(trunk='patches', temperature=float('inf')))"}
HARD = {
    "policy": "'sb3_attn.HardAttentionPolicy'",
    "policy_kwargs": "dict(features_extractor_kwargs=dict(trunk='patches'))",
}
SELF = {
    "policy": "'sb3_attn.SelfAttentionPolicy'",
    "policy_kwargs": "dict(features_extractor_kwargs=dict(trunk='patches', n_blocks=2))",
}
SELF_AT_CUE = {
    "policy": "'sb3_attn.SelfAttentionPolicy'",
    "policy_kwargs": "dict(features_extractor_kwargs=dict(trunk='patches', pooling=0))",
}

VARIANTS = {
    "VisualSearch-v0": {
        "soft attention": Variant(10_000, {}, "0.95, mass 0.7"),
        "hard attention": Variant(15_000, HARD, "0.95, picks 0.9"),
        "NatureCNN": Variant(16_000, NATURE_CNN),
        "mean pooling": Variant(10_000, MEAN_POOLING),
    },
    "VisualSearchCue-v0": {
        "query attention": Variant(30_000, {}, "0.9, mass 0.5"),
        "mean pooling": Variant(30_000, MEAN_POOLING),
        "NatureCNN": Variant(30_000, NATURE_CNN),
        "self-attention, largest": Variant(30_000, SELF),
        "self-attention, at the cue": Variant(30_000, SELF_AT_CUE),
    },
}


def score(model: DQN, task: str) -> dict[str, float]:
    """
    Accuracy of the greedy policy, and where it attends.

    :param model: A trained model.
    :param task: Environment id.
    :return: Accuracy, and for models that attend mass and picks.
    """
    images = make_vec_env(task, n_envs=BATCH_SIZE, seed=EVALUATION_SEED)
    vec_env = model._wrap_env(images, verbose=0, monitor_wrapper=False)
    extractor = model.q_net.features_extractor
    model.policy.set_training_mode(False)
    result: dict[str, list[float]] = {}
    obs = vec_env.reset()
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
    return {name: float(np.mean(values)) for name, values in result.items()}


def run(task: str, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """
    Train once and score the saved model.

    :param task: A key of :data:`VARIANTS`.
    :param name: A key of its variants.
    :param seed: Seed of the run.
    :param folder: Where the logs go.
    """
    register()
    importlib.import_module("rl_zoo3.import_envs")
    th.set_num_threads(1)
    variant = VARIANTS[task][name]
    zip_path = train(task, seed, folder / name / str(seed), variant.steps, "dqn", variant.overrides)
    scores = score(DQN.load(zip_path, device="cpu"), task)
    return {"task": task, "network": name, "seed": seed, "images": variant.steps, **scores}


def report(runs: list[dict[str, Any]]) -> str:
    """The runs as a Markdown table, a network a row."""
    lines = ["| task | network | images | accuracy | each seed | mass | picks | bar |", "|---|" + "---|" * 7]
    for task, variants in VARIANTS.items():
        for name, variant in variants.items():
            rows = sorted((r for r in runs if (r["task"], r["network"]) == (task, name)), key=lambda r: r["seed"])
            if not rows:
                continue
            means = {key: np.mean([row[key] for row in rows]) for key in ("accuracy", "mass", "picks") if key in rows[0]}
            mass, picks = (f"{means[key]:.2f}" if key in means else "-" for key in ("mass", "picks"))
            seeds = ", ".join(f"{row['accuracy']:.2f}" for row in rows)
            lines.append(
                f"| {task} | {name} | {variant.steps:,} | {means['accuracy']:.2f} | {seeds} | {mass} | {picks} "
                f"| {variant.bar} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: Its arguments; ``None`` takes them from ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="the tasks to learn")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/visual_search.json"), help="the results file")
    parser.add_argument("--folder", type=Path, default=Path("logs/visual_search"), help="where models and logs go")
    args = parser.parse_args(arguments)
    asked = {
        (task, name, seed): (task, name, seed, args.folder)
        for seed in range(args.seeds)
        for task in args.task
        for name in VARIANTS[task]
    }
    runs = finish(run, asked, read(args.out), args.out, args.jobs)
    print(report(runs))


if __name__ == "__main__":
    main()
