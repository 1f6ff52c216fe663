"""
Train a recurrent DQN through RL Zoo, load the saved model in a fresh process, and show that it uses its memory.

    python examples/demo.py            # about a minute on one core; writes to logs/demo/

The task is MemoryChain-v0: the first observation shows a cue, and after 30 blank steps the agent has to answer which one it
was. Without memory it can only guess; the mean return of guessing is the environment's `memoryless_ceiling`.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results

import sb3_attn.envs  # noqa: F401  # registers MemoryChain-v0
from sb3_attn import RecurrentDQN
from sb3_attn.common.evaluation import StateZeroed

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ENV_ID = "MemoryChain-v0"
N_EVAL_EPISODES = 200
console = Console()


def train(folder: Path, seed: int) -> Path:
    """
    Train through RL Zoo, with the hyperparameters of ``zoo_configs/rdqn.yml``.

    :param folder: Where RL Zoo writes its logs.
    :param seed: Seed of the run.
    :return: The folder of this run.
    """
    command = [sys.executable, "-m", "sb3_attn.zoo", "train", "--algo", "rdqn", "--env", ENV_ID, "--seed", str(seed)]
    command += ["--log-folder", str(folder), "--progress", "--verbose", "0", "--num-threads", "1", "--device", "cpu"]
    # The learning curve is drawn from the training episodes, so no evaluations are needed
    command += ["--eval-freq", "-1"]
    console.rule("[bold]Training")
    subprocess.run(command, check=True)
    return max((folder / "rdqn").glob(f"{ENV_ID}_*"), key=lambda path: int(path.name.rpartition("_")[2]))


def evaluate(model_path: Path) -> None:
    """
    Load a model and print its score beside the scores of agents without memory.

    :param model_path: The zip file saved by RL Zoo.
    """
    model = RecurrentDQN.load(model_path, device="cpu")
    ceiling = gym.make(ENV_ID).unwrapped.memoryless_ceiling  # type: ignore[attr-defined]
    table = Table(title=f"{ENV_ID}, mean return of {N_EVAL_EPISODES} episodes")
    table.add_column("agent")
    table.add_column("return", justify="right")
    for name, policy in (("the trained model", model), ("the same, state zeroed at every step", StateZeroed(model))):
        vec_env = make_vec_env(ENV_ID, n_envs=8, seed=1)
        mean, std = evaluate_policy(policy, vec_env, n_eval_episodes=N_EVAL_EPISODES)
        table.add_row(name, f"{mean:.2f} ± {std / np.sqrt(N_EVAL_EPISODES):.2f}")
    table.add_row("best possible without memory", f"{ceiling:.2f}")
    console.print(table)


def plot(run: Path, figure_path: Path, window: int = 50) -> None:
    """
    Draw the learning curve.

    :param run: Folder of the run, with the Monitor files.
    :param figure_path: The PNG file to write.
    :param window: Number of training episodes to average over.
    """
    episodes = load_results(str(run))
    returns = np.convolve(episodes["r"], np.full(window, 1 / window), mode="valid")
    steps = episodes["l"].cumsum().to_numpy()[window - 1 :]
    ceiling = gym.make(ENV_ID).unwrapped.memoryless_ceiling  # type: ignore[attr-defined]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, returns, label=f"RecurrentDQN while exploring, mean of {window} episodes")
    axes.axhline(ceiling, color="gray", linestyle="--", label="best possible without memory")
    axes.set(title=ENV_ID, xlabel="environment steps", ylabel="return", ylim=(-1.05, 1.05))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(figure_path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the training run")
    parser.add_argument("--folder", type=Path, default=Path("logs/demo"), help="folder to write to")
    parser.add_argument("--evaluate", type=Path, metavar="ZIP", help="only evaluate this model")
    arguments = parser.parse_args()
    if arguments.evaluate:
        evaluate(arguments.evaluate)
        return
    start = time.perf_counter()
    run = train(arguments.folder, arguments.seed)
    model_path = run / f"{ENV_ID}.zip"
    console.rule("[bold]Evaluation, in a fresh process")
    subprocess.run([sys.executable, __file__, "--evaluate", str(model_path)], check=True)
    figure_path = run / "learning_curve.png"
    plot(run, figure_path)
    console.print(f"Model           {model_path}", f"Learning curve  {figure_path}", sep="\n", highlight=False)
    console.print(f"Done in {time.perf_counter() - start:.0f} s.", highlight=False)


if __name__ == "__main__":
    main()
