"""The checks of RecurrentDQN's arguments, each with a sentence that says what to change."""

import functools
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import partial
from inspect import signature
from typing import Any, ClassVar, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn import DQN

from sb3_attn.common.checks import ValueCheck, check_dict, check_flag, check_number, check_whole, optional
from sb3_attn.recurrent_dqn.heads import QuantileHead
from sb3_attn.recurrent_dqn.policies import RecurrentDQNPolicy
from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from sb3_attn.replay.sequence_buffer import check_lengths

#: Arguments of sb3-contrib's recurrent policies that have no counterpart here, and what to do instead
CONTRIB_ARGUMENTS = {
    "n_lstm_layers": "use core_kwargs=dict(num_layers=...)",
    "shared_lstm": "there is one network with one memory; leave it out",
    "enable_critic_lstm": "there is one network with one memory; leave it out",
    "lstm_kwargs": "use core_kwargs, the arguments of LSTMCore",
}

#: Likewise those of the memory
CORE_ARGUMENTS = {name: f"use core_kwargs=dict({name}=...)" for name in ("hidden_size", "num_layers")}

ON_POLICY_ARGUMENTS = (
    *("gae_lambda", "n_epochs", "ent_coef", "vf_coef", "clip_range", "clip_range_vf", "target_kl", "normalize_advantage"),
    *("use_sde", "sde_sample_freq", "rollout_buffer_class", "rollout_buffer_kwargs"),
)

#: Arguments of other algorithms, and what to do instead
FOREIGN_ARGUMENTS = {
    **dict.fromkeys(ON_POLICY_ARGUMENTS, "it belongs to on-policy algorithms, such as RecurrentPPO; leave it out"),
    **dict.fromkeys(("train_freq", "gradient_steps"), "use samples_per_insert, the ratio of R2D2"),
}


Constructor = TypeVar("Constructor", bound=Callable[..., None])


def refuse_foreign_arguments(kwargs: Mapping[str, Any], names: Collection[str]) -> None:
    """
    Say what replaces arguments of other algorithms.

    :param kwargs: the arguments given
    :param names: names that are not accepted, keys of ``FOREIGN_ARGUMENTS``
    :raises TypeError: if one of them is given
    """
    for name in names:
        if name in kwargs:
            raise TypeError(f"{name}={kwargs[name]!r} is not supported; {FOREIGN_ARGUMENTS[name]}.")


def refuse_misplaced_arguments(constructor: Constructor) -> Constructor:
    """
    Let the constructor of an algorithm say where arguments of the policy belong, and what replaces those of other algorithms.

    :param constructor: the constructor
    :return: the same, which raises a ``TypeError`` if it is given such arguments
    """
    foreign = FOREIGN_ARGUMENTS.keys() - signature(constructor).parameters.keys()
    of_policy = signature(RecurrentDQNPolicy).parameters.keys() - {"observation_space", "action_space", "lr_schedule"}

    @functools.wraps(constructor)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        if misplaced := [name for name in kwargs if name in of_policy]:
            given = ", ".join(f"{name}={kwargs[name]!r}" for name in misplaced)
            remedy = ", ".join(f"{name}=..." for name in misplaced)
            raise TypeError(f"{given}: for the policy, not for the algorithm; add policy_kwargs=dict({remedy}).")
        refuse_foreign_arguments(kwargs, foreign)
        constructor(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def _shapes(owner: Any) -> Any:
    """Shapes of its observations, by key if they are a Dict."""
    space = owner.observation_space
    return {key: part.shape for key, part in space.items()} if isinstance(space, spaces.Dict) else space.shape


def fitting_policy(space: spaces.Space) -> str:
    """
    Choose which of SB3's three policies fits the observations.

    :param space: the observation space
    :return: the policy's name
    """
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    # NatureCNN needs at least 36 x 36 pixels; smaller "images" are mostly the cells of a grid, such as MiniGrid's
    fits_cnn = isinstance(space, spaces.Box) and is_image_space(space) and sorted(space.shape)[1] >= 36
    return "CnnPolicy" if fits_cnn else "MlpPolicy"


def _check_observation_space(space: spaces.Space) -> None:
    """Check that SB3 can turn observations into tensors; it would say so without a remedy, or only once it acts."""
    for part in space.values() if isinstance(space, spaces.Dict) else [space]:
        if isinstance(part, spaces.Tuple | spaces.Dict | spaces.Text) and part.is_np_flattenable:
            raise ValueError(
                f"observation_space={space} has a {type(part).__name__}, which has to become a Box; wrap each environment in "
                "sb3_attn.envs.FlattenSpaces."
            )
        if not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise ValueError(
                f"observation_space={space} has a {type(part).__name__}, which is not supported; make it a Box in an "
                "ObservationWrapper around each environment."
            )
        if isinstance(part, spaces.Discrete | spaces.MultiDiscrete) and np.any(part.start != 0):
            raise ValueError(
                f"observation_space={space} must start at 0; shift it with an ObservationWrapper around each environment."
            )


def _check_learning_rate(name: str, value: Any) -> None:
    if not callable(value):
        check_number(name, value, low=0, otherwise=", or be a function of the progress that remains")


def _check_train_freq(name: str, value: Any) -> None:
    check_whole(name, value[0] if isinstance(value, tuple | list) else value, at_least=1)


def _check_train_freq_unit(train_freq: Any, n_envs: int) -> None:
    """Check that only a single environment has ``train_freq`` in episodes; SB3 would say so only in ``learn``."""
    counts_episodes = isinstance(train_freq, tuple) and train_freq[1] in ("episode", TrainFrequencyUnit.EPISODE)
    if counts_episodes and n_envs > 1:
        raise ValueError(
            f"train_freq=({train_freq[0]}, 'episode') needs a single environment, but there are {n_envs}; give a number of "
            "steps."
        )


class MultiDiscreteActions(OffPolicyAlgorithm):
    """
    Lets DQN take ``MultiDiscrete`` actions. Name it after DQN among the bases: DQN's constructor then calls this one, which
    overrides the action spaces that DQN allows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"supported_action_spaces": (spaces.Discrete, spaces.MultiDiscrete)}))


class ArgumentChecks(DQN):
    """Mixin of an algorithm with the arguments of ``RecurrentDQN``."""

    #: How to check each argument on its own: all in the constructor, and in ``load`` those that are given
    value_checks: ClassVar[Mapping[str, ValueCheck]] = {
        **dict.fromkeys(("policy_kwargs", "replay_buffer_kwargs"), check_dict),
        **dict.fromkeys(("double_q", "value_rescaling", "reward_scaling"), check_flag),
        **dict.fromkeys(("stored_state", "prioritized_replay", "per_env_epsilons"), check_flag),
        **dict.fromkeys(("clipped_double_q", "use_masking"), optional(check_flag)),
        "learning_rate": _check_learning_rate,
        "train_freq": _check_train_freq,
        "gradient_steps": partial(check_whole, at_least=-1),
        "learning_starts": partial(check_number, low=0),
        "buffer_size": partial(check_whole, at_least=0),
        **dict.fromkeys(("n_steps", "target_update_interval", "stats_window_size"), partial(check_whole, at_least=1)),
        "batch_size": optional(partial(check_whole, at_least=1)),
        "burn_in_length": check_whole,
        **dict.fromkeys(("trace_length", "sequence_period"), optional(check_whole)),
        **dict.fromkeys(("gamma", "tau", "exploration_fraction"), partial(check_number, low=0, high=1)),
        **dict.fromkeys(("exploration_initial_eps", "exploration_final_eps"), partial(check_number, low=0, high=1)),
        "td_lambda": optional(partial(check_number, low=0, high=1, otherwise=", or be None for n-step returns")),
        "trace_tolerance": optional(partial(check_number, low=0, otherwise=", or be None for traces that are never cut")),
        "max_grad_norm": partial(check_number, low=0, positive=True, otherwise="; float('inf') means no limit"),
        "munchausen_alpha": partial(check_number, low=0, high=1, otherwise="; 0 means DQN"),
        "munchausen_temperature": partial(check_number, low=0, positive=True, otherwise="; 0.03 is usual"),
    }

    double_q: bool
    clipped_double_q: bool | None
    n_steps: int
    td_lambda: float | None
    trace_tolerance: float | None
    value_rescaling: bool
    trace_length: int | None
    burn_in_length: int
    sequence_period: int | None
    prioritized_replay: bool
    reward_scaling: bool
    munchausen_alpha: float
    munchausen_temperature: float

    @property
    @abstractmethod
    def n_replay_envs(self) -> int:
        """Number of environments that fill the replay buffer."""

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        _check_observation_space(env.observation_space)
        wrapped = DQN._wrap_env(env, verbose, monitor_wrapper)
        if not isinstance(wrapped.action_space, spaces.Discrete | spaces.MultiDiscrete):  # SB3 says so without a remedy
            raise ValueError(
                f"action_space={wrapped.action_space} is neither Discrete nor MultiDiscrete; continuous actions need another "
                "algorithm, and MultiBinary ones an ActionWrapper that makes them MultiDiscrete."
            )
        return wrapped

    def _check_arguments(self) -> None:
        """
        Check the arguments against each other.

        :raises ValueError: if one does not fit; the sentence says what to change
        """
        # Classes of policy and replay buffer
        buffer_class = self.replay_buffer_class
        assert buffer_class is not None, "the constructor has chosen one"
        if not issubclass(self.policy_class, RecurrentDQNPolicy):
            raise ValueError(
                f"policy={self.policy_class.__name__} is not a RecurrentDQNPolicy, which {type(self).__name__} needs; use "
                f"one of {sorted(self.policy_aliases)}, with a memory by policy_kwargs=dict(core=...) and attention by "
                "policy_kwargs=dict(features_extractor_class=...). If it comes from a zip, another algorithm saved that zip: "
                "load it with the class that saved it."
            )
        if not (isinstance(buffer_class, type) and issubclass(buffer_class, SequenceReplayBuffer)):
            raise ValueError(
                f"replay_buffer_class={getattr(buffer_class, '__name__', repr(buffer_class))} does not store sequences; leave "
                "it out, or use SequenceReplayBuffer, PrioritizedSequenceReplayBuffer or a subclass (hindsight replay is not "
                "supported)."
            )
        if self.prioritized_replay != issubclass(buffer_class, PrioritizedSequenceReplayBuffer):
            raise ValueError(
                f"prioritized_replay={self.prioritized_replay}, but replay_buffer_class={buffer_class.__name__} is "
                f"{'uniform' if self.prioritized_replay else 'prioritized'}; make both say the same (a zip keeps its class)."
            )
        # Arguments in the wrong place, and lengths
        of_algorithm = {"trace_length", "burn_in_length", "sequence_period", "stored_state", "use_masking"}
        if taken := of_algorithm & self.replay_buffer_kwargs.keys():
            raise ValueError(
                f"replay_buffer_kwargs={self.replay_buffer_kwargs}: give {sorted(taken)} to the algorithm instead."
            )
        for name, remedy in (CONTRIB_ARGUMENTS | CORE_ARGUMENTS).items():
            if name in self.policy_kwargs and name not in signature(self.policy_class).parameters:
                raise ValueError(f"policy_kwargs={self.policy_kwargs}: {name} is not supported; {remedy}.")
        if self._vec_normalize_env is not None and _shapes(self._vec_normalize_env) != _shapes(self):
            raise ValueError(
                f"VecNormalize has observations of shape {_shapes(self._vec_normalize_env)}, which replay would store, but "
                f"they become {_shapes(self)} in a wrapper around it; wrap in VecNormalize last, as in "
                "VecNormalize(VecTransposeImage(env))."
            )
        _check_train_freq_unit(self.train_freq, self.n_envs)
        check_lengths(self.trace_length, self.burn_in_length, self.sequence_period)
        # Actions: Q-values are indexed from 0
        assert isinstance(self.action_space, spaces.Discrete | spaces.MultiDiscrete), "_wrap_env() has refused all others"
        if np.any(self.action_space.start != 0):
            raise ValueError(
                f"action_space={self.action_space} must start at 0; shift it with an ActionWrapper around the environment."
            )
        if isinstance(self.action_space, spaces.MultiDiscrete) and self.action_space.nvec.ndim > 1:
            raise ValueError(
                f"action_space={self.action_space} must have one axis; flatten it with an ActionWrapper around the "
                "environment, or with sb3_attn.envs.FlattenSpaces if there are few combinations."
            )
        self._check_returns()

    @classmethod
    def check_values(cls, values: Mapping[str, Any]) -> None:
        """
        Check arguments, each on its own.

        :param values: by name
        :raises ValueError: if one is of another type or out of range
        """
        for name in values.keys() & cls.value_checks.keys():
            cls.value_checks[name](name, values[name])

    def _check_returns(self) -> None:
        """
        Check that the arguments choose a single kind of return, and a single unit in which values are learned.

        :raises ValueError: if arguments contradict each other
        """
        if self.td_lambda is not None and self.n_steps > 1:
            raise ValueError(
                f"td_lambda={self.td_lambda} and n_steps={self.n_steps} are two kinds of return; pass td_lambda=None "
                "for n-step returns, or n_steps=1."
            )
        if self.clipped_double_q and not self.double_q:
            raise ValueError("clipped_double_q=True needs double_q=True; pass clipped_double_q=False, too.")
        if self.reward_scaling and self.value_rescaling:
            raise ValueError("reward_scaling=True and value_rescaling=True are two ways to one end; leave one of them out.")
        if self.munchausen_alpha > 0 and self.value_rescaling:
            raise ValueError(
                f"munchausen_alpha={self.munchausen_alpha} adds log-probabilities to rewards, but value_rescaling=True "
                "changes the unit of values; use value_rescaling=False."
            )

    def _check_new_model(self) -> None:
        """
        Check each argument on its own, that none is given to the policy that it sets itself, that no quantiles are rescaled,
        and that the replay buffer has room for a window of each environment. Warn if images get no convolutions.

        Called by the constructor only: models of earlier versions may hold such arguments, and ``buffer_size=1`` is the usual
        way to load a model that will not learn.

        :raises ValueError: if an argument is wrong; the sentence says what to change
        """
        self.check_values(vars(self))
        own = getattr(self.policy_class, "own_arguments", {})
        if ignored := {name: value for name, value in self.policy_kwargs.items() if name in own and value != own[name]}:
            raise ValueError(
                f"policy_kwargs has {ignored}, but {self.policy_class.__name__} sets {sorted(ignored)} itself; leave that "
                "out, or use another policy."
            )
        flattens = self.policy_class is RecurrentDQNPolicy and not self.policy_kwargs.get("features_extractor_class")
        if flattens and fitting_policy(self.observation_space) == "CnnPolicy":
            warnings.warn(
                f"policy=MlpPolicy flattens the images of observation_space={self.observation_space}; 'CnnPolicy' and "
                "'ImpalaPolicy' have convolutions.",
                stacklevel=5,  # the caller of RecurrentDQN's constructor, which has two decorators
            )
        head = self.policy_kwargs.get("head")
        is_quantile = head == "quantile" or (isinstance(head, type) and issubclass(head, QuantileHead))
        if self.value_rescaling and is_quantile:
            raise ValueError(
                f"value_rescaling=True bends the quantiles of head={head!r}, so that their mean would no longer be the "
                "expected return; use value_rescaling=False."
            )
        n_steps, sequence_length = self.buffer_size // self.n_replay_envs, self.burn_in_length + (self.trace_length or 1)
        if n_steps < sequence_length:
            raise ValueError(
                f"buffer_size={self.buffer_size} leaves {n_steps} steps for each of {self.n_replay_envs} environments, so "
                f"burn_in_length={self.burn_in_length} and trace_length={self.trace_length} do not fit; raise buffer_size to "
                f"at least {sequence_length * self.n_replay_envs}."
            )
