"""
Train a Q-network with a key-value memory to answer questions, and draw which of its entries each question reads.

    python examples/associative_recall.py      # one to two minutes on one core; writes to logs/associative_recall/

AssociativeRecall-v0 shows four pairs of a key and a value, then the keys in another order, to be answered with their values.
The memory's query comes from the current observation alone (`context="mqn"`), so only the memory can provide the answer.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_attn.envs  # noqa: F401  # registers AssociativeRecall-v0
from sb3_attn import RecurrentDQN
from sb3_attn.viz import Episode, record_episode, save_figure
from sb3_attn.viz.figures import color_bar, new_figure
from sb3_attn.viz.heat_maps import draw_tokens

ENV_ID, N_PAIRS, N_DRAWN = "AssociativeRecall-v0", 4, 4


def pair_steps(observations: np.ndarray) -> np.ndarray:
    """For each question, the step that showed its pair; observations have their keys first, one-hot."""
    shown, asked = np.split(observations[:, :N_PAIRS].argmax(axis=1), 2)
    return (asked[:, None] == shown).argmax(axis=1)


def share_right(episodes: list[Episode]) -> float:
    """The share of questions that read their own pair with the largest weight."""
    reads = [np.asarray(episode.recorded_weights[0].by_step)[N_PAIRS:, 0].argmax(axis=1) for episode in episodes]
    return float(np.mean([read == pair_steps(episode.observations) for read, episode in zip(reads, episodes, strict=True)]))


def draw(episodes: list[Episode]) -> Any:
    """The weights with which each question reads the earlier steps; the pair that it asks for has a cyan frame."""
    figure = new_figure(4.2 * len(episodes), 4.6)
    panels = figure.subplots(1, len(episodes), squeeze=False)[0]
    questions = np.arange(N_PAIRS, 2 * N_PAIRS)
    for number, (axes, episode) in enumerate(zip(panels, episodes, strict=True), start=1):
        draw_tokens(axes, episode.recorded_weights[0], head=0)
        axes.images[0].set_clim(0, 1)  # the same scale in all panels
        frames: Any = dict(marker="s", s=620, facecolors="none", edgecolors="cyan", linewidths=2)
        axes.scatter(questions, pair_steps(episode.observations), **frames)
        keys = episode.observations[:, :N_PAIRS].argmax(axis=1)
        values = episode.observations[:N_PAIRS, N_PAIRS:-1].argmax(axis=1)
        shown = [f"key {key} is {value}" for key, value in zip(keys, values, strict=False)]
        axes.set_yticks(range(2 * N_PAIRS - 1), shown + [f"key {key}?" for key in keys[N_PAIRS:-1]])
        axes.set_xticks(questions, [f"key {key}?" for key in keys[N_PAIRS:]])
        axes.set(title=f"episode {number}", xlabel="question", ylabel="earlier step, oldest at the bottom" * (number == 1))
        axes.set(xlim=(N_PAIRS - 0.5, 2 * N_PAIRS - 0.5), ylim=(-0.5, 2 * N_PAIRS - 1.5))
    color_bar(figure, list(panels), panels[0].images[0], "weight")
    figure.suptitle("What each question reads from the key-value memory; framed: the pair it asks for")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000, help="number of training steps (60000)")
    parser.add_argument("--episodes", type=int, default=200, help="number of episodes to evaluate on (200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training run (0)")
    parser.add_argument("--folder", type=Path, default=Path("logs/associative_recall"), help="folder to write to")
    args = parser.parse_args()
    memory = dict(core="key_value", core_kwargs=dict(context="mqn", n_slots=2 * N_PAIRS))
    model = RecurrentDQN(
        "MlpPolicy", make_vec_env(ENV_ID, 16, seed=args.seed), policy_kwargs=memory, seed=args.seed, device="cpu"
    )
    env = make_vec_env(ENV_ID, seed=1)
    untrained = share_right([record_episode(model, env, render=False) for _ in range(args.episodes)])
    model.learn(args.steps).save(args.folder / "model.zip")
    episodes = [record_episode(model, env, render=False) for _ in range(args.episodes)]
    save_figure(draw(episodes[:N_DRAWN]), args.folder / "reads.png")
    score, ceiling = evaluate_policy(model, env, args.episodes)[0], env.get_attr("memoryless_ceiling")[0]
    print(f"Mean return: {score:.3f}, at most 1 (at most {ceiling:.3f} without memory)")
    print(f"Questions that read most from their own pair: {share_right(episodes):.3f} (untrained: {untrained:.3f})")
    print(f"Model and picture are in {args.folder}/")
