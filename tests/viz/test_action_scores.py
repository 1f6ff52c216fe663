"""Scores of the actions: those that the model acts by, at the same memory, in the unit of the rewards."""

import numpy as np
import pytest
import torch as th

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")

from sb3_contrib import QRDQN, TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env

import sb3_attn.envs  # noqa: F401  # registers the tasks
from sb3_attn import RecurrentDQN
from sb3_attn.common import td
from sb3_attn.viz import record_episode

CHAIN, CARDS = "MemoryChain-v0", "CardOrder-v0"
SIZES = {A2C: dict(n_steps=4), PPO: dict(n_steps=4, batch_size=4), TRPO: dict(n_steps=4, batch_size=4)}
SIZES |= {RecurrentPPO: SIZES[PPO], MaskablePPO: SIZES[PPO]}


def record(algorithm, env_id=CHAIN, n_envs=1, probe=None, **kwargs):
    env = make_vec_env(env_id, n_envs, seed=0)
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    sizes = SIZES.get(algorithm, dict(buffer_size=400))
    model = algorithm(policy, env, seed=0, device="cpu", **(sizes | kwargs))
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter *= 2  # the values of an untrained network hardly depend on the observation
    return model, record_episode(model, env, 20, sources=[], render=False, probe=probe)


@pytest.mark.parametrize("algorithm", [DQN, QRDQN, RecurrentDQN, A2C, PPO, TRPO, RecurrentPPO])
def test_the_best_score_is_that_of_the_action_that_was_taken(algorithm):
    model, episode = record(algorithm, n_envs=2)
    assert episode.action_scores.shape == (len(episode), model.action_space.n)
    assert episode.action_scores.argmax(axis=1).tolist() == episode.actions.tolist()
    is_value = algorithm in (DQN, QRDQN, RecurrentDQN)
    assert episode.score_name == ("Q-value" if is_value else "probability")
    if not is_value:
        np.testing.assert_allclose(episode.action_scores.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("value_rescaling", [False, True])
def test_q_values_are_those_of_an_unroll_in_the_unit_of_the_rewards(value_rescaling):
    model, episode = record(RecurrentDQN, value_rescaling=value_rescaling)
    network = model.policy.acting_net
    with th.no_grad():
        expected, _ = network.unroll(th.as_tensor(episode.observations).unsqueeze(1), network.initial_state(1))
    expected = td.signed_parabolic(expected) if value_rescaling else expected
    np.testing.assert_allclose(episode.action_scores, expected[:, 0], rtol=1e-4, atol=1e-5)


def test_probabilities_of_a_recurrent_policy_are_those_of_an_unroll():
    model, episode = record(RecurrentPPO)
    starts = th.zeros(len(episode))
    state = (th.zeros(model.policy.lstm_hidden_state_shape),) * 2
    with th.no_grad():
        distribution, _ = model.policy.get_distribution(th.as_tensor(episode.observations), state, starts)
    np.testing.assert_allclose(episode.action_scores, distribution.distribution.probs, rtol=1e-4)


@pytest.mark.parametrize(("algorithm", "of_invalid_actions"), [(RecurrentDQN, -np.inf), (MaskablePPO, 0)])
def test_invalid_actions_have_the_lowest_score(algorithm, of_invalid_actions):
    _, episode = record(algorithm, CARDS, n_envs=2, probe=lambda env: get_action_masks(env)[0])
    masks = np.stack(episode.probes)
    assert len(episode) > 1 and not masks.all()
    np.testing.assert_array_equal(episode.action_scores == of_invalid_actions, ~masks)
    assert episode.action_scores.argmax(axis=1).tolist() == episode.actions.tolist()


def test_scores_are_saved_if_there_are_any(tmp_path):
    _, episode = record(PPO)
    episode.save(tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz") as arrays:
        np.testing.assert_array_equal(arrays["action_scores"], episode.action_scores)
        assert arrays["score_name"] == "probability"
    _, episode = record(SAC, "Pendulum-v1")
    assert episode.action_scores is None and episode.score_name is None
    episode.save(tmp_path / "none.npz")
    with np.load(tmp_path / "none.npz") as arrays:
        assert set(arrays) == {"actions", "rewards"}
