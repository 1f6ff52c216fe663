"""
Search spaces for ``sb3-attn optimize``.

RL Zoo lets what a sampler returns replace the YAML's entries one by one, and ``policy_kwargs`` is one entry: whatever
the YAML says in there is lost. So each sampler returns the whole of it, and arguments that depend on one another
(``td_lambda`` and ``n_steps``; ``trace_length``, ``burn_in_length`` and ``sequence_period``) always come together.
Every combination is one that the constructor accepts. All parameters are drawn in every trial, also those that another one
makes idle: Optuna's multivariate TPE learns only from what all trials have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

#: Largest number of time steps in one batch: 32 sequences of 128 steps, twice the 2,048 transitions of RL Zoo's DQN.
MAX_STEPS_PER_BATCH = 4096

#: Smallest and largest number of sequences in one batch.
BATCH_SIZES = (16, 128)

#: All have a ``hidden_size``. NTM and DNC take several times as long for each update and are left to those who name them.
CORES = ("lstm", "gru", "key_value", "gtrxl")

LAYERS: dict[str, list[int]] = {"none": [], "small": [64], "medium": [128], "big": [256]}


def sample_rdqn_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Draw the hyperparameters of one trial of ``RecurrentDQN``.

    The size of the replay buffer, the start of learning and the number of environments stay as in the YAML.

    :param trial: The Optuna trial.
    :param n_actions: Not used (RL Zoo's samplers of continuous control need it).
    :param n_envs: Not used: a stored trial is converted back without it.
    :param additional_args: Not used (hindsight replay).
    :return: Arguments for the constructor.
    """
    params = {
        **_sample_shared_params(trial),
        "train_freq": trial.suggest_categorical("train_freq", [1, 2, 4, 8]),
        "gradient_steps": trial.suggest_int("gradient_steps", 1, 4),
        "target_update_interval": trial.suggest_int("target_update_interval", 200, 20000, log=True),
        "exploration_fraction": trial.suggest_float("exploration_fraction", 0.05, 0.5),
        "exploration_final_eps": trial.suggest_float("exploration_final_eps", 0.005, 0.1, log=True),
    }
    return _noted(trial, convert_rdqn_params(params))


def sample_r2d2_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Draw the hyperparameters of one trial of ``R2D2``.

    The size of the replay buffer, the start of learning, and where and how many actors step their environments stay as in
    the YAML.

    :param trial: The Optuna trial.
    :param n_actions: Not used (RL Zoo's samplers of continuous control need it).
    :param n_envs: Not used: a stored trial is converted back without it.
    :param additional_args: Not used (hindsight replay).
    :return: Arguments for the constructor.
    """
    params = {
        **_sample_shared_params(trial),
        "returns": trial.suggest_categorical("returns", ["n-step", "lambda"]),
        "n_steps": trial.suggest_int("n_steps", 1, 10),
        "period_fraction": trial.suggest_categorical("period_fraction", [0.5, 1.0]),
        # Where windows do not overlap, the number of steps trained for each one that comes: the cost of a trial
        "samples_per_insert": trial.suggest_float("samples_per_insert", 2, 128, log=True),
        "target_update_interval": trial.suggest_int("target_update_interval", 20, 2500, log=True),
        # From PyTorch's to the paper's, with which small rewards are hardly learned
        "adam_eps": trial.suggest_float("adam_eps", 1e-8, 1e-3, log=True),
    }
    return _noted(trial, convert_r2d2_params(params))


def _sample_shared_params(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        # Cue tasks with an answer at each step like gammas as low as 0.5, delayed rewards need 0.99 and more.
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.002, 0.5, log=True),
        "td_lambda": trial.suggest_float("td_lambda", 0.0, 0.95),
        "value_rescaling": trial.suggest_categorical("value_rescaling", [False, True]),
        "prioritized_replay": trial.suggest_categorical("prioritized_replay", [False, True]),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 4, 7),
        # A window longer than the episode is the whole episode.
        "trace_length_pow": trial.suggest_int("trace_length_pow", 4, 7),
        "burn_in_fraction": trial.suggest_categorical("burn_in_fraction", [0.0, 0.25, 0.5]),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.5, 40.0, log=True),
        "core": trial.suggest_categorical("core", CORES),
        "hidden_size_pow": trial.suggest_int("hidden_size_pow", 5, 8),
        "encoder_arch": trial.suggest_categorical("encoder_arch", list(LAYERS)),
        "net_arch": trial.suggest_categorical("net_arch", list(LAYERS)),
        "dueling": trial.suggest_categorical("dueling", [False, True]),
    }


def _noted(trial: optuna.Trial, hyperparams: dict[str, Any]) -> dict[str, Any]:
    # What the trial's table would otherwise show only in another form
    for name in ("gamma", "batch_size", "trace_length", "burn_in_length"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_rdqn_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn a trial's parameters into arguments of ``RecurrentDQN``.

    :param sampled_params: ``trial.params``, as :func:`sample_rdqn_params` drew them.
    :return: Arguments for the constructor, ``policy_kwargs`` complete.
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
        **params,
    }


def convert_r2d2_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn a trial's parameters into arguments of ``R2D2``.

    :param sampled_params: ``trial.params``, as :func:`sample_r2d2_params` drew them.
    :return: Arguments for the constructor, ``policy_kwargs`` complete.
    """
    params = dict(sampled_params)
    period_fraction, adam_eps = params.pop("period_fraction"), params.pop("adam_eps")
    idle = {"td_lambda": None} if params.pop("returns") == "n-step" else {"n_steps": 1}
    hyperparams = convert_rdqn_params({**params, **idle})
    hyperparams["policy_kwargs"]["optimizer_kwargs"] = {"eps": adam_eps, "fused": True}
    hyperparams["sequence_period"] = round(hyperparams["trace_length"] * period_fraction)
    return hyperparams
