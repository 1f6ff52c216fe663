import numpy as np
import pytest
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_with_masks
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attn import RecurrentDQN
from sb3_attn.common.evaluation import StateZeroed


@pytest.mark.parametrize(("algorithm", "policy"), [(RecurrentDQN, "MlpPolicy"), (RecurrentPPO, "MlpLstmPolicy")])
def test_a_state_that_is_zeroed_is_that_of_every_first_step(algorithm, policy) -> None:
    env = make_vec_env("MemoryChain-v0", n_envs=3, seed=0)
    model = algorithm(policy, env, seed=0, device="cpu")
    state, starts = None, np.ones(3, dtype=bool)
    for _ in range(8):
        observations = np.array([env.observation_space.sample() for _ in range(3)])
        action, state = StateZeroed(model).predict(observations, state, starts, deterministic=True)
        first_action, first_state = model.predict(observations, None, np.ones(3, dtype=bool), deterministic=True)
        np.testing.assert_equal((action, state), (first_action, first_state))
        starts = np.zeros(3, dtype=bool)
    assert evaluate_policy(StateZeroed(model), env, n_eval_episodes=6)


def test_masks_reach_the_model() -> None:
    env = make_vec_env("CardOrder-v0", n_envs=2, seed=0)
    model = RecurrentDQN("MlpPolicy", env, seed=0, device="cpu")
    returns, lengths = evaluate_with_masks(StateZeroed(model), env, n_eval_episodes=6, return_episode_rewards=True)
    assert len(returns) == 6 and min(lengths) == max(lengths)  # an invalid action would end an episode
