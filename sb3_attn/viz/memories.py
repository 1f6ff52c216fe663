"""What a memory reads and writes, as sources of weights."""

from typing import Any

import torch as th
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_attn.common.core_state import where_rows
from sb3_attn.extractors import MemoryExtractor
from sb3_attn.memory import GTrXLCore, KeyValueMemoryCore, MemoryCore
from sb3_attn.recurrent_dqn import RecurrentQNetwork
from sb3_attn.viz.weights import TokenPart, WeightSource, features_extractor

#: Cores whose slots are the last steps, the oldest first: how many steps ago the last slot's step was
NEWEST_STEP: dict[type[MemoryCore], int] = {GTrXLCore: 0, KeyValueMemoryCore: 1}
#: What belongs to each pair of slots rather than to each slot: how the first of them is related to the second
OF_PAIRS = {"link": "slot written before"}
#: What is no weighting of slots
NO_DISTRIBUTIONS = ("usage", "link")


class MemoryWeights(WeightSource):
    """
    One of the quantities in ``MemoryCore.memory_weights``.

    :param network: the part of the policy that acts
    :param core: the memory, somewhere in it
    :param quantity: its name there
    :param parts: what its last axis is over
    :param rows: what the last axis but one is over, if there is a matrix for each step
    """

    #: Before the quantity in the source's name
    prefix: str

    def __init__(
        self, network: Any, core: MemoryCore, quantity: str, parts: tuple[TokenPart, ...], rows: TokenPart | None
    ) -> None:
        super().__init__(network, parts)
        self.core = core
        self.quantity = quantity
        self.name = f"{self.prefix}_{quantity}"
        self.rows = rows
        self.is_distribution = quantity not in NO_DISTRIBUTIONS


class CoreMemory(MemoryWeights):
    """What the memory core of a recurrent Q-network reads and writes. Parameters as for ``MemoryWeights``."""

    prefix = "memory"
    needs_state = True

    @classmethod
    def from_network(cls, network: Any) -> list[WeightSource]:
        if not isinstance(network, RecurrentQNetwork):
            return []
        newest = newest_step(network.core)
        sources: list[WeightSource] = []
        for quantity, n_slots in slots(network.core).items():
            kind = "slot" if newest is None else "step"
            part = TokenPart(None, OF_PAIRS.get(quantity, kind), 0, n_slots, newest=newest)
            rows = TokenPart(None, kind, 0, n_slots) if quantity in OF_PAIRS else None
            sources.append(cls(network, network.core, quantity, (part,), rows))
        return sources

    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        network = self.network
        inputs = network.encode(observations)
        weights = self.core.memory_weights(inputs, network.state_or_initial(state, len(inputs)))[self.quantity]
        return weights.unsqueeze(1) if self.quantity in OF_PAIRS else weights  # all pairs are one head's


class ExtractorMemory(MemoryWeights):
    """
    What a ``MemoryExtractor`` reads and writes on its way through the frames of one observation.

    A memory whose slots are the last steps shows what it looks back on at the newest frame, over all frames. Any other shows
    a matrix, frames by slots; what belongs to pairs of slots is shown as it is after the newest frame. Parameters as for
    ``MemoryWeights``.
    """

    prefix = "frames"

    @classmethod
    def from_network(cls, network: Any) -> list[WeightSource]:
        extractor = features_extractor(network)
        if not isinstance(extractor, MemoryExtractor):
            return []
        frames = TokenPart(None, "frame", 0, extractor.n_stack, newest=0)
        sources: list[WeightSource] = []
        for quantity, n_slots in slots(extractor.core).items():
            if newest_step(extractor.core) is not None:
                part, rows = frames, None
            else:
                part = TokenPart(None, OF_PAIRS.get(quantity, "slot"), 0, n_slots)
                rows = TokenPart(None, "slot", 0, n_slots) if quantity in OF_PAIRS else frames
            sources.append(cls(network, extractor.core, quantity, (part,), rows))
        return sources

    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        network = self.network
        # What BaseModel.extract_features does before it calls the extractor
        inputs = preprocess_obs(observations, network.observation_space, normalize_images=network.normalize_images)
        weights = self._by_frame(features_extractor(network), inputs)
        newest = newest_step(self.core)
        if newest is not None:
            return _over_frames(weights[-1], newest, len(weights))
        if self.quantity in OF_PAIRS:
            return weights[-1].unsqueeze(1)
        return weights.movedim(0, 2)

    def _by_frame(self, extractor: MemoryExtractor, observations: PyTorchObs) -> th.Tensor:
        """The quantity at each frame, 0 before the episode's start, ``[k, B, ...]``."""
        frames = extractor.frames(observations)
        inputs = extractor.encode(frames)
        started = th.arange(len(inputs), device=inputs.device).unsqueeze(1) >= extractor.count_blank(frames)  # [k, B]
        initial = state = self.core.initial_state(inputs.shape[1])
        steps = []
        for frame, rows in zip(inputs, started, strict=True):
            weights = self.core.memory_weights(frame, state)[self.quantity]
            steps.append(weights * rows.view(-1, *[1] * (weights.dim() - 1)))
            state = where_rows(rows, self.core(frame, state)[1], initial)
        return th.stack(steps)


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


def newest_step(core: MemoryCore) -> int | None:
    """
    How many steps ago the last slot's step was, if the slots are the last steps.

    :param core: a memory
    """
    return next((steps for kind, steps in NEWEST_STEP.items() if isinstance(core, kind)), None)


def _over_frames(weights: th.Tensor, newest: int, n_frames: int) -> th.Tensor:
    """From slots ``[B, heads, N]`` to frames ``[B, heads, k]``, of which a memory may keep fewer, or have room for more."""
    n_kept = min(weights.shape[-1], n_frames - newest)
    over_frames = weights.new_zeros(*weights.shape[:-1], n_frames)
    if n_kept > 0:
        over_frames[..., n_frames - newest - n_kept : n_frames - newest] = weights[..., -n_kept:]
    return over_frames
