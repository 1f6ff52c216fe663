"""The Q-network with a memory: features, encoder, memory core, head."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs, TensorDict
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

from sb3_attn.common.bfloat16 import bfloat16_if
from sb3_attn.common.core_state import CoreState, state_from_arrays, where_rows
from sb3_attn.common.observations import batch_size, map_obs
from sb3_attn.memory import MemoryCore, make_core
from sb3_attn.recurrent_dqn.components import ActionSpace, action_components
from sb3_attn.recurrent_dqn.heads import Head, expected_values, make_head
from sb3_attn.replay import SequenceReplayBufferSamples

#: Size of the observations, in numbers, that a CPU encodes together: 64 grey images of 84 by 84 pixels
MAX_NUMBERS_ENCODED_AT_ONCE = 64 * 84 * 84


class RecurrentQNetwork(QNetwork):
    """
    Features -> encoder -> memory core -> head.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: maps observations to feature vectors
    :param features_dim: size of these vectors
    :param core: name or class of the memory core
    :param core_kwargs: further arguments of the core
    :param encoder_arch: sizes of the layers between the features and the core
    :param net_arch: sizes of the hidden layers of the head
    :param activation_fn: Activation function
    :param head: name or class of the head, see ``sb3_attn.recurrent_dqn.heads``
    :param head_kwargs: further arguments of the head
    :param dueling: learn the state's value and the actions' advantages rather than the Q-values themselves
    :param skip_connection: whether the head gets the core's inputs in addition to its outputs
    :param memory_keys: keys of a Dict of observations that the core gets, while the head gets the features of all; ``None``
        means that the core gets the features of all, and the head no others
    :param burn_in_gradient: whether gradients pass through the burn-in
    :param bf16_features: whether the features of sequences, which means in training, are computed in bfloat16
    :param max_combinations: see ``RecurrentDQNPolicy``
    :param normalize_images: Whether to normalize images or not, dividing by 255.0
    """

    q_net: Head

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: ActionSpace,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        core: str | type[MemoryCore] = "lstm",
        core_kwargs: dict[str, Any] | None = None,
        encoder_arch: list[int] | None = None,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        head: str | type[Head] = "expected",
        head_kwargs: dict[str, Any] | None = None,
        dueling: bool = True,
        skip_connection: bool = True,
        memory_keys: Sequence[str] | None = None,
        burn_in_gradient: bool = False,
        bf16_features: bool = False,
        max_combinations: int = 16,
        normalize_images: bool = True,
    ) -> None:
        encoder_arch = encoder_arch or []
        memory_extractor = None if memory_keys is None else CombinedExtractor(_select_keys(observation_space, memory_keys))
        n_inputs = features_dim if memory_extractor is None else memory_extractor.features_dim
        encoder = nn.Sequential(*create_mlp(n_inputs, -1, encoder_arch, activation_fn))
        core_module = make_core(core, encoder_arch[-1] if encoder_arch else n_inputs, core_kwargs)
        latent_dim = core_module.output_size + (core_module.input_size if skip_connection else 0)
        if memory_extractor is not None:
            latent_dim += features_dim
        components = action_components(action_space, max_combinations)
        n_actions = components.sizes[0] if len(components.sizes) == 1 else components.sizes
        head_module = make_head(head, latent_dim, n_actions, net_arch or [], activation_fn, dueling, head_kwargs)
        super().__init__(
            observation_space,
            spaces.Discrete(sum(components.sizes)),  # all that SB3 asks of it is a number
            features_extractor,
            latent_dim,  # the size of SB3's features, on top of which it builds `q_net`; our head takes its place
            net_arch,
            activation_fn,
            normalize_images,
        )
        self.action_space = action_space  # type: ignore[assignment]  # which SB3 knows as Discrete only
        self.components = components
        self.encoder = encoder
        self.core = core_module
        self.q_net = head_module
        self.skip_connection = skip_connection
        self.memory_keys = memory_keys
        self.memory_extractor = memory_extractor
        self.burn_in_gradient = burn_in_gradient
        self.bf16_features = bf16_features
        #: Whether the core or the features extractor samples in training mode, so that acting has different Q-values
        self.samples_in_training = any(getattr(module, "samples_in_training", False) for module in self.modules())
        # SB3 saves these, and rebuilds the network from them
        self._constructor_parameters = dict(
            features_dim=features_dim,
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

    @property
    def head(self) -> Head:
        """The layers after the memory, which SB3 calls ``q_net``."""
        return self.q_net

    @property
    def device(self) -> th.device:
        # SB3 asks for the first parameter of all modules, which takes some 5 % of the time of `predict`
        return self.q_net.running_scale.device

    def initial_state(self, batch_size: int) -> CoreState:
        """
        The memory before an episode's first step.

        :param batch_size: number of rows B
        :return: a core state ``[B, ...]``
        """
        return self.core.initial_state(batch_size)

    def state_or_initial(self, state: Sequence[np.ndarray] | None, batch_size: int) -> CoreState:
        """
        The memory that ``predict`` returned, as tensors of the core; the initial one if there is none.

        :param state: arrays ``[B, ...]``, or ``None`` at the start of all episodes
        :param batch_size: number of rows B
        :return: a core state ``[B, ...]``
        :raises ValueError: if number or shapes of the arrays do not fit
        """
        initial = self.initial_state(batch_size)
        return initial if state is None else state_from_arrays(state, like=initial)

    def reset_rows(self, state: CoreState, rows: th.Tensor) -> CoreState:
        """
        Reset some rows to the initial state.

        :param state: ``[B, ...]``
        :param rows: True on the rows to reset, bool ``[B]``
        :return: the new state
        """
        return where_rows(rows, self.initial_state(len(rows)), state)

    def forward(  # type: ignore[override]
        self, obs: PyTorchObs, state: CoreState | None = None
    ) -> tuple[th.Tensor, CoreState]:
        """
        Compute the Q-values of one step.

        :param obs: ``[B, ...]``
        :param state: the memory before the step
        :return: Q-values as ``components`` lays them out, ``[B, A]``, and the memory after the step
        :raises ValueError: if there is no state, as when SB3's own DQN calls the network
        """
        if state is None:
            raise ValueError(f"{type(self).__name__} needs its memory's state, which DQN does not have; use RecurrentDQN.")
        inputs = self.encode(obs)
        outputs, state = self.core(inputs, state)
        return expected_values(self._values(obs, inputs, outputs)), state

    def unroll(self, obs: PyTorchObs, state: CoreState) -> tuple[th.Tensor, CoreState]:
        """
        Compute the Q-values of T consecutive steps, those of one episode in each of the B columns.

        :param obs: ``[T, B, ...]``
        :param state: the memory before the first step
        :return: Q-values as ``components`` lays them out, ``[T, B, A]``, and the memory after the last step
        """
        values, state = self.unroll_values(obs, state)
        return expected_values(values), state

    def unroll_values(self, obs: PyTorchObs, state: CoreState) -> tuple[th.Tensor, CoreState]:
        """
        Compute all N values that the head gives each action, whose mean is the Q-value, at T steps as for ``unroll``.

        :param obs: ``[T, B, ...]``
        :param state: the memory before the first step
        :return: values as ``components`` lays them out, ``[T, B, N, A]``, and the memory after the last step
        """
        inputs = self.encode_sequence(obs)
        outputs, state = self.core.unroll(inputs, state)
        return self._values(obs, inputs, outputs), state

    def advance(self, obs: PyTorchObs, state: CoreState) -> CoreState:
        """
        Advance the memory by T steps, without computing Q-values.

        :param obs: ``[T, B, ...]``; of a Dict the ``memory_keys`` are enough
        :param state: the memory before the first step
        :return: the memory after the last step
        """
        return self.core.unroll(self.encode_sequence(obs), state)[1]

    def burn_in(self, batch: SequenceReplayBufferSamples) -> CoreState:
        """
        The memory before a batch's trained steps: from the stored state through the burn-in, usually without gradient.

        Kapturowski et al. (2019), section 3. A window with a shorter past has a shorter burn-in; one at an episode's start
        has none.

        :param batch: B windows
        :return: a core state ``[B, ...]``
        """
        state = self.initial_state(len(batch.episode_starts))
        if batch.core_state:
            state = where_rows(batch.episode_starts, state, state_from_arrays(batch.core_state, like=state))
        # One fused unroll from each burn-in length to the next longer one, in which the state of windows whose burn-in has
        # ended stays as it is. There are few different lengths: 0, burn_in_length, and multiples of sequence_period between.
        start = 0
        for end in np.unique(batch.burn_in_lengths[batch.burn_in_lengths > 0]):
            continues = th.as_tensor(batch.burn_in_lengths >= end, device=batch.mask.device)
            with th.set_grad_enabled(self.burn_in_gradient and th.is_grad_enabled()):
                steps = map_obs(itemgetter(slice(start, end)), batch.burn_in_observations)
                advanced = self.advance(steps, state)
            # Always with gradient: a learned initial state gets its gradient from windows that start without burn-in
            state = where_rows(continues, advanced, state)
            start = end
        return state

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """
        The core's inputs: encoded features.

        :param obs: ``[B, ...]``; of a Dict the ``memory_keys`` are enough
        :return: ``[B, F]``
        """
        if self.memory_extractor is None:
            return self.encoder(self.extract_features(obs, self.features_extractor))
        space = self.memory_extractor._observation_space
        return self.encoder(self.memory_extractor(preprocess_obs(self._for_memory(obs), space, self.normalize_images)))

    def encode_sequence(self, obs: PyTorchObs) -> th.Tensor:
        """
        The core's inputs at T steps.

        :param obs: ``[T, B, ...]``
        :return: ``[T, B, F]``
        """
        return self._in_parts(self.encode, self._for_memory(obs))

    def _for_memory(self, obs: PyTorchObs) -> PyTorchObs:
        return obs if self.memory_keys is None else {key: cast(TensorDict, obs)[key] for key in self.memory_keys}

    def _values(self, obs: PyTorchObs, inputs: th.Tensor, outputs: th.Tensor) -> th.Tensor:
        """The head's values, of one step or, with a leading axis T, of several."""
        latent = [outputs, inputs] if self.skip_connection else [outputs]
        if self.memory_extractor is not None:
            see = partial(self.extract_features, features_extractor=self.features_extractor)
            latent.append(see(obs) if outputs.dim() == 2 else self._in_parts(see, obs))
        return self.head(th.cat(latent, dim=-1))

    def _in_parts(self, function: Callable[[PyTorchObs], th.Tensor], obs: PyTorchObs) -> th.Tensor:
        """Features by a function of single steps ``[B, ...]``, applied to T steps, ``[T, B, ...]``."""
        # SB3's preprocessing knows one batch axis only, so time and batch are flattened into one: [T, B, ...] -> [T B, ...]
        rows = map_obs(lambda array: array.flatten(0, 1), obs)
        n_rows = batch_size(rows)
        if self.device.type == "cpu":
            # The activations of convolutions over all images at once would not fit into the cache, and in each update torch
            # would get their memory from the system and return it
            n_numbers = sum(array[0].numel() for array in (rows.values() if isinstance(rows, dict) else [rows]))
            n_rows = max(MAX_NUMBERS_ENCODED_AT_ONCE // n_numbers, 1)
        parts = [map_obs(itemgetter(slice(start, start + n_rows)), rows) for start in range(0, batch_size(rows), n_rows)]
        with bfloat16_if(self.bf16_features, self.device):
            features = th.cat([function(part) for part in parts]) if len(parts) > 1 else function(rows)
        return features.float().unflatten(0, (batch_size(obs), -1))

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        """Greedy actions ``[B, ...]`` at the first observations of episodes."""
        return self.components.best(self(observation, self.initial_state(batch_size(observation)))[0])[1]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._constructor_parameters}


def _select_keys(space: spaces.Space, keys: Sequence[str]) -> spaces.Dict:
    known = list(space.spaces) if isinstance(space, spaces.Dict) else []
    if not keys or not set(keys) <= set(known):
        raise ValueError(f"memory_keys={keys} must be keys of the observations, which have {known}; leave it out otherwise.")
    return spaces.Dict({key: cast(spaces.Dict, space)[key] for key in keys})
