"""The policies: an online and a target network, and the average that acts."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sb3_attn.common.action_masks import check_masks
from sb3_attn.common.core_state import CoreState, map_state
from sb3_attn.common.observations import batch_size
from sb3_attn.common.optimizer import default_optimizer_kwargs
from sb3_attn.extractors.frozen import FEATURES_KEY
from sb3_attn.extractors.impala import ImpalaCNN
from sb3_attn.memory import LSTMCore, MemoryCore
from sb3_attn.memory.registry import get_core_class
from sb3_attn.recurrent_dqn.components import ActionSpace
from sb3_attn.recurrent_dqn.heads import Head
from sb3_attn.recurrent_dqn.networks import RecurrentQNetwork


class RecurrentDQNPolicy(DQNPolicy):
    """
    Policy with a recurrent Q-network and its target network, for vectors.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: sizes of the hidden layers of the head, after the memory; ``None`` means one layer of 256
    :param activation_fn: Activation function
    :param features_extractor_class: Features extractor to use; ``None`` means the policy's own: FlattenExtractor,
        NatureCNN or CombinedExtractor
    :param features_extractor_kwargs: Keyword arguments to pass to the features extractor.
    :param normalize_images: Whether to normalize images or not, dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer;
        ``None`` means ``dict(fused=True)`` for Adam, which changes only its speed
    :param core: the memory: a key of ``sb3_attn.memory.CORES``, or a ``MemoryCore`` subclass
    :param core_kwargs: further arguments of the core, such as ``dict(hidden_size=256)``
    :param encoder_arch: sizes of the layers between features and memory; ``None`` means one layer of 64, or none after
        NatureCNN and ImpalaCNN, which end with a layer of their own
    :param head: ``"expected"`` (each action's Q-value), ``"quantile"`` (quantiles of its return), or a ``Head`` subclass
    :param head_kwargs: further arguments of the head, such as ``dict(n_values=32)``
    :param dueling: learn the state's value and the actions' advantages rather than the Q-values themselves
    :param skip_connection: whether the head gets the memory's inputs in addition to its outputs
    :param memory_keys: keys of a Dict of observations that the memory gets, while the head gets the features of all; ``None``
        means that the memory gets the features of all
    :param burn_in_gradient: whether gradients pass through the burn-in
    :param bf16_features: whether the features of sequences, which means in training, are computed in bfloat16, on processors
        that have it: for images. The memory has a switch of its own, ``core_kwargs=dict(bf16=True)``
    :param max_combinations: ``MultiDiscrete`` actions with at most this many combinations have a value for each of them; with
        more, an action has the mean of the head's outputs for its components
    :param ema_decay: the policy acts with an exponential moving average of the online network's parameters, of which an update
        keeps this fraction; 0 means without average. Exploration, targets and gradients are those of the online network
    :param lstm_hidden_size: sb3-contrib's name for ``core_kwargs=dict(hidden_size=...)`` of an LSTM
    """

    q_net: RecurrentQNetwork
    q_net_target: RecurrentQNetwork
    default_features_extractor: type[BaseFeaturesExtractor] = FlattenExtractor
    #: Arguments that the policy sets itself
    own_arguments: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: ActionSpace,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        core: str | type[MemoryCore] = "lstm",
        core_kwargs: dict[str, Any] | None = None,
        encoder_arch: list[int] | None = None,
        head: str | type[Head] = "expected",
        head_kwargs: dict[str, Any] | None = None,
        dueling: bool = True,
        skip_connection: bool = True,
        memory_keys: Sequence[str] | None = None,
        burn_in_gradient: bool = False,
        bf16_features: bool = False,
        max_combinations: int = 16,
        ema_decay: float = 0.995,
        lstm_hidden_size: int | None = None,
    ) -> None:
        features_extractor_class = features_extractor_class or self.default_features_extractor
        self._check_observation_space(observation_space, features_extractor_class)
        if optimizer_kwargs is None:
            optimizer_kwargs = default_optimizer_kwargs(optimizer_class)
        for name, sizes in (("net_arch", net_arch), ("encoder_arch", encoder_arch)):
            if sizes is not None and not isinstance(sizes, list | tuple):
                raise ValueError(f"{name}={sizes} must be a list, as in {name}=[64]; there is one network.")
        if lstm_hidden_size is not None:
            core_kwargs = _with_lstm_hidden_size(core, core_kwargs, lstm_hidden_size)
        # Not DQNPolicy's own constructor: it would build the networks without the memory
        super(DQNPolicy, self).__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            normalize_images=normalize_images,
        )
        if encoder_arch is None:  # both end with a layer of 256 or more, which is encoder enough
            encoder_arch = [] if features_extractor_class in (NatureCNN, ImpalaCNN) else [64]
        self.net_arch = [256] if net_arch is None else net_arch
        self.activation_fn = activation_fn
        # Arguments that DQN's networks do not have, beside those that `DQNPolicy._build` passes to `make_q_net` by net_args
        self._memory_args = dict(
            core=core,
            core_kwargs=core_kwargs,
            encoder_arch=encoder_arch,
            head=head,
            head_kwargs=head_kwargs,
            dueling=dueling,
            skip_connection=skip_connection,
            memory_keys=memory_keys,
            burn_in_gradient=burn_in_gradient,
            bf16_features=bf16_features,
            max_combinations=max_combinations,
        )
        self.net_args = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "normalize_images": normalize_images,
            **self._memory_args,
        }
        if not 0 <= ema_decay < 1:
            raise ValueError(
                f"ema_decay={ema_decay} must lie in [0, 1); 0 means that the policy acts with the online network."
            )
        self.ema_decay = ema_decay
        self._n_stateless_calls = 0  # calls of `predict` in a row that had no state
        #: What `predict` returned last with masks: sb3-contrib's `evaluate_policy`, which gives masks, does not hand it on
        self._kept_state: tuple[np.ndarray, ...] | None = None
        self._build(lr_schedule)

    def _check_observation_space(self, observation_space: spaces.Space, extractor: type[BaseFeaturesExtractor]) -> None:
        is_dict = isinstance(observation_space, spaces.Dict)
        # Only these extractors are known; one of the user's own may take any space
        if extractor in (FlattenExtractor, NatureCNN, ImpalaCNN, CombinedExtractor) and is_dict != (
            extractor is CombinedExtractor
        ):
            remedy = "'MultiInputPolicy'" if is_dict else "'MlpPolicy' for vectors or 'CnnPolicy' for images"
            raise ValueError(f"policy {type(self).__name__} does not fit observation_space={observation_space}; use {remedy}.")

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.q_net_ema: AveragedModel | None = None
        if self.ema_decay > 0:
            self.q_net_ema = AveragedModel(self.q_net, multi_avg_fn=partial(_update_ema, decay=self.ema_decay))
            self.q_net_ema.eval()

    def make_q_net(self) -> RecurrentQNetwork:
        # Make sure we always have separate networks for features extractors etc
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return RecurrentQNetwork(**net_args)

    @property
    def device(self) -> th.device:
        return self.q_net.device if "q_net" in self._modules else super().device

    @property
    def acting_net(self) -> RecurrentQNetwork:
        """The network that ``predict`` acts with: the average, once there is one."""
        if self.q_net_ema is None or self.q_net_ema.n_averaged.item() == 0:
            return self.q_net
        return cast(RecurrentQNetwork, self.q_net_ema.module)

    def update_average(self) -> None:
        """Let the average follow the online network, after an update of that."""
        if self.q_net_ema is not None:
            self.q_net_ema.update_parameters(self.q_net)

    def forward(  # type: ignore[override]
        self, obs: PyTorchObs, state: CoreState, action_masks: th.Tensor | None = None
    ) -> tuple[th.Tensor, CoreState]:
        """
        One greedy step.

        :param obs: ``[B, ...]``
        :param state: the memory before it
        :param action_masks: True on valid actions, or choices of all components, bool ``[B, M]``; ``None`` means that all are
        :return: actions ``[B, ...]`` and the memory after it
        """
        q_values, state = self.acting_net(obs, state)
        components = self.q_net.components
        return components.best(components.mask(q_values, action_masks))[1], state

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Greedy actions, given observations and the memory of the steps before them.

        :param observation: the input observation
        :param state: the state that the last call returned; ``None`` at the start of all episodes. With ``action_masks`` and
            after the start, ``None`` means the state that the last call returned: sb3-contrib's evaluation does not keep it
        :param episode_start: whether the observation is an episode's first, so that the memory is reset, bool ``[B]``
        :param deterministic: makes no difference here; the algorithm's ``predict`` explores
        :param action_masks: True on valid actions, or choices of all components, ``[B, M]``; ``None`` means that all are
        :return: the actions, and the memory after the step as numpy arrays, batch axis first
        :raises ValueError: if the observation has a NaN or an infinity, or the arguments do not fit each other
        """
        if self.training:  # switching visits all modules, which takes a tenth of a step's time
            self.set_training_mode(False)
        if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
            raise ValueError(
                "predict() was given a tuple: you are probably mixing Gym API, `obs, info = env.reset()`, with SB3's "
                "VecEnv API, `obs = vec_env.reset()`; pass the observation alone."
            )
        if isinstance(self.observation_space, spaces.Dict) and not isinstance(observation, dict):
            raise ValueError(
                f"predict() was given an array, but observations are a Dict with the keys {sorted(self.observation_space)}; "
                "wrap the environment as for training."
            )
        arrays = observation.values() if isinstance(observation, dict) else [observation]
        if any(np.asarray(array).dtype.kind == "f" and not np.isfinite(array).all() for array in arrays):
            raise ValueError(f"predict() was given observation={observation}, which is not finite; fix the environment.")
        obs_tensor, vectorized_env = self.obs_to_tensor(observation)
        n_envs = batch_size(obs_tensor)
        if action_masks is not None and state is None and episode_start is not None and not np.all(episode_start):
            state = self._kept_state if self._kept_state and len(self._kept_state[0]) == n_envs else None
        with th.no_grad():
            core_state = self.acting_net.state_or_initial(state, n_envs)
            if core_state:  # that of a core that remembers nothing is empty
                self._warn_if_forgetful(state, episode_start)
            # evaluate_policy passes both: at an episode's start the state is still that of the last episode
            if state is not None and episode_start is not None:
                rows = np.asarray(episode_start, dtype=bool).reshape(-1)
                if len(rows) != n_envs:
                    raise ValueError(f"episode_start={episode_start} does not fit {n_envs} observations; give one each.")
                if rows.any():
                    core_state = self.acting_net.reset_rows(core_state, th.as_tensor(rows, device=self.device))
            masks = None
            if action_masks is not None:
                nvec = self.q_net.components.nvec
                masks = th.as_tensor(check_masks(action_masks, n_envs, nvec), device=self.device)
            actions, core_state = self(obs_tensor, core_state, masks)
        action = actions.cpu().numpy().astype(self.action_space.dtype, copy=False)
        new_state = map_state(_to_numpy, core_state)
        if action_masks is not None:
            self._kept_state = new_state
        return action if vectorized_env else action.squeeze(axis=0), new_state

    def _warn_if_forgetful(self, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None) -> None:
        """Warn once if calls follow each other without a state, which is never intended in a loop over an episode's steps."""
        # No state, although not all rows start an episode: right at the first step only, so the second such call warns
        if state is None and (episode_start is None or not np.all(episode_start)):
            self._n_stateless_calls += 1
            if self._n_stateless_calls == 2:
                warnings.warn(
                    "predict() was called again without a state, so the memory is reset at every step; pass on the state "
                    "that it returns: `action, state = model.predict(obs, state=state, episode_start=episode_start)`.",
                    stacklevel=4,
                )
        elif self._n_stateless_calls < 2:
            self._n_stateless_calls = 0

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._memory_args, "ema_decay": self.ema_decay}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.q_net_ema is not None and f"{prefix}q_net_ema.n_averaged" not in state_dict:
            # The parameters have no average (ema_decay=0, or an earlier version): start a new one from their online network
            for name, tensor in self.q_net_ema.module.state_dict().items():
                state_dict[f"{prefix}q_net_ema.module.{name}"] = state_dict.get(f"{prefix}q_net.{name}", tensor)
            state_dict[f"{prefix}q_net_ema.n_averaged"] = th.zeros_like(self.q_net_ema.n_averaged)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _to_numpy(tensor: th.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _update_ema(*args: Any, decay: float) -> None:
    """torch's own average, which as a function inside another one could not be pickled."""
    get_ema_multi_avg_fn(decay)(*args)


def _with_lstm_hidden_size(
    core: str | type[MemoryCore], core_kwargs: dict[str, Any] | None, lstm_hidden_size: int
) -> dict[str, Any]:
    """The arguments of an LSTM core, with its size by the name that sb3-contrib's recurrent policies give it."""
    if not issubclass(get_core_class(core), LSTMCore):
        raise ValueError(
            f"lstm_hidden_size={lstm_hidden_size} is the size of core='lstm', but core={core!r}; use "
            f"core_kwargs=dict(hidden_size={lstm_hidden_size}) if this core has a hidden_size, or leave it out."
        )
    if core_kwargs and "hidden_size" in core_kwargs:
        raise ValueError(f"lstm_hidden_size={lstm_hidden_size} and core_kwargs={core_kwargs} both set the size; give one.")
    return {**(core_kwargs or {}), "hidden_size": lstm_hidden_size}


MlpPolicy = RecurrentDQNPolicy


class CnnPolicy(RecurrentDQNPolicy):
    """Policy with a recurrent Q-network and its target network, for images. Parameters as for ``RecurrentDQNPolicy``."""

    default_features_extractor = NatureCNN


class ImpalaPolicy(RecurrentDQNPolicy):
    """The same with ``ImpalaCNN`` instead of SB3's ``NatureCNN``. Parameters as for ``RecurrentDQNPolicy``."""

    default_features_extractor = ImpalaCNN


class MultiInputPolicy(RecurrentDQNPolicy):
    """Policy with a recurrent Q-network and its target network, for Dicts. Parameters as for ``RecurrentDQNPolicy``."""

    default_features_extractor = CombinedExtractor


class FrozenFeaturesPolicy(RecurrentDQNPolicy):
    """
    Policy whose memory gets the frozen features of images, and whose head also sees the present image by learned ones.

    For environments in ``VecFrozenFeatures``. The idea is that of RISE (2025), https://arxiv.org/abs/2512.20513: what the
    memory reads is in the replay, so only trained steps need convolutions. Gradients pass through the burn-in, which therefore
    trains the memory too, at the price of the memory alone: with ``trace_length=8`` and ``burn_in_length=72`` the memory
    learns from 80 steps, and 9 images of each window are encoded.

    Parameters as for ``RecurrentDQNPolicy``.
    """

    default_features_extractor = CombinedExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: ActionSpace,
        lr_schedule: Schedule,
        memory_keys: Sequence[str] | None = (FEATURES_KEY,),
        burn_in_gradient: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs |= dict(memory_keys=memory_keys, burn_in_gradient=burn_in_gradient)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _check_observation_space(self, observation_space: spaces.Space, extractor: type[BaseFeaturesExtractor]) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"observation_space={observation_space} has no {FEATURES_KEY!r}; wrap the environments in VecFrozenFeatures, "
                "those of the evaluation too."
            )
