"""Policies with attention or memory for stock DQN, each with a name of its own for YAML files."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn

from sb3_attn.common.optimizer import default_optimizer_kwargs
from sb3_attn.extractors import (
    HardAttentionExtractor,
    ImpalaCNN,
    MemoryExtractor,
    SelfAttentionExtractor,
    SoftAttentionExtractor,
)
from sb3_attn.extractors.memory import CORE_EXTRACTORS

__all__ = ["DQNSAPolicy", "HardAttentionPolicy", "ImpalaPolicy", "MemoryPolicy", "SelfAttentionPolicy", "SoftAttentionPolicy"]


class ExtractorPolicy(DQNPolicy):
    """
    DQN's policy with a features extractor of this package; each subclass has its own default.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: sizes of the layers between features and Q-values; none by default, as SB3 has it after NatureCNN
    :param activation_fn: Activation function
    :param features_extractor_class: Features extractor to use; ``None`` means ``default_features_extractor``
    :param features_extractor_kwargs: Keyword arguments to pass to the features extractor, which take precedence over
        ``default_features_extractor_kwargs``
    :param normalize_images: Whether to normalize images or not, dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer;
        ``None`` means ``dict(fused=True)`` for Adam, which changes only its speed
    """

    default_features_extractor: type[BaseFeaturesExtractor]
    default_features_extractor_kwargs: dict[str, Any] = {}

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if optimizer_kwargs is None:
            optimizer_kwargs = default_optimizer_kwargs(optimizer_class)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch or [],
            activation_fn,
            features_extractor_class or self.default_features_extractor,
            {**self.default_features_extractor_kwargs, **(features_extractor_kwargs or {})},
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
        )


class AttentionPolicy(ExtractorPolicy):
    """Base of the policies with attention. Parameters as for ``ExtractorPolicy``."""


class SoftAttentionPolicy(AttentionPolicy):
    """DQN's policy with ``SoftAttentionExtractor``. Parameters as for ``AttentionPolicy``."""

    default_features_extractor = SoftAttentionExtractor


class HardAttentionPolicy(AttentionPolicy):
    """DQN's policy with ``HardAttentionExtractor``, whose updates draw the token. Parameters as for ``AttentionPolicy``."""

    default_features_extractor = HardAttentionExtractor
    default_features_extractor_kwargs = dict(sample=True)


class SelfAttentionPolicy(AttentionPolicy):
    """DQN's policy with ``SelfAttentionExtractor``. Parameters as for ``AttentionPolicy``."""

    default_features_extractor = SelfAttentionExtractor


class DQNSAPolicy(AttentionPolicy):
    """
    DQN-SA: DQN with soft attention over the 49 regions of NatureCNN's convolutions.

    The network as it is usually copied multiplies 64 weights by 3,136 flat features, which fails. This is the network that
    is meant: additive scores with a hidden layer of 512, one weight per region of 64 features, the weighted sum of the
    regions, a layer of 512. It has 147,109 parameters for 84 x 84 x 4 pixels and 4 actions, and 1,719,973 without the sum
    (``features_extractor_kwargs=dict(sum_tokens=False)``). Parameters as for ``AttentionPolicy``.
    """

    default_features_extractor = SoftAttentionExtractor
    default_features_extractor_kwargs = dict(score="additive", attention_size=512, coordinates=False)


class ImpalaPolicy(ExtractorPolicy):
    """DQN's policy with ``ImpalaCNN``. Parameters as for ``ExtractorPolicy``."""

    default_features_extractor = ImpalaCNN


class MemoryPolicy(ExtractorPolicy):
    """
    DQN's policy with ``MemoryExtractor``: a memory over stacked frames, by default an LSTM.

    Give the number of frames, as ``VecFrameStack`` stacks them, and another memory by
    ``features_extractor_kwargs=dict(n_stack=..., core=...)``. Parameters as for ``ExtractorPolicy``.
    """

    default_features_extractor: type[BaseFeaturesExtractor] = MemoryExtractor


def _with_extractor(extractor: type[MemoryExtractor]) -> type[MemoryPolicy]:
    doc = f"``MemoryPolicy`` with ``{extractor.__name__}``. Parameters as for ``MemoryPolicy``."
    name = extractor.__name__.removesuffix("Extractor") + "Policy"
    return type(name, (MemoryPolicy,), {"__module__": __name__, "__doc__": doc, "default_features_extractor": extractor})


#: A policy for each core of the registry: ``NTMPolicy``, ``DNCPolicy``, ...
CORE_POLICIES = {policy.__name__: policy for policy in map(_with_extractor, CORE_EXTRACTORS.values())}
# As attributes of this module, since that is where pickle looks for a class
globals().update(CORE_POLICIES)
__all__ += list(CORE_POLICIES)

#: The name in models of earlier versions
TransformerPolicy = CORE_POLICIES["GTrXLPolicy"]
