"""States of recurrent memories and scores of actions, and the figures that show them."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")

from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.env_util import make_vec_env

from sb3_attn import RecurrentDQN
from sb3_attn.viz import record_episode, save_figure, states_figure, values_figure
from sb3_attn.viz.episode_figures import order_of_units
from tests.helpers.attention import LENGTH, make_darqn, make_env


def record(policy_kwargs, algorithm=RecurrentDQN, policy="MlpPolicy", env=None, **kwargs):
    env = make_env("vector") if env is None else env
    sizes = dict(n_steps=4, batch_size=4) if algorithm is RecurrentPPO else dict(buffer_size=400)
    model = algorithm(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **(sizes | kwargs))
    return record_episode(model, env, LENGTH)


@pytest.mark.parametrize("core", ["lstm", "gru", "rnn", "ctrnn", "mingru", "identity", "dnc"])
def test_states_are_those_after_each_step_of_the_first_environment(core):
    episode = record(dict(core=core), env=make_env("vector", n_envs=2))
    after = episode.states[1:]
    names = {"lstm": ["hidden", "cell"], "identity": [], "dnc": []}.get(core, ["hidden"])
    assert list(episode.recurrent_states) == names
    for name, units in episode.recurrent_states.items():
        assert units.shape == (LENGTH, 64)
        np.testing.assert_array_equal(units[:-1], np.stack([getattr(state, name)[0] for state in after]))
        assert (units[-1] != units[-2]).any()


@pytest.mark.parametrize("algorithm", [RecurrentDQN, RecurrentPPO])
def test_layers_are_told_apart(algorithm):
    if algorithm is RecurrentDQN:
        episode = record(dict(core="lstm", core_kwargs=dict(hidden_size=8, num_layers=2)))
    else:
        episode = record(dict(n_lstm_layers=2, lstm_hidden_size=8), RecurrentPPO, "MlpLstmPolicy")
    expected = [f"{name}, layer {layer}" for name in ("hidden", "cell") for layer in (1, 2)]
    assert list(episode.recurrent_states) == expected
    for i, name in enumerate(("hidden", "cell")):
        field = np.stack([state[i] for state in episode.states[1:]])  # [T, 1, 2 * 8], in RecurrentPPO [T, 2, 1, 8]
        for layer, units in enumerate(np.split(field.reshape(LENGTH - 1, 16), 2, axis=1), start=1):
            np.testing.assert_array_equal(episode.recurrent_states[f"{name}, layer {layer}"][:-1], units)


def test_a_memory_that_attends_has_states_as_well(tmp_path):
    env = make_env("image")
    episode = record_episode(make_darqn(env), env, 2)
    assert list(episode.recurrent_states) == ["hidden", "cell"]
    episode.save(tmp_path / "episode.npz")
    with np.load(tmp_path / "episode.npz") as arrays:
        np.testing.assert_array_equal(arrays["states/cell"], episode.recurrent_states["cell"])


def test_units_that_move_together_are_drawn_together():
    times = np.linspace(0, 6, 40)
    signs = np.array([1, -1, 1, -1, 1, -1])
    states = 3 + np.sin(times)[:, None] * signs + 0.01 * np.cos(times)[:, None] * np.arange(6)
    ordered = signs[order_of_units(states)]
    assert (ordered[:3] == ordered[0]).all() and (ordered[3:] == -ordered[0]).all()


def test_the_figure_shows_states_scores_choices_and_rewards(tmp_path):
    episode = record(dict(core="lstm", core_kwargs=dict(hidden_size=8)))
    hidden, _, scores, rewards = states_figure(episode).axes[:4]
    units = episode.recurrent_states["hidden"]
    (image,) = hidden.images
    np.testing.assert_array_equal(image.get_array(), units[:, order_of_units(units)].T)
    low, high = image.get_clim()
    assert low == -high < 0  # so that 0 is white
    for action, (line, dots) in enumerate(zip(scores.lines[::2], scores.lines[1::2], strict=True)):
        np.testing.assert_array_equal(line.get_ydata(), episode.action_scores[:, action])
        np.testing.assert_array_equal(dots.get_xdata(), np.flatnonzero(episode.actions == action))
        np.testing.assert_array_equal(dots.get_ydata(), episode.action_scores[episode.actions == action, action])
    bars = rewards.collections[0].get_segments()
    assert [bar[-1].tolist() for bar in bars] == [[step, reward] for step, reward in enumerate(episode.rewards)]
    assert save_figure(values_figure(episode), tmp_path / "values.png").stat().st_size > 0
    with pytest.raises(ValueError, match="has no recurrent states; draw values_figure"):
        states_figure(record(None, DQN))


def test_invalid_actions_leave_gaps_and_many_actions_have_no_legend():
    episode = record(None, DQN)
    episode.action_scores = np.zeros((LENGTH, 21))
    episode.action_scores[2, 0] = -np.inf
    scores = values_figure(episode).axes[0]
    assert np.isnan(scores.lines[0].get_ydata()[2]) and scores.get_legend() is None


def test_actions_without_scores_are_drawn_themselves():
    episode = record(None, SAC, env=make_vec_env("Pendulum-v1", seed=0))
    actions = values_figure(episode).axes[0]
    assert actions.get_title(loc="left") == "action"
    np.testing.assert_array_equal(actions.lines[0].get_ydata(), episode.actions[:, 0])
