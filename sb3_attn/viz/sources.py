"""Where attention weights come from, and what they are over."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_attn.common.core_state import state_from_arrays
from sb3_attn.extractors import AttentionExtractor
from sb3_attn.extractors.tokens import DictTokens, EntityTokens, ImageTokens, ReceptiveField, Tokens
from sb3_attn.recurrent_dqn import RecurrentQNetwork


class ImageGrid(NamedTuple):
    """Where the regions of an image lie in it."""

    #: Rows and columns of regions
    grid: tuple[int, int]
    #: Which pixels a region sees
    receptive_field: ReceptiveField
    #: Height and width of the image
    image_size: tuple[int, int]


class TokenPart(NamedTuple):
    """
    A run of tokens of one kind.

    :param key: the key of a Dict observation that they come from; ``None`` if the observation is no Dict
    :param kind: ``"region"`` of an image, ``"entity"`` of a matrix, ``"entry"`` of a vector, or what a source calls them
    :param start: index of the first
    :param stop: index after the last
    :param image: where they lie, if they are regions of an image
    """

    key: str | None
    kind: str
    start: int
    stop: int
    image: ImageGrid | None = None

    @property
    def label(self) -> str:
        """For titles and axes."""
        return self.kind if self.key is None else f"{self.key}: {self.kind}"


def token_parts(tokens: Tokens, space: spaces.Space) -> tuple[TokenPart, ...]:
    """
    What an extractor's tokens are.

    :param tokens: the extractor's
    :param space: its observation space, images channels first
    :return: the parts, in the order of the tokens
    """
    if not isinstance(tokens, DictTokens):
        return (_part(None, tokens, space, 0),)
    assert isinstance(space, spaces.Dict), "only a Dict has them"
    parts: list[TokenPart] = []
    for key, module in tokens.tokens.items():
        assert isinstance(module, Tokens), "nothing else is in there"
        parts.append(_part(key, module, space[key], parts[-1].stop if parts else 0))
    return tuple(parts)


def _part(key: str | None, tokens: Tokens, space: spaces.Space, start: int) -> TokenPart:
    stop = start + tokens.n_tokens
    if isinstance(tokens, ImageTokens):
        assert space.shape is not None, "an image is a Box"
        height, width = space.shape[1:]
        return TokenPart(key, "region", start, stop, ImageGrid(tokens.grid, tokens.receptive_field, (height, width)))
    return TokenPart(key, "entity" if isinstance(tokens, EntityTokens) else "entry", start, stop)


class WeightSource(ABC):
    """
    Something in a model that gives weights for each observation.

    A subclass in ``SOURCES`` is found by ``find_sources``; recordings, figures, videos and the command need no change.

    :param network: the part of the policy that acts: the Q-network, the actor, or the policy itself
    :param parts: what the weights are over
    """

    #: For titles and file names
    name: str
    #: Whether the weights depend on the memory of a recurrent model
    needs_state = False

    def __init__(self, network: Any, parts: tuple[TokenPart, ...]) -> None:
        self.network = network
        self.parts = parts

    @classmethod
    @abstractmethod
    def from_network(cls, network: Any) -> "WeightSource | None":
        """
        The source, if the network has what it takes.

        :param network: see above
        """

    @abstractmethod
    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        """
        The weights; nothing in the network changes.

        :param observations: as ``policy.obs_to_tensor`` gives them, ``[B, ...]``
        :param state: the memory before the step, as ``predict`` returns it; ``None`` at an episode's start, and for a
            model without memory
        :param next_state: the memory after the step
        :return: ``[B, heads, tokens]``
        """


class ExtractorAttention(WeightSource):
    """The weights of an ``AttentionExtractor``. Parameters as for ``WeightSource``."""

    name = "attention"

    @classmethod
    def from_network(cls, network: Any) -> "ExtractorAttention | None":
        extractor = features_extractor(network)
        if not isinstance(extractor, AttentionExtractor):
            return None
        return cls(network, token_parts(extractor.tokens, network.observation_space))

    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        network = self.network
        # What BaseModel.extract_features does before it calls the extractor
        inputs = preprocess_obs(observations, network.observation_space, normalize_images=network.normalize_images)
        weights = features_extractor(network).attend(inputs, need_weights=True)[1]
        assert weights is not None, "they were asked for"
        return weights


class CoreAttention(WeightSource):
    """The weights of a memory core that attends to its inputs (``DARQNPolicy``). Parameters as for ``WeightSource``."""

    name = "core_attention"
    needs_state = True

    @classmethod
    def from_network(cls, network: Any) -> "CoreAttention | None":
        tokens = getattr(features_extractor(network), "tokens", None)
        if not isinstance(network, RecurrentQNetwork) or not isinstance(tokens, Tokens) or not hasattr(network.core, "attend"):
            return None
        return cls(network, token_parts(tokens, network.observation_space))

    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        network = self.network
        inputs = network.encoder(network.extract_features(observations, network.features_extractor))
        core_state = network.initial_state(len(inputs))
        if state is not None:
            core_state = state_from_arrays(state, like=core_state)
        return network.core.attend(inputs, core_state)[1]


#: Tried in this order
SOURCES: list[type[WeightSource]] = [ExtractorAttention, CoreAttention]


def acting_network(model: BaseAlgorithm) -> BaseModel:
    """
    The part of a model that acts, and holds its features extractor.

    :param model: of any of SB3's algorithms, or of ours
    :return: the Q-network, the quantile network, the actor, or the policy itself
    """
    for name in ("q_net", "quantile_net", "actor"):
        network = getattr(model.policy, name, None)
        if isinstance(network, BaseModel):
            return network
    return model.policy


def features_extractor(network: Any) -> Any:
    """
    The features extractor with which a network acts.

    :param network: as ``acting_network`` returns it
    """
    # An actor-critic policy may have two; the value function's does not act
    extractor = getattr(network, "pi_features_extractor", None)
    return network.features_extractor if extractor is None else extractor


def find_sources(model: BaseAlgorithm) -> list[WeightSource]:
    """
    All that a model attends with.

    :param model: of any of SB3's algorithms, or of ours
    :return: one or more sources
    :raises ValueError: if there is none
    """
    network = acting_network(model)
    sources = [source for kind in SOURCES if (source := kind.from_network(network)) is not None]
    if not sources:
        raise ValueError(
            f"This {type(model).__name__} has no attention to show: its features extractor is "
            f"{type(features_extractor(network)).__name__}; train it with "
            "policy_kwargs=dict(features_extractor_class=SoftAttentionExtractor) (or HardAttentionExtractor, "
            "SelfAttentionExtractor), or look at occlusion saliency, which any model has."
        )
    return sources
