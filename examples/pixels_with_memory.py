"""
A memory over pixels without a GPU: how was the T turned that was shown once, 20 images of other glyphs ago?

    python examples/pixels_with_memory.py   # seven minutes on one core

Convolutions over whole sequences would take most of the time. Here each image is encoded once, by convolutions that stay as
they were drawn at random; the replay stores these features, and the memory reads them.
"""

import argparse
import time

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attn import FrozenEncoder, RecurrentDQN, VecFrozenFeatures
from sb3_attn.common.evaluation import StateZeroed

ENV_ID = "RememberedGlyph-v0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000, help="number of training steps (40000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of encoder and training run (0)")
    args = parser.parse_args()
    start = time.process_time()
    env = make_vec_env(ENV_ID, n_envs=8, seed=args.seed)
    encoder = FrozenEncoder.random(env, seed=args.seed)
    model = RecurrentDQN(
        "FrozenFeaturesPolicy",
        VecFrozenFeatures(env, encoder),
        buffer_size=50_000,
        batch_size=32,
        trace_length=4,  # the steps that the head values
        burn_in_length=20,  # and those before them that the memory reads: together more than an episode's 21
        seed=args.seed,
        device="cpu",
    )
    model.learn(args.steps)
    print(f"Trained in {time.process_time() - start:.0f} s of processor time")
    evaluation_env = VecFrozenFeatures(make_vec_env(ENV_ID, n_envs=8, seed=1000), encoder)  # the same encoder
    for name, agent in (("with its memory", model), ("with its memory zeroed at every step", StateZeroed(model))):
        mean, _ = evaluate_policy(agent, evaluation_env, n_eval_episodes=100)
        print(f"Right answers {name}: {mean:.2f} (by chance 0.25)")


if __name__ == "__main__":
    main()
