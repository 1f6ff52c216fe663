from typing import Any

import pytest

optuna = pytest.importorskip("optuna")

import gymnasium as gym

import sb3_attn.envs  # noqa: F401
from sb3_attn.memory import CORES
from sb3_attn.zoo import ALGORITHMS
from sb3_attn.zoo.sampling import BATCH_SIZES, MAX_STEPS_PER_BATCH, NOT_SEARCHED, SEARCHED_CORES, convert_r2d2_params

optuna.logging.set_verbosity(optuna.logging.WARNING)

#: A YAML whose entries all differ from those that are sampled: n-step returns, no double Q, a period of 200, a GRU
YAML = {
    "double_q": False,
    "clipped_double_q": False,
    "trace_tolerance": 0.5,
    "n_steps": 5,
    "td_lambda": None,
    "sequence_period": 200,
    "trace_length": 200,
    "policy_kwargs": {"core": "gru", "core_kwargs": {"update_bias": 0.0}},
}

each_algorithm = pytest.mark.parametrize("algo", [name for name, algorithm in ALGORITHMS.items() if algorithm.sampler])


def trials(algo: str, n_trials: int) -> list[tuple[Any, dict[str, Any]]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [(trial, ALGORITHMS[algo].sampler(trial, 0, 1, {})) for trial in (study.ask() for _ in range(n_trials))]


@each_algorithm
@pytest.mark.parametrize("yaml", [{}, YAML], ids=["alone", "over a YAML"])
def test_every_sample_constructs_a_model(algo: str, yaml: dict[str, Any]) -> None:
    # The sampler's entries replace the YAML's one by one, so they have to bring all that they depend on
    env = gym.make("MemoryChain-v0")
    for _, hyperparams in trials(algo, 20):
        arguments = {**yaml, **hyperparams}
        model_class: Any = ALGORITHMS[algo].model_class
        model = model_class("MlpPolicy", env, buffer_size=1000, device="cpu", **arguments)
        for name in YAML.keys() - {"policy_kwargs"}:
            assert getattr(model, name) == hyperparams[name]


@each_algorithm
def test_policy_kwargs_are_complete(algo: str) -> None:
    for _, hyperparams in trials(algo, 5):
        names = {"core", "core_kwargs", "encoder_arch", "net_arch", "dueling", "skip_connection"}
        assert set(hyperparams["policy_kwargs"]) == names | ({"optimizer_kwargs"} if algo == "r2d2" else set())


def test_cores_that_are_not_searched_exist() -> None:
    assert set(NOT_SEARCHED) < set(CORES) and set(SEARCHED_CORES) == set(CORES) - set(NOT_SEARCHED)


@each_algorithm
def test_stored_studies_go_on(algo: str) -> None:
    """Optuna refuses a trial with other choices than those before."""
    study = optuna.create_study()
    choices = optuna.distributions.CategoricalDistribution(["gru", "gtrxl", "key_value", "lstm"])
    study.add_trial(optuna.trial.create_trial(params={"core": "lstm"}, distributions={"core": choices}, value=0.0))
    ALGORITHMS[algo].sampler(study.ask(), 0, 1, {})


@each_algorithm
def test_batches_are_capped(algo: str) -> None:
    sizes = []
    for _, hyperparams in trials(algo, 200):
        steps = hyperparams["trace_length"] + hyperparams["burn_in_length"]
        smallest, largest = BATCH_SIZES
        assert smallest <= hyperparams["batch_size"] <= largest
        assert hyperparams["batch_size"] * steps <= max(MAX_STEPS_PER_BATCH, smallest * steps)
        sizes.append(hyperparams["batch_size"])
    assert min(sizes) == smallest
    assert max(sizes) == largest


@each_algorithm
def test_a_stored_trial_gives_the_same_arguments(algo: str) -> None:
    for trial, hyperparams in trials(algo, 20):
        assert ALGORITHMS[algo].converter(trial.params) == hyperparams


@each_algorithm
def test_all_trials_draw_the_same_parameters(algo: str) -> None:
    assert len({frozenset(trial.params) for trial, _ in trials(algo, 50)}) == 1


@each_algorithm
def test_conversion_leaves_the_trial_as_it_is(algo: str) -> None:
    convert = ALGORITHMS[algo].converter
    trial, _ = trials(algo, 1)[0]
    before = dict(trial.params)
    convert(before)["policy_kwargs"]["net_arch"].append(7)
    assert before == trial.params
    assert 7 not in convert(before)["policy_kwargs"]["net_arch"]


def test_r2d2_tries_both_kinds_of_return_and_of_window() -> None:
    samples = [convert_r2d2_params(trial.params) for trial, _ in trials("r2d2", 50)]
    kinds = {(sample["td_lambda"] is None, sample["sequence_period"] * 2 == sample["trace_length"]) for sample in samples}
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}
    assert {"n_actors", "envs_per_actor", "backend"}.isdisjoint(samples[0])
