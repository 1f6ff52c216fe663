"""
Train a recurrent DQN through RL Zoo, load the saved model in a fresh process, and show that it uses its memory.

    python examples/demo.py            # about a minute on one core; writes to logs/demo/

The task is MemoryChain-v0: the first observation shows a cue, and after 30 blank steps the agent has to answer which one it
was. Without memory it can only guess; the mean return of guessing is the environment's `memoryless_ceiling`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

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

ENV_ID, N_EPISODES = "MemoryChain-v0", 200


def train(folder: Path, seed: int) -> Path:
    """Train with the hyperparameters of ``zoo_configs/rdqn.yml``; returns the run's folder."""
    command = [sys.executable, "-m", "sb3_attn.zoo", "train", "--algo", "rdqn", "--env", ENV_ID, "--seed", str(seed)]
    command += ["--log-folder", str(folder), "--progress", "--verbose", "0", "--num-threads", "1", "--device", "cpu"]
    command += ["--eval-freq", "-1"]  # the learning curve is drawn from the training episodes
    subprocess.run(command, check=True)
    return max((folder / "rdqn").glob(f"{ENV_ID}_*"), key=lambda path: int(path.name.rpartition("_")[2]))


def evaluate(model_path: Path) -> None:
    """Load a model and print its score beside the scores of agents without memory."""
    model, env = RecurrentDQN.load(model_path, device="cpu"), make_vec_env(ENV_ID, n_envs=8, seed=1)
    table = Table("agent", "return", title=f"{ENV_ID}, mean return of {N_EPISODES} episodes")
    for name, policy in (("the trained model", model), ("the same, state zeroed at every step", StateZeroed(model))):
        mean, std = evaluate_policy(policy, env, n_eval_episodes=N_EPISODES)
        table.add_row(name, f"{mean:.2f} ± {std / np.sqrt(N_EPISODES):.2f}")
    table.add_row("best possible without memory", f"{env.get_attr('memoryless_ceiling')[0]:.2f}")
    Console().print(table)


def plot(run: Path, path: Path, window: int = 50) -> None:
    """Draw the returns of training, means of ``window`` episodes, from the Monitor files of a run."""
    episodes = load_results(str(run))
    returns = np.convolve(episodes["r"], np.full(window, 1 / window), mode="valid")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(episodes["l"].cumsum()[window - 1 :], returns, label=f"while exploring, mean of {window} episodes")
    ceiling = make_vec_env(ENV_ID).get_attr("memoryless_ceiling")[0]
    axes.axhline(ceiling, color="gray", linestyle="--", label="best possible without memory")
    axes.set(title=ENV_ID, xlabel="environment steps", ylabel="return", ylim=(-1.05, 1.05))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the training run")
    parser.add_argument("--folder", type=Path, default=Path("logs/demo"), help="folder to write to")
    parser.add_argument("--evaluate", type=Path, metavar="ZIP", help="only evaluate this model")
    args = parser.parse_args()
    if args.evaluate:
        evaluate(args.evaluate)
    else:
        run = train(args.folder, args.seed)
        subprocess.run([sys.executable, __file__, "--evaluate", run / f"{ENV_ID}.zip"], check=True)
        plot(run, run / "learning_curve.png")
        print(f"The model and its learning curve are in {run}/")
