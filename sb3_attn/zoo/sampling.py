"""
Search spaces for ``sb3-attn optimize``.

RL Zoo replaces the YAML's entries one by one with those that a sampler returns, and ``policy_kwargs`` is a single entry, whose
value in the YAML is lost. So each sampler returns it complete, and arguments that depend on one another (``td_lambda`` and
``n_steps``; ``trace_length``, ``burn_in_length`` and ``sequence_period``) are always returned together. Every combination is
valid. Each trial samples all parameters, even those that another one makes irrelevant: Optuna's multivariate TPE learns only
from parameters that all trials have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sb3_attn.memory import CORES

if TYPE_CHECKING:
    import optuna

#: Largest number of time steps in one batch: 32 sequences of 128 steps, twice the 2,048 transitions that RL Zoo tries for DQN
MAX_STEPS_PER_BATCH = 4096

#: Smallest and largest number of sequences in one batch
BATCH_SIZES = (16, 128)

#: Cores that are left out: identity remembers nothing, and on a CPU an update of NTM or DNC takes several times as long as one
#: of the others. The last three came later: Optuna goes on with a stored study only if the choices are those that it had
NOT_SEARCHED = ("identity", "ntm", "dnc", "ctrnn", "mingru", "rnn")

#: Cores to choose from; each takes a ``hidden_size``
SEARCHED_CORES = tuple(name for name in CORES if name not in NOT_SEARCHED)

LAYERS: dict[str, list[int]] = {"none": [], "small": [64], "medium": [128], "big": [256]}


def sample_rdqn_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample the hyperparameters of one trial of ``RecurrentDQN``.

    The size of the replay buffer, the start of learning and the number of environments stay as in the YAML.

    :param trial: the Optuna trial
    :param n_actions: not used (RL Zoo's samplers for continuous control need it)
    :param n_envs: not used, since a stored trial is converted without it
    :param additional_args: not used (hindsight replay needs it)
    :return: arguments of the constructor
    """
    params = {
        **_sample_shared_params(trial),
        "train_freq": trial.suggest_categorical("train_freq", [1, 2, 4, 8]),
        "gradient_steps": trial.suggest_int("gradient_steps", 1, 4),
        "target_update_interval": trial.suggest_int("target_update_interval", 200, 20000, log=True),
        "exploration_fraction": trial.suggest_float("exploration_fraction", 0.05, 0.5),
        "exploration_final_eps": trial.suggest_float("exploration_final_eps", 0.005, 0.1, log=True),
    }
    return _with_user_attrs(trial, convert_rdqn_params(params))


def sample_r2d2_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample the hyperparameters of one trial of ``R2D2``.

    The size of the replay buffer, the start of learning, and number and backend of the actors stay as in the YAML.

    :param trial: the Optuna trial
    :param n_actions: not used (RL Zoo's samplers for continuous control need it)
    :param n_envs: not used, since a stored trial is converted without it
    :param additional_args: not used (hindsight replay needs it)
    :return: arguments of the constructor
    """
    params = {
        **_sample_shared_params(trial),
        "returns": trial.suggest_categorical("returns", ["n-step", "lambda"]),
        "n_steps": trial.suggest_int("n_steps", 1, 10),
        "period_fraction": trial.suggest_categorical("period_fraction", [0.5, 1.0]),
        # The cost of a trial: if windows do not overlap, the number of steps trained on for each step collected
        "samples_per_insert": trial.suggest_float("samples_per_insert", 2, 128, log=True),
        "target_update_interval": trial.suggest_int("target_update_interval", 20, 2500, log=True),
        # From PyTorch's default to the paper's value, with which small rewards are hardly learned
        "adam_eps": trial.suggest_float("adam_eps", 1e-8, 1e-3, log=True),
    }
    return _with_user_attrs(trial, convert_r2d2_params(params))


def _sample_shared_params(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        # Tasks with an answer at every step are learned best with a gamma as low as 0.5, delayed rewards need 0.99 or more
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.002, 0.5, log=True),
        "td_lambda": trial.suggest_float("td_lambda", 0.0, 0.95),
        "trace_tolerance": trial.suggest_categorical("trace_tolerance", [None, 0.01]),
        "clipped_double_q": trial.suggest_categorical("clipped_double_q", [False, True]),
        "value_rescaling": trial.suggest_categorical("value_rescaling", [False, True]),
        "prioritized_replay": trial.suggest_categorical("prioritized_replay", [False, True]),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 4, 7),
        # A window that is longer than the episode holds the whole episode
        "trace_length_pow": trial.suggest_int("trace_length_pow", 4, 7),
        "burn_in_fraction": trial.suggest_categorical("burn_in_fraction", [0.0, 0.25, 0.5]),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.5, 40.0, log=True),
        "core": trial.suggest_categorical("core", SEARCHED_CORES),
        "hidden_size_pow": trial.suggest_int("hidden_size_pow", 5, 8),
        "encoder_arch": trial.suggest_categorical("encoder_arch", list(LAYERS)),
        "net_arch": trial.suggest_categorical("net_arch", list(LAYERS)),
        "dueling": trial.suggest_categorical("dueling", [False, True]),
    }


def _with_user_attrs(trial: optuna.Trial, hyperparams: dict[str, Any]) -> dict[str, Any]:
    # The table of trials would otherwise show these only in the form in which they are sampled
    for name in ("gamma", "batch_size", "trace_length", "burn_in_length"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_rdqn_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn a trial's parameters into arguments of ``RecurrentDQN``.

    :param sampled_params: ``trial.params``, as sampled by ``sample_rdqn_params``
    :return: arguments of the constructor, with complete ``policy_kwargs``
    """
    params = dict(sampled_params)
    trace_length = 2 ** params.pop("trace_length_pow")
    burn_in_length = round(trace_length * params.pop("burn_in_fraction"))
    smallest, largest = BATCH_SIZES
    fitting = MAX_STEPS_PER_BATCH // (trace_length + burn_in_length)
    return {
        "policy_kwargs": {
            "core": params.pop("core"),
            "core_kwargs": {"hidden_size": 2 ** params.pop("hidden_size_pow")},
            "encoder_arch": list(LAYERS[params.pop("encoder_arch")]),
            "net_arch": list(LAYERS[params.pop("net_arch")]),
            "dueling": params.pop("dueling"),
            "skip_connection": True,
        },
        "gamma": 1 - params.pop("one_minus_gamma"),
        "batch_size": max(smallest, min(2 ** params.pop("batch_size_pow"), fitting, largest)),
        "trace_length": trace_length,
        "burn_in_length": burn_in_length,
        "sequence_period": None,
        "n_steps": 1,
        "double_q": True,
        "clipped_double_q": False,  # of trials that were stored before it was sampled
        **params,
    }


def convert_r2d2_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn a trial's parameters into arguments of ``R2D2``.

    :param sampled_params: ``trial.params``, as sampled by ``sample_r2d2_params``
    :return: arguments of the constructor, with complete ``policy_kwargs``
    """
    params = dict(sampled_params)
    period_fraction, adam_eps = params.pop("period_fraction"), params.pop("adam_eps")
    idle = {"td_lambda": None} if params.pop("returns") == "n-step" else {"n_steps": 1}
    hyperparams = convert_rdqn_params({**params, **idle})
    hyperparams["policy_kwargs"]["optimizer_kwargs"] = {"eps": adam_eps, "fused": True}
    hyperparams["sequence_period"] = round(hyperparams["trace_length"] * period_fraction)
    return hyperparams
