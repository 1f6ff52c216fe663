"""
Sources of weights: the parts of a model that attend to something, or read and write a memory.

First the contract, then attention, then memories, and last how the sources of a model are found.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_attn.common.core_state import where_rows
from sb3_attn.extractors import AttentionExtractor, MemoryExtractor
from sb3_attn.extractors.memory import CORE_EXTRACTORS
from sb3_attn.extractors.tokenizers import DictTokenizer, EntityTokenizer, ImageTokenizer, Tokenizer
from sb3_attn.memory import CORES, MemoryCore, WeightsInfo
from sb3_attn.recurrent_dqn import RecurrentQNetwork
from sb3_attn.viz.recorded_weights import ImageGrid, RecordedWeights, TokenPart


class WeightSource(ABC):
    """
    A part of a model that computes weights for each observation.

    ``find_sources`` finds every subclass that is listed in ``SOURCES``; recordings, figures, videos and the command line then
    work without changes.

    :param network: the part of the policy that acts: the Q-network, the actor, or the policy itself
    :param parts: a description of the tokens that the weights are over
    """

    #: For titles and file names
    name: str
    #: True if the weights depend on the memory of a recurrent model
    needs_state = False
    #: As for ``RecordedWeights``
    rows: TokenPart | None = None
    #: As for ``RecordedWeights``
    is_distribution = True

    def __init__(self, network: Any, parts: tuple[TokenPart, ...]) -> None:
        self.network = network
        self.parts = parts

    @classmethod
    @abstractmethod
    def from_network(cls, network: Any) -> "list[WeightSource]":
        """
        The sources of this kind in a network; an empty list if it has none.

        :param network: as for the constructor
        """

    @abstractmethod
    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        """
        Compute the weights of one step without changing anything in the network.

        :param observations: as returned by ``policy.obs_to_tensor``, ``[B, ...]``
        :param state: the memory before the step, as returned by ``predict``; ``None`` at an episode's start, and for a
            model without memory
        :param next_state: the memory after the step
        :return: ``[B, heads, tokens]``, or with rows ``[B, heads, rows, tokens]``
        """

    def reachable(self, observations: PyTorchObs) -> th.Tensor | None:
        """
        The tokens that the weights of one step can be on, which is what even weights are measured by.

        :param observations: as returned by ``policy.obs_to_tensor``, ``[B, ...]``
        :return: False on padding for example, bool ``[B, tokens]``; ``None`` as for ``RecordedWeights``
        """
        return None

    def record(self, weights: np.ndarray, reachable: np.ndarray | None = None) -> RecordedWeights:
        """
        Put the weights of several steps together with the description of their axes.

        :param weights: results of ``weights``, ``[T, ...]``
        :param reachable: results of ``reachable``, ``[T, tokens]``
        """
        return RecordedWeights(self.name, weights, self.parts, self.rows, self.is_distribution, reachable)


# --- Attention


class ExtractorAttention(WeightSource):
    """The attention of an ``AttentionExtractor``. Parameters as for ``WeightSource``."""

    name = "attention"

    @classmethod
    def from_network(cls, network: Any) -> list[WeightSource]:
        extractor = features_extractor(network)
        if not isinstance(extractor, AttentionExtractor):
            return []
        return [cls(network, token_parts(extractor.tokenizer, network.observation_space))]

    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        inputs = _preprocess(self.network, observations)
        weights = features_extractor(self.network).attend(inputs, need_weights=True)[1]
        assert weights is not None, "need_weights=True returns them"
        return weights

    def reachable(self, observations: PyTorchObs) -> th.Tensor | None:
        return _real_tokens(self.network, observations)


class CoreAttention(WeightSource):
    """The attention of a memory core over its inputs (``DARQNPolicy``). Parameters as for ``WeightSource``."""

    name = "core_attention"
    needs_state = True

    @classmethod
    def from_network(cls, network: Any) -> list[WeightSource]:
        tokenizer = getattr(features_extractor(network), "tokenizer", None)
        attends = isinstance(network, RecurrentQNetwork) and hasattr(network.core, "attend")
        if not attends or not isinstance(tokenizer, Tokenizer):
            return []
        return [cls(network, token_parts(tokenizer, network.observation_space))]

    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        inputs = self.network.encode(observations)
        return self.network.core.attend(inputs, self.network.state_or_initial(state, len(inputs)))[1]

    def reachable(self, observations: PyTorchObs) -> th.Tensor | None:
        return _real_tokens(self.network, observations)


def _real_tokens(network: Any, observations: PyTorchObs) -> th.Tensor | None:
    """The mask of the tokenizer of a network's features extractor."""
    return features_extractor(network).tokenizer.mask(_preprocess(network, observations))


def token_parts(tokenizer: Tokenizer, space: spaces.Space) -> tuple[TokenPart, ...]:
    """
    Describe the tokens of a features extractor.

    :param tokenizer: the extractor's
    :param space: the extractor's observation space, images channels first
    :return: the parts, in the order of the tokens
    """
    if not isinstance(tokenizer, DictTokenizer):
        return (_part(None, tokenizer, space, 0),)
    assert isinstance(space, spaces.Dict), "a DictTokenizer accepts only these"
    parts: list[TokenPart] = []
    for key, module in tokenizer.tokenizers.items():
        assert isinstance(module, Tokenizer), "a DictTokenizer holds only these"
        parts.append(_part(key, module, space[key], parts[-1].stop if parts else 0))
    return tuple(parts)


def _part(key: str | None, tokenizer: Tokenizer, space: spaces.Space, start: int) -> TokenPart:
    stop = start + tokenizer.n_tokens
    if isinstance(tokenizer, ImageTokenizer):
        assert space.shape is not None, "an image is a Box"
        height, width = space.shape[1:]
        return TokenPart(key, "region", start, stop, ImageGrid(tokenizer.grid, tokenizer.receptive_field, (height, width)))
    return TokenPart(key, "entity" if isinstance(tokenizer, EntityTokenizer) else "entry", start, stop)


# --- Memories


class MemoryWeights(WeightSource):
    """
    One of the quantities in ``MemoryCore.memory_weights``.

    :param network: the part of the policy that acts
    :param core: the memory, somewhere in the network
    :param quantity: the name of the quantity
    :param n_slots: number of slots that the quantity is over
    :param parts: a description of the last axis
    :param rows: a description of the last axis but one, if each step has a matrix
    """

    #: Before the quantity in the source's name
    prefix: str

    def __init__(
        self,
        network: Any,
        core: MemoryCore,
        quantity: str,
        n_slots: int,
        parts: tuple[TokenPart, ...],
        rows: TokenPart | None,
    ) -> None:
        super().__init__(network, parts)
        self.core = core
        self.quantity = quantity
        self.n_slots = n_slots
        self.info = weights_info(core, quantity)
        self.name = f"{self.prefix}_{quantity}"
        self.rows = rows
        self.is_distribution = self.info.is_distribution


class CoreMemoryWeights(MemoryWeights):
    """The reads and writes of a recurrent Q-network's memory core. Parameters as for ``MemoryWeights``."""

    prefix = "memory"
    needs_state = True

    @classmethod
    def from_network(cls, network: Any) -> list[WeightSource]:
        if not isinstance(network, RecurrentQNetwork):
            return []
        sources: list[WeightSource] = []
        for quantity, n_slots in slots(network.core).items():
            info = weights_info(network.core, quantity)
            kind = "slot" if info.newest_age is None else "step"
            part = TokenPart(None, info.pair_label or kind, 0, n_slots, newest_age=info.newest_age)
            rows = TokenPart(None, kind, 0, n_slots) if info.pair_label else None
            sources.append(cls(network, network.core, quantity, n_slots, (part,), rows))
        return sources

    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        inputs = self.network.encode(observations)
        weights = self.core.memory_weights(inputs, self.network.state_or_initial(state, len(inputs)))[self.quantity]
        # A matrix over pairs of slots, [B, N, N], has no heads: it becomes the only one
        return weights.unsqueeze(1) if self.info.pair_label else weights


class ExtractorMemoryWeights(MemoryWeights):
    """
    The reads and writes of a ``MemoryExtractor`` on its way through the frames of one observation.

    A memory whose slots are past steps gives what it looks back on at the newest frame, over all frames. Any other memory
    gives a matrix, frames by slots; a quantity over pairs of slots is taken after the newest frame. Parameters as for
    ``MemoryWeights``.
    """

    prefix = "frames"

    @classmethod
    def from_network(cls, network: Any) -> list[WeightSource]:
        extractor = features_extractor(network)
        if not isinstance(extractor, MemoryExtractor):
            return []
        frames = TokenPart(None, "frame", 0, extractor.n_stack, newest_age=0)
        sources: list[WeightSource] = []
        for quantity, n_slots in slots(extractor.core).items():
            info = weights_info(extractor.core, quantity)
            if info.newest_age is not None:
                part, rows = frames, None
            else:
                part = TokenPart(None, info.pair_label or "slot", 0, n_slots)
                rows = TokenPart(None, "slot", 0, n_slots) if info.pair_label else frames
            sources.append(cls(network, extractor.core, quantity, n_slots, (part,), rows))
        return sources

    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        weights = self._by_frame(features_extractor(self.network), _preprocess(self.network, observations))
        if self.info.newest_age is not None:
            return _over_frames(weights[-1], self.info.newest_age, len(weights))
        if self.info.pair_label:
            return weights[-1].unsqueeze(1)
        return weights.movedim(0, 2)  # [k, B, heads, slots] -> [B, heads, k, slots]

    def reachable(self, observations: PyTorchObs) -> th.Tensor | None:
        if self.info.newest_age is None:
            return None
        # The number of the step does not say which frames are real: a stack may be filled before the first step
        extractor = features_extractor(self.network)
        n_blank = extractor.count_blank(extractor.frames(_preprocess(self.network, observations)))
        in_window = _over_frames(n_blank.new_ones(self.n_slots), self.info.newest_age, extractor.n_stack).bool()
        return in_window & self._started(n_blank, extractor.n_stack).T

    def _by_frame(self, extractor: MemoryExtractor, observations: PyTorchObs) -> th.Tensor:
        """The quantity at each frame, 0 before the episode's start, ``[k, B, ...]``."""
        frames = extractor.frames(observations)
        inputs = extractor.encode(frames)
        started = self._started(extractor.count_blank(frames), len(inputs))
        initial = state = self.core.initial_state(inputs.shape[1])
        steps = []
        for frame, rows in zip(inputs, started, strict=True):
            weights = self.core.memory_weights(frame, state)[self.quantity]
            steps.append(weights * rows.view(-1, *[1] * (weights.dim() - 1)))
            # As in the extractor, blank frames leave no trace: the memory is in its initial state at the first real one
            state = where_rows(rows, self.core(frame, state)[1], initial)
        return th.stack(steps)

    @staticmethod
    def _started(n_blank: th.Tensor, n_frames: int) -> th.Tensor:
        """Whether a frame is part of the episode, bool ``[k, B]``; the first ``n_blank`` ``[B]`` of a stack are not."""
        return th.arange(n_frames, device=n_blank.device).unsqueeze(1) >= n_blank


def slots(core: MemoryCore) -> dict[str, int]:
    """
    The quantities that a core shows, and the number of slots that each is over; empty for a core without slots.

    :param core: a memory
    """
    state = core.initial_state(1)
    # A core with slots has a state that is not empty, so its type and device are those that inputs need
    reference = state[0] if state else th.zeros(())
    with th.no_grad():
        weights = core.memory_weights(reference.new_zeros(1, core.input_size), state)
    return {quantity: tensor.shape[-1] for quantity, tensor in weights.items()}


def weights_info(core: MemoryCore, quantity: str) -> WeightsInfo:
    """
    The core's own description of a quantity, with the defaults if it has none.

    :param core: a memory
    :param quantity: one of the names in ``core.memory_weights``
    """
    return core.weights_info.get(quantity, WeightsInfo())


def _over_frames(weights: th.Tensor, newest_age: int, n_frames: int) -> th.Tensor:
    """
    Spread weights on slots ``[..., N]`` over frames ``[..., k]``.

    The last slot is ``newest_age`` frames before the newest one. A memory may have fewer slots than there are frames, the
    oldest of which then get 0, or more slots, the oldest of which are then empty and left out.
    """
    stop = n_frames - newest_age
    n_kept = min(weights.shape[-1], stop)
    over_frames = weights.new_zeros(*weights.shape[:-1], n_frames)
    if n_kept > 0:
        over_frames[..., stop - n_kept : stop] = weights[..., -n_kept:]
    return over_frames


# --- The sources of a model

#: Tried in this order
SOURCES: list[type[WeightSource]] = [ExtractorAttention, CoreAttention, CoreMemoryWeights, ExtractorMemoryWeights]


def all_sources(model: BaseAlgorithm) -> list[WeightSource]:
    """
    Everything that a model attends with, and everything that its memories read and write.

    :param model: of any of SB3's algorithms, or of ours
    :return: the sources, possibly none
    """
    network = acting_network(model)
    return [source for kind in SOURCES for source in kind.from_network(network)]


def find_sources(model: BaseAlgorithm, entry_names: Sequence[str] | None = None) -> list[WeightSource]:
    """
    Find the same where a model without them is of no use.

    :param model: of any of SB3's algorithms, or of ours
    :param entry_names: what the entries of a vector observation are, of all vectors in the order of a Dict; ``None`` numbers
        them
    :return: one or more sources
    :raises ValueError: if there is none, or the names are not as many as the entries that are attended to
    """
    sources = all_sources(model)
    if not sources:
        names = "" if entry_names is None else f"names={list(entry_names)} are of what is attended to; leave them out. "
        raise ValueError(names + _nothing_to_show(model, acting_network(model)))
    if entry_names is not None:
        _name_entries(sources, entry_names)
    return sources


def acting_network(model: BaseAlgorithm) -> BaseModel:
    """
    The part of a model that acts, and holds its features extractor.

    :param model: of any of SB3's algorithms, or of ours
    :return: the Q-network, the quantile network, the actor, or the policy itself
    """
    for name in ("acting_net", "q_net", "quantile_net", "actor"):
        network = getattr(model.policy, name, None)
        if isinstance(network, BaseModel):
            return network
    return model.policy


def features_extractor(network: Any) -> Any:
    """
    The features extractor that a network acts with.

    :param network: as returned by ``acting_network``
    """
    # An actor-critic policy may have a second one, for its value function, which does not act
    extractor = getattr(network, "pi_features_extractor", None)
    return network.features_extractor if extractor is None else extractor


def _preprocess(network: Any, observations: PyTorchObs) -> PyTorchObs:
    """Do what ``BaseModel.extract_features`` does before it calls the extractor."""
    return preprocess_obs(observations, network.observation_space, normalize_images=network.normalize_images)


def _name_entries(sources: list[WeightSource], names: Sequence[str]) -> None:
    n_entries = {sum(part.stop - part.start for part in source.parts if part.kind == "entry") for source in sources} - {0}
    if n_entries != {len(names)}:
        wanted = f"{max(n_entries)} entries of vectors; give as many" if n_entries else "no entry of a vector; leave them out"
        raise ValueError(f"names={list(names)} has {len(names)} names, but this model attends to {wanted}.")
    for source in sources:
        left, parts = iter(names), []
        for part in source.parts:
            named = tuple(islice(left, part.stop - part.start)) if part.kind == "entry" else None
            parts.append(part._replace(entry_names=named))
        source.parts = tuple(parts)


def _nothing_to_show(model: BaseAlgorithm, network: Any) -> str:
    extractor = features_extractor(network)
    found = f"its features extractor is {type(extractor).__name__}"
    for part in (network, extractor):
        if isinstance(part, RecurrentQNetwork | MemoryExtractor):
            found += f", and its {type(part.core).__name__} has no slots to look into"
    if isinstance(network, RecurrentQNetwork):
        found += ", only states, which record_episode(model, env).recurrent_states keeps"
    with_slots = [name for name, core in CORES.items() if core.weights_info]
    extractors = [name for name, extractor in CORE_EXTRACTORS.items() if extractor.default_core in with_slots]
    return (
        f"This {type(model).__name__} has no attention and no memory to show: {found}; train it with "
        "policy_kwargs=dict(features_extractor_class=SoftAttentionExtractor) (or HardAttentionExtractor, "
        f"SelfAttentionExtractor; over stacked frames {', '.join(extractors)}), a RecurrentDQN also with a memory in "
        f"policy_kwargs, {' or '.join(f'core={name!r}' for name in with_slots)}, or look at occlusion saliency, which works "
        "for any model that sees images."
    )
