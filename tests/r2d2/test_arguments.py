"""R2D2's arguments: their defaults, and which are refused."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn import R2D2, PrioritizedSequenceReplayBuffer, RecurrentDQN, SequenceReplayBuffer
from sb3_attn.r2d2.settings import with_default_policy_kwargs
from tests.helpers.actors import make_actor
from tests.helpers.environments import Walk
from tests.helpers.models import SumCore, make_r2d2

PAPER = dict(
    learning_rate=1e-4,
    buffer_size=4_000_000,
    batch_size=64,
    gamma=0.997,
    target_update_interval=2500,
    double_q=True,
    n_steps=5,
    td_lambda=None,
    value_rescaling=True,
    reward_scaling=False,
    trace_length=80,
    burn_in_length=40,
    sequence_period=40,
    stored_state=True,
    prioritized_replay=True,
    per_env_epsilons=True,
    rollout_length=80,
    actor_update_interval=400,
    tau=1.0,
)
OURS = dict(
    learning_starts=10_000,
    max_grad_norm=40.0,
    n_actors=0,
    envs_per_actor=None,
    samples_per_insert=4.0,
    backend="sync",
    max_env_restarts=10,
    backend_kwargs=None,
    clipped_double_q=False,
    trace_tolerance=0.01,
    munchausen_alpha=0.0,
    munchausen_temperature=0.03,
    use_masking=None,
    exploration_fraction=0.2,
    exploration_initial_eps=1.0,
    exploration_final_eps=0.05,
    settings="paper",
    replay_buffer_class=None,
    replay_buffer_kwargs=None,
    policy_kwargs=None,
    stats_window_size=100,
    tensorboard_log=None,
    verbose=0,
    seed=None,
    device="auto",
)


def test_the_defaults_are_the_papers() -> None:
    """Kapturowski et al. (2019), table 2 and section 2.3; steps are environment steps, not frames."""
    parameters = inspect.signature(R2D2).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty and name[0] != "_"}
    assert defaults == PAPER | OURS | {"burn_in_length": None}  # that of RecurrentDQN: 40, or 0 for whole episodes


def test_whole_episodes_need_no_further_argument() -> None:
    """The defaults of burn-in and period are those of windows; explicit values still contradict whole episodes."""
    model = R2D2("MlpPolicy", Walk, trace_length=None, device="cpu")
    assert (model.burn_in_length, model.sequence_period) == (0, None)
    for arguments in (dict(burn_in_length=40), dict(sequence_period=20)):
        with pytest.raises(ValueError, match="trace_length=None takes whole episodes"):
            R2D2("MlpPolicy", Walk, trace_length=None, **arguments)


def test_the_defaults_reach_the_model() -> None:
    model = R2D2("MlpPolicy", Walk, device="cpu")
    for name, value in PAPER.items():
        assert getattr(model, name) == value, name
    assert isinstance(model.replay_buffer, PrioritizedSequenceReplayBuffer)
    assert (model.replay_buffer.priority_exponent, model.replay_buffer.importance_exponent) == (0.9, 0.6)
    assert model.n_envs == 8 and model.replay_buffer.buffer_size == 4_000_000 // 8
    assert model.q_net.core.output_size == 512 and model.q_net.q_net.dueling and model.q_net.q_net[0].out_features == 512
    assert isinstance(model.policy.optimizer, th.optim.Adam)
    assert model.policy.optimizer.defaults["eps"] == 1e-3 and model.policy.optimizer.defaults["lr"] == 1e-4


def test_the_default_period_is_not_longer_than_the_window() -> None:
    periods = {length: R2D2("MlpPolicy", Walk, trace_length=length).replay_buffer.sequence_period for length in (20, 40, 60)}
    assert periods == {20: 20, 40: 40, 60: 40}


# ---------------------------------------------------------------- settings


#: Arguments that RecurrentDQN does not have, or that count something else there
SMALL_ACTORS = dict(target_update_interval=100, samples_per_insert=None, rollout_length=20, actor_update_interval=20)


def test_small_settings_are_the_defaults_of_recurrent_dqn() -> None:
    """If one of those changes, change ``SETTINGS`` and the table in docs/guide/r2d2.md too."""
    env = DummyVecEnv([Walk] * 8)
    small, other = R2D2("MlpPolicy", Walk, settings="small", device="cpu"), RecurrentDQN("MlpPolicy", env, device="cpu")
    shared = inspect.signature(R2D2).parameters.keys() & inspect.signature(RecurrentDQN).parameters.keys() & vars(small).keys()
    shared -= SMALL_ACTORS.keys() | {"env", "policy", "tensorboard_log"}
    assert {"learning_rate", "td_lambda", "burn_in_length", "per_env_epsilons", "reward_scaling", "gamma"} < shared
    for name in shared:
        assert getattr(small, name) == getattr(other, name), name
    for name, value in SMALL_ACTORS.items():
        assert getattr(small, name) == value, name
    assert type(small.replay_buffer) is SequenceReplayBuffer and small.n_envs == 8
    assert str(small.policy) == str(other.policy) and small.policy.ema_decay == other.policy.ema_decay > 0
    assert small.policy.optimizer.defaults == other.policy.optimizer.defaults
    assert small.policy.optimizer.defaults["eps"] == 1e-8


def test_arguments_take_precedence_over_settings() -> None:
    policy_kwargs = dict(net_arch=[7], optimizer_kwargs=dict(eps=1e-5))
    arguments = dict(gamma=0.997, prioritized_replay=True, samples_per_insert=4.0, value_rescaling=True)
    model = R2D2("MlpPolicy", Walk, 1e-4, settings="small", trace_length=30, policy_kwargs=policy_kwargs, **arguments)
    for name, value in {"learning_rate": 1e-4, "trace_length": 30, **arguments}.items():
        assert getattr(model, name) == value, name
    assert not model.reward_scaling and model.burn_in_length == 40 and model.batch_size is None
    assert model.policy.optimizer.defaults["eps"] == 1e-5 and model.policy.ema_decay == 0.995
    assert model.q_net.q_net[0].out_features == 7
    whole = R2D2("MlpPolicy", Walk, settings="small", trace_length=None)
    assert (whole.burn_in_length, whole.sequence_period) == (0, None)


def test_former_names_of_arguments_take_precedence_over_settings() -> None:
    with pytest.warns(FutureWarning):
        model = R2D2("MlpPolicy", Walk, settings="small", epsilon_ladder=True, bootstrap_n=3, td_lambda=None)
    assert model.per_env_epsilons and model.n_steps == 3


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"settings='tiny' must be one of \('paper', 'small'\)"):
        R2D2("MlpPolicy", Walk, settings="tiny")


ADAM = {"eps": 1e-3, "fused": True}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, dict(net_arch=[512], core_kwargs={"hidden_size": 512}, optimizer_kwargs=ADAM)),
        (dict(core="gru"), dict(core="gru", net_arch=[512], core_kwargs={"hidden_size": 512}, optimizer_kwargs=ADAM)),
        (dict(core="mingru"), dict(core="mingru", net_arch=[512], core_kwargs={"hidden_size": 512}, optimizer_kwargs=ADAM)),
        (dict(core="LSTM"), dict(core="LSTM", net_arch=[512], core_kwargs={"hidden_size": 512}, optimizer_kwargs=ADAM)),
        (dict(core="ntm"), dict(core="ntm", net_arch=[512], optimizer_kwargs=ADAM)),
        (dict(core=SumCore), dict(core=SumCore, net_arch=[512], optimizer_kwargs=ADAM)),
        (
            dict(net_arch=[7], core_kwargs={"hidden_size": 5}, dueling=False),
            dict(net_arch=[7], core_kwargs={"hidden_size": 5}, dueling=False, optimizer_kwargs=ADAM),
        ),
        (
            dict(optimizer_class=th.optim.SGD),
            dict(optimizer_class=th.optim.SGD, net_arch=[512], core_kwargs={"hidden_size": 512}),
        ),
        (
            dict(optimizer_kwargs={"weight_decay": 0.1, "eps": 1e-8}, core_kwargs={"forget_bias": 1.0}),
            dict(
                net_arch=[512],
                core_kwargs={"hidden_size": 512, "forget_bias": 1.0},
                optimizer_kwargs={"eps": 1e-8, "fused": True, "weight_decay": 0.1},
            ),
        ),
        (
            dict(optimizer_class=th.optim.SGD, optimizer_kwargs={"momentum": 0.9}, core_kwargs=None),
            dict(
                optimizer_class=th.optim.SGD,
                optimizer_kwargs={"momentum": 0.9},
                net_arch=[512],
                core_kwargs={"hidden_size": 512},
            ),
        ),
    ],
    ids=str,
)
def test_given_policy_arguments_take_precedence_over_the_papers(given: dict | None, expected: dict[str, Any]) -> None:
    copy = None if given is None else dict(given)
    assert with_default_policy_kwargs(given) == expected | {"ema_decay": 0.0}
    assert given == copy


def test_munchausen_changes_the_update_and_not_the_initial_priorities() -> None:
    plain, munchausen = (make_r2d2(value_rescaling=False, munchausen_alpha=alpha) for alpha in (0.0, 0.9))
    errors = [make_actor(model).collect(20).td_errors for model in (plain, munchausen)]
    np.testing.assert_array_equal(*errors)
    weights = [model.learn(60).q_net.q_net[0].weight for model in (plain, munchausen)]
    assert munchausen.munchausen_alpha == 0.9 and not th.equal(*weights)


#: Besides those that RecurrentDQN has too, which ``tests/algorithms`` tests for both
BAD = [
    (dict(backend="threads"), r"backend='threads' must be one of \('sync', 'ray'\)"),
    (dict(n_actors=-1), "n_actors=-1 must be at least 0"),
    (dict(rollout_length=0), "rollout_length=0 must be at least 1"),
    (dict(rollout_length=2.5), r"rollout_length=2\.5 must be a whole number"),
    (dict(actor_update_interval=float("nan")), "actor_update_interval=nan must be at least 1"),
    (dict(samples_per_insert=float("nan")), "samples_per_insert=nan must be positive; None means one update per 10"),
    (dict(actor_update_interval=0), "actor_update_interval=0 must be at least 1"),
    (dict(samples_per_insert=0), "samples_per_insert=0 must be positive"),
    (dict(samples_per_insert=-2.5), "samples_per_insert=-2.5 must be positive"),
    (dict(max_env_restarts=-1), "max_env_restarts=-1 must be at least 0"),
    (dict(backend_kwargs=dict(address="auto")), r"backend_kwargs=\{'address': 'auto'\}, but backend='sync' takes none"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_bad_argument_is_named(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_r2d2(**arguments)


def test_a_length_is_checked_before_the_paper_s_are_fitted_to_it() -> None:
    with pytest.raises(ValueError, match="trace_length='16' must be a whole number"):
        R2D2("MlpPolicy", Walk, trace_length="16")  # type: ignore[arg-type]


def test_the_ratio_of_updates_has_one_argument() -> None:
    with pytest.raises(TypeError, match="train_freq=4 is not supported; use samples_per_insert"):
        make_r2d2(train_freq=4)


def test_nor_has_a_model_that_is_loaded_another(tmp_path: Path) -> None:
    make_r2d2().save(tmp_path / "model")
    with pytest.raises(TypeError, match="gradient_steps=4 is not supported; use samples_per_insert"):
        R2D2.load(tmp_path / "model", gradient_steps=4, device="cpu")


def test_no_step_of_falling_epsilons() -> None:
    """SB3's schedule would divide by the fraction before the first step."""
    model = make_r2d2(per_env_epsilons=False, exploration_fraction=0, exploration_final_eps=0.3)
    assert model.learn(24).exploration_rate == 0.3


@pytest.mark.parametrize(("n_actors", "n_envs", "n_replay_envs"), [(0, 3, 3), (1, 3, 3), (4, 3, 12)])
def test_the_replay_is_divided_among_the_environments_of_all_actors(n_actors: int, n_envs: int, n_replay_envs: int) -> None:
    model = make_r2d2(DummyVecEnv([Walk] * n_envs), n_actors=n_actors)
    assert model.replay_buffer.n_envs == model.n_replay_envs == n_replay_envs
    assert model.n_envs == n_envs
    assert model.replay_buffer.buffer_size == 400 // n_replay_envs


def test_trajectories_may_be_single_steps() -> None:
    model = make_r2d2(n_actors=2, rollout_length=1, actor_update_interval=1).learn(80)
    assert model._n_updates > 0
    model.replay_buffer.check_valid()


def test_every_finished_episode_is_a_window_when_episodes_are_taken_whole() -> None:
    model = make_r2d2(n_actors=1, trace_length=None, burn_in_length=0, sequence_period=None).learn(80)
    buffer = model.replay_buffer
    lengths = buffer.window_lengths[buffer.window_lengths > 0]
    assert lengths.sum() == buffer.pos.sum() - buffer.open_lengths.sum() and lengths.max() > 4


@pytest.mark.parametrize("envs_per_actor", [0, -1])
def test_the_number_of_environments_is_positive(envs_per_actor: int) -> None:
    with pytest.raises(ValueError, match=f"envs_per_actor={envs_per_actor}"):
        make_r2d2(envs_per_actor=envs_per_actor)


def test_the_target_interval_counts_updates_so_many_environments_are_no_reason_to_warn() -> None:
    make_r2d2(DummyVecEnv([Walk] * 3), target_update_interval=2)
