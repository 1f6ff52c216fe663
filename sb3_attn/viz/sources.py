"""Where weights come from."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_attn.extractors import AttentionExtractor, MemoryExtractor
from sb3_attn.extractors.tokenizers import DictTokenizer, EntityTokenizer, ImageTokenizer, Tokenizer
from sb3_attn.recurrent_dqn import RecurrentQNetwork
from sb3_attn.viz.memories import CoreMemory, ExtractorMemory
from sb3_attn.viz.weights import ImageGrid, TokenPart, WeightSource, features_extractor


def token_parts(tokenizer: Tokenizer, space: spaces.Space) -> tuple[TokenPart, ...]:
    """
    What an extractor's tokens are.

    :param tokenizer: the extractor's
    :param space: its observation space, images channels first
    :return: the parts, in the order of the tokens
    """
    if not isinstance(tokenizer, DictTokenizer):
        return (_part(None, tokenizer, space, 0),)
    assert isinstance(space, spaces.Dict), "only a Dict has them"
    parts: list[TokenPart] = []
    for key, module in tokenizer.tokenizers.items():
        assert isinstance(module, Tokenizer), "nothing else is in there"
        parts.append(_part(key, module, space[key], parts[-1].stop if parts else 0))
    return tuple(parts)


def _part(key: str | None, tokenizer: Tokenizer, space: spaces.Space, start: int) -> TokenPart:
    stop = start + tokenizer.n_tokens
    if isinstance(tokenizer, ImageTokenizer):
        assert space.shape is not None, "an image is a Box"
        height, width = space.shape[1:]
        return TokenPart(key, "region", start, stop, ImageGrid(tokenizer.grid, tokenizer.receptive_field, (height, width)))
    return TokenPart(key, "entity" if isinstance(tokenizer, EntityTokenizer) else "entry", start, stop)


class ExtractorAttention(WeightSource):
    """The weights of an ``AttentionExtractor``. Parameters as for ``WeightSource``."""

    name = "attention"

    @classmethod
    def from_network(cls, network: Any) -> list[WeightSource]:
        extractor = features_extractor(network)
        if not isinstance(extractor, AttentionExtractor):
            return []
        return [cls(network, token_parts(extractor.tokenizer, network.observation_space))]

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
    def from_network(cls, network: Any) -> list[WeightSource]:
        tokenizer = getattr(features_extractor(network), "tokenizer", None)
        if (
            not isinstance(network, RecurrentQNetwork)
            or not isinstance(tokenizer, Tokenizer)
            or not hasattr(network.core, "attend")
        ):
            return []
        return [cls(network, token_parts(tokenizer, network.observation_space))]

    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        network = self.network
        inputs = network.encode(observations)
        return network.core.attend(inputs, network.state_or_initial(state, len(inputs)))[1]


#: Tried in this order
SOURCES: list[type[WeightSource]] = [ExtractorAttention, CoreAttention, CoreMemory, ExtractorMemory]


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


def find_sources(model: BaseAlgorithm) -> list[WeightSource]:
    """
    All that a model attends with, and what its memories read and write.

    :param model: of any of SB3's algorithms, or of ours
    :return: one or more sources
    :raises ValueError: if there is none
    """
    network = acting_network(model)
    sources = [source for kind in SOURCES for source in kind.from_network(network)]
    if not sources:
        raise ValueError(_nothing_to_show(model, network))
    return sources


def _nothing_to_show(model: BaseAlgorithm, network: Any) -> str:
    extractor = features_extractor(network)
    found = f"its features extractor is {type(extractor).__name__}"
    for part in (network, extractor):
        if isinstance(part, RecurrentQNetwork | MemoryExtractor):
            found += f", and its {type(part.core).__name__} has no slots to look into"
    if isinstance(network, RecurrentQNetwork):
        found += ", only states, which record_episode(model, env, sources=[]).states keeps"
    return (
        f"This {type(model).__name__} has no attention and no memory to show: {found}; train it with "
        "policy_kwargs=dict(features_extractor_class=SoftAttentionExtractor) (or HardAttentionExtractor, "
        "SelfAttentionExtractor; over stacked frames NTMExtractor, DNCExtractor, KeyValueMemoryExtractor, "
        "GTrXLExtractor), a RecurrentDQN also with policy_kwargs=dict(core='ntm') (or 'dnc', 'key_value', "
        "'gtrxl'), or look at occlusion saliency, which any model that sees images has."
    )
