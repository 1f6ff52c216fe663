import pytest

optuna = pytest.importorskip("optuna")

import gymnasium as gym

import sb3_attn.envs  # noqa: F401
from sb3_attn import RecurrentDQN
from sb3_attn.zoo.sampling import BATCH_SIZES, MAX_STEPS_PER_BATCH, convert_rdqn_params, sample_rdqn_params

optuna.logging.set_verbosity(optuna.logging.WARNING)


def trials(n_trials: int) -> list[tuple["optuna.trial.Trial", dict]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [(trial, sample_rdqn_params(trial, 0, 1, {})) for trial in (study.ask() for _ in range(n_trials))]


def test_every_sample_constructs_a_model() -> None:
    env = gym.make("MemoryChain-v0")
    for _, hyperparams in trials(20):
        model = RecurrentDQN("MlpPolicy", env, buffer_size=1000, device="cpu", **hyperparams)
        assert model.trace_length == hyperparams["trace_length"]


def test_a_sample_replaces_whatever_it_depends_on() -> None:
    # The sampler's entries replace the YAML's one by one: the YAML of an n-step agent with a period of 20 and a GRU
    yaml = {
        "bootstrap_n": 5,
        "td_lambda": None,
        "sequence_period": 200,
        "trace_length": 200,
        "policy_kwargs": {"core": "gru", "core_kwargs": {"update_bias": 0.0}},
    }
    env = gym.make("MemoryChain-v0")
    _, hyperparams = trials(1)[0]
    RecurrentDQN("MlpPolicy", env, buffer_size=1000, device="cpu", **{**yaml, **hyperparams})


def test_policy_kwargs_are_complete() -> None:
    for _, hyperparams in trials(5):
        names = {"core", "core_kwargs", "encoder_arch", "net_arch", "dueling", "skip_connection"}
        assert set(hyperparams["policy_kwargs"]) == names


def test_batches_are_capped() -> None:
    sizes = []
    for _, hyperparams in trials(200):
        steps = hyperparams["trace_length"] + hyperparams["burn_in_length"]
        smallest, largest = BATCH_SIZES
        assert smallest <= hyperparams["batch_size"] <= largest
        assert hyperparams["batch_size"] * steps <= max(MAX_STEPS_PER_BATCH, smallest * steps)
        sizes.append(hyperparams["batch_size"])
    assert min(sizes) == smallest
    assert max(sizes) == largest


def test_a_stored_trial_gives_the_same_arguments() -> None:
    for trial, hyperparams in trials(20):
        assert convert_rdqn_params(trial.params) == hyperparams


def test_conversion_leaves_the_trial_as_it_is() -> None:
    trial, _ = trials(1)[0]
    before = dict(trial.params)
    convert_rdqn_params(before)["policy_kwargs"]["net_arch"].append(7)
    assert before == trial.params
    assert 7 not in convert_rdqn_params(before)["policy_kwargs"]["net_arch"]
