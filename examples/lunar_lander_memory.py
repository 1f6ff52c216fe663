"""
What does a memory hold? LunarLander without its velocities, landed by an LSTM that has to find them out from the positions.

    python examples/lunar_lander_memory.py   # half a minute; writes lunar_lander/index.html

Each page steps through an episode: the picture, the units of the LSTM (sorted, so that those that move together lie
together), the value of each action, and the reward. The model is the one in `pretrained/`; train your own, in a quarter of an
hour, by

    sb3-attn train --algo rdqn --env LunarLanderNoVel-v3
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
import rl_zoo3.import_envs  # noqa: F401  # registers LunarLanderNoVel-v3
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attn import RecurrentDQN
from sb3_attn.common.evaluation import StateZeroed
from sb3_attn.viz.page import write_index, write_page
from sb3_attn.viz.recording import record_episode

ENV_ID = "LunarLanderNoVel-v3"
N_EPISODES = 20
MODEL = Path(__file__).parents[1] / "pretrained" / "rdqn" / f"{ENV_ID}_1" / f"{ENV_ID}.zip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=3, help="number of pages (3)")
    parser.add_argument("--steps", type=int, default=1000, help="number of steps after which a page ends (1000)")
    parser.add_argument("--model", type=Path, default=MODEL, help="zip file of a RecurrentDQN (the pretrained one)")
    parser.add_argument("--out", type=Path, default=Path("lunar_lander"), help="folder to write to (lunar_lander)")
    args = parser.parse_args()
    env = gym.make(ENV_ID, render_mode="rgb_array")
    env.reset(seed=0)
    model = RecurrentDQN.load(args.model, device="cpu")

    args.out.mkdir(parents=True, exist_ok=True)
    pages = []
    for number in range(1, args.episodes + 1):
        episode = record_episode(model, env, args.steps)
        heading = f"Episode {number}: {len(episode)} steps, return {np.sum(episode.rewards):.0f}"
        write_page(args.out / f"episode_{number}.html", episode, f"{ENV_ID}. {heading}")
        pages.append((f"episode_{number}.html", heading))
        print(heading)
    write_index(args.out / "index.html", f"Episodes of {ENV_ID}", pages)

    plain_env = gym.make(ENV_ID)
    for name, agent in (("with its memory", model), ("with its memory zeroed at every step", StateZeroed(model))):
        mean, _ = evaluate_policy(agent, plain_env, n_eval_episodes=N_EPISODES, warn=False)
        print(f"Mean return of {N_EPISODES} episodes {name}: {mean:.0f} (200 is solved)")
    print(f"Written to {args.out}/index.html")


if __name__ == "__main__":
    main()
