"""
Train a Q-network with a key-value memory to answer questions, and show which of its entries each question reads.

    python examples/associative_recall.py      # one to two minutes on one core; writes to logs/associative_recall/

The task is AssociativeRecall-v0: four pairs of a key and a value are shown, one per step; then the keys are shown again in
another order, and for each of them the agent has to answer with its value. The memory stores every step as one entry. Its
query is computed from the current observation alone (`context="mqn"`), so only the memory can provide the answer.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_attn.envs  # registers AssociativeRecall-v0
from sb3_attn import RecurrentDQN
from sb3_attn.viz import Episode, record_episode, save_figure
from sb3_attn.viz.figures import color_bar, new_figure
from sb3_attn.viz.heat_maps import draw_tokens

ENV_ID = "AssociativeRecall-v0"
N_DRAWN = 4
console = Console()


def make_model(seed: int) -> RecurrentDQN:
    """
    Build a model with the hyperparameters of ``zoo_configs/rdqn.yml``, but another memory.

    :param seed: Seed of environments and model.
    """
    return RecurrentDQN(
        "MlpPolicy",
        make_vec_env(ENV_ID, n_envs=16, seed=seed),
        learning_rate=1e-3,
        buffer_size=50_000,
        batch_size=64,
        train_freq=1,
        gamma=0.5,  # no action has an effect on later steps
        td_lambda=0.9,
        target_update_interval=3200,
        exploration_fraction=0.3,
        exploration_final_eps=0.02,
        trace_length=None,  # whole episodes
        burn_in_length=0,
        policy_kwargs=dict(core="key_value", core_kwargs=dict(context="mqn", n_slots=8)),
        seed=seed,
        device="cpu",
    )


def record(model: RecurrentDQN, n_episodes: int, seed: int) -> list[Episode]:
    """
    Record episodes together with the weights of the memory's reads.

    :param model: The model, trained or not.
    :param n_episodes: Number of episodes.
    :param seed: Seed of the environment.
    """
    env = make_vec_env(ENV_ID, seed=seed)
    return [record_episode(model, env, render=False) for _ in range(n_episodes)]


def pair_steps(observations: np.ndarray, n_pairs: int) -> np.ndarray:
    """
    For each question the step at which its pair was shown.

    :param observations: The observations of one episode, ``[2 * n_pairs, ...]``, one-hot keys first.
    :param n_pairs: Number of pairs.
    :return: The steps, ``[n_pairs]``.
    """
    shown, asked = np.split(observations[:, :n_pairs].argmax(axis=1), 2)
    return (asked[:, None] == shown).argmax(axis=1)


def share_right(episodes: list[Episode], n_pairs: int) -> float:
    """
    The share of questions whose largest weight is on their own pair.

    :param episodes: Episodes with the weights of the memory's reads.
    :param n_pairs: Number of pairs.
    """
    right = [most_read_steps(episode)[n_pairs:] == pair_steps(episode.observations, n_pairs) for episode in episodes]
    return float(np.mean(right))


def most_read_steps(episode: Episode) -> np.ndarray:
    """
    For each step the earlier step that it reads with the largest weight, ``[T]``.

    :param episode: An episode with the weights of the memory's reads.
    """
    weights = episode.recorded_weights[0].by_step
    assert weights is not None, "the memory has a slot for every step"
    return weights[:, 0].argmax(axis=1)


def draw(episodes: list[Episode], n_pairs: int) -> Any:
    """
    Draw the weights with which each question reads the earlier steps; the pair that it asks for has a cyan frame.

    :param episodes: Episodes with the weights of the memory's reads, a panel each.
    :param n_pairs: Number of pairs.
    :return: The figure.
    """
    figure = new_figure(4.2 * len(episodes), 4.6)
    panels = figure.subplots(1, len(episodes), squeeze=False)[0]
    questions = np.arange(n_pairs, 2 * n_pairs)
    for number, (axes, episode) in enumerate(zip(panels, episodes, strict=True), start=1):
        draw_tokens(axes, episode.recorded_weights[0], head=0)
        axes.images[0].set_clim(0, 1)  # the same scale in all panels
        frames = dict(marker="s", s=620, facecolors="none", edgecolors="cyan", linewidths=2)
        axes.scatter(questions, pair_steps(episode.observations, n_pairs), **frames)
        keys = episode.observations[:, :n_pairs].argmax(axis=1)
        values = episode.observations[:n_pairs, n_pairs:-1].argmax(axis=1)
        shown = [f"key {key} is {value}" for key, value in zip(keys, values, strict=False)]
        asked = [f"key {key}?" for key in keys[n_pairs:]]
        axes.set_yticks(range(2 * n_pairs - 1), shown + asked[:-1])
        axes.set_xticks(questions, asked)
        axes.set(title=f"episode {number}", xlabel="question", ylabel="earlier step, oldest at the bottom" * (number == 1))
        axes.set(xlim=(n_pairs - 0.5, 2 * n_pairs - 0.5), ylim=(-0.5, 2 * n_pairs - 1.5))
    color_bar(figure, list(panels), panels[0].images[0], "weight")
    figure.suptitle("What each question reads from the key-value memory; framed: the pair it asks for")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000, help="number of training steps (60000)")
    parser.add_argument("--episodes", type=int, default=200, help="number of episodes to evaluate on (200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training run (0)")
    parser.add_argument("--folder", type=Path, default=Path("logs/associative_recall"), help="folder to write to")
    arguments = parser.parse_args()
    start = time.perf_counter()
    env = gym.make(ENV_ID).unwrapped
    assert isinstance(env, sb3_attn.envs.AssociativeRecall)
    arguments.folder.mkdir(parents=True, exist_ok=True)

    model = make_model(arguments.seed)
    untrained = share_right(record(model, arguments.episodes, seed=1), env.pairs)
    console.rule("[bold]Training")
    model.learn(arguments.steps, progress_bar=True)
    model.save(arguments.folder / "model.zip")

    console.rule("[bold]Evaluation")
    mean, _ = evaluate_policy(model, make_vec_env(ENV_ID, n_envs=8, seed=1), n_eval_episodes=arguments.episodes)
    episodes = record(model, arguments.episodes, seed=1)
    trained = share_right(episodes, env.pairs)
    picture = save_figure(draw(episodes[:N_DRAWN], env.pairs), arguments.folder / "reads.png")
    lines = [
        f"Right answers: {mean:.3f} of the questions (at most {env.memoryless_ceiling:.3f} without memory)",
        f"Questions whose largest weight is on their own pair: {trained:.3f} (untrained: {untrained:.3f})",
        f"Model    {arguments.folder / 'model.zip'}",
        f"Picture  {picture}",
        f"Done in {time.perf_counter() - start:.0f} s.",
    ]
    console.print(*lines, sep="\n", highlight=False)


if __name__ == "__main__":
    main()
