"""Features extractors that remember: a memory over the stacked frames of one observation."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_attn.memory import CORES, MemoryCore, get_core_class, make_core
from sb3_attn.memory.core import check_sizes

__all__ = ["MemoryExtractor"]


class MemoryExtractor(BaseFeaturesExtractor):
    """
    Frames -> memory -> linear layer -> features.

    The memory reads the frames of one observation, oldest first, from its initial state; what it puts out at the newest
    becomes the features. Nothing is kept between observations, so every algorithm and every replay buffer can have it.

    Frames are looked for where ``VecFrameStack`` puts them: on the first axis of an image, whose channels are first by the
    time it gets here, and on the last axis of anything else. ``stack_axis=0`` reads gymnasium's ``FrameStackObservation``.

    ``VecFrameStack`` fills up with zeros what lies before the episode's start. The oldest frames are therefore left out as
    long as they are all zero, in every key of a Dict: the features are then those of the real frames alone. A task whose
    first observations can be zero in every entry loses them; ``mask_blank_frames=False`` keeps all frames. Where the first
    frame is repeated instead, as ``FrameStackObservation`` does unless ``padding_type="zero"``, the memory reads it as often.

    With DQN, ``VecNormalize`` has to be around ``VecFrameStack``, not inside, since SB3's replay takes the observations from
    it; then say ``norm_obs=False``, or the zeros are no longer zero. RL Zoo's ``frame_stack`` puts it inside, its
    ``vec_env_wrapper`` does not. PPO and A2C start all biases of linear layers at 0, also those of the forget gates in the NTM
    and the DNC and an NTM's ``gate_bias``, unless ``policy_kwargs=dict(ortho_init=False)``.

    :param observation_space: stacked frames: vectors, matrices, images, or a Dict of these
    :param features_dim: Number of features extracted.
    :param n_stack: number k of frames, as given to ``VecFrameStack`` or as RL Zoo's ``frame_stack``
    :param core: one of the keys of ``sb3_attn.memory.CORES``, or a ``MemoryCore`` subclass; ``None`` means the class's own
    :param core_kwargs: further arguments of the core
    :param frame_size: size F of a frame's encoding, which the core reads
    :param mask_blank_frames: whether to leave out the frames before the episode's start
    :param stack_axis: the axis that frames are stacked on, not counting the batch's, the same in every key of a Dict;
        ``None`` means as ``VecFrameStack`` does
    :param normalized_image: as for SB3's ``NatureCNN``: take every Box of three dimensions for an image
    :raises ValueError: if an argument does not fit the observation space
    """

    default_core: str = "lstm"

    def __init__(
        self,
        observation_space: spaces.Space,
        features_dim: int = 64,
        n_stack: int = 4,
        core: str | type[MemoryCore] | None = None,
        core_kwargs: dict[str, Any] | None = None,
        frame_size: int = 64,
        mask_blank_frames: bool = True,
        stack_axis: int | None = None,
        normalized_image: bool = False,
    ) -> None:
        check_sizes(self, features_dim=features_dim, n_stack=n_stack, frame_size=frame_size)
        super().__init__(observation_space, features_dim)
        self.n_stack = n_stack
        self.mask_blank_frames = mask_blank_frames
        #: For each key the axis with the frames; observations that are no Dict have the one key "frame"
        self.stack_axes: dict[str, int] = {}
        frame_spaces: dict[str, spaces.Space] = {}
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"frame": observation_space}
        for key, space in parts.items():
            self.stack_axes[key], frame_spaces[key] = _take_apart(space, key, n_stack, stack_axis, normalized_image)
        self.encoder = CombinedExtractor(spaces.Dict(frame_spaces), normalized_image=normalized_image)
        self.projection = nn.Sequential(nn.Linear(self.encoder.features_dim, frame_size), nn.ReLU())
        if core is None:
            # The class's own core looks back over all frames: further would remember the same, and take longer
            core = self.default_core
            core_kwargs = {**get_core_class(core).window_kwargs(n_stack), **(core_kwargs or {})}
        self.core = make_core(core, frame_size, core_kwargs)
        self.linear = nn.Sequential(nn.Linear(self.core.output_size, features_dim), nn.ReLU())

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        Features.

        :param observations: ``[B, ...]``
        :return: ``[B, features_dim]``
        """
        frames = self.frames(observations)
        inputs = self.encode(frames)
        n_blank = self.count_blank(frames)
        # Each row's frames are turned round until the first real one comes first. So one unroll serves all rows, and the
        # blank ones, now last, come too late to have any influence on what is read out before them.
        steps = th.arange(self.n_stack, device=inputs.device).unsqueeze(1)
        order = (steps + n_blank) % self.n_stack  # [k, 1] + [B] -> [k, B]
        inputs = inputs.gather(0, order.unsqueeze(-1).expand_as(inputs))
        outputs, _ = self.core.unroll(inputs, self.core.initial_state(inputs.shape[1]))
        newest = (self.n_stack - 1 - n_blank).view(1, -1, 1).expand(1, *outputs.shape[1:])
        return self.linear(outputs.gather(0, newest).squeeze(0))

    def frames(self, observations: PyTorchObs) -> dict[str, th.Tensor]:
        """
        The frames of each key, oldest first.

        :param observations: ``[B, ...]``
        :return: tensors ``[k, B, ...]``; the only key is ``"frame"`` if the observations are no Dict
        """
        parts = observations if isinstance(observations, dict) else {"frame": observations}
        frames = {}
        for key, axis in self.stack_axes.items():
            apart = parts[key].unflatten(axis + 1, (self.n_stack, -1))  # the batch's axis comes first
            frames[key] = apart.movedim(axis + 1, 0)
        return frames

    def encode(self, frames: dict[str, th.Tensor]) -> th.Tensor:
        """
        Encode every frame on its own.

        :param frames: tensors ``[k, B, ...]``
        :return: ``[k, B, F]``
        """
        together = {key: tensor.flatten(0, 1) for key, tensor in frames.items()}
        return self.projection(self.encoder(together)).unflatten(0, (self.n_stack, -1))

    def count_blank(self, frames: dict[str, th.Tensor]) -> th.Tensor:
        """
        How many of the oldest frames lie before the episode's start; the newest never does.

        :param frames: tensors ``[k, B, ...]``
        :return: ``[B]``
        """
        blank = th.stack([(tensor == 0).flatten(2).all(dim=2) for tensor in frames.values()]).all(dim=0)  # [k, B]
        return blank[:-1].long().cumprod(dim=0).sum(dim=0) * self.mask_blank_frames


def _with_core(core: str) -> type[MemoryExtractor]:
    core_name = CORES[core].__name__
    doc = f"``MemoryExtractor`` with ``{core_name}``. Parameters as for ``MemoryExtractor``."
    name = core_name.removesuffix("Core") + "Extractor"
    return type(name, (MemoryExtractor,), {"__module__": __name__, "__doc__": doc, "default_core": core})


#: An extractor for each core of the registry: ``NTMExtractor``, ``DNCExtractor``, ...
CORE_EXTRACTORS = {extractor.__name__: extractor for extractor in map(_with_core, CORES)}
# As attributes of this module, since that is where pickle looks for a class
globals().update(CORE_EXTRACTORS)
__all__ += list(CORE_EXTRACTORS)

#: The name in models of earlier versions
TransformerExtractor = CORE_EXTRACTORS["GTrXLExtractor"]


def _take_apart(
    space: spaces.Space, key: str, n_stack: int, stack_axis: int | None, normalized_image: bool
) -> tuple[int, spaces.Box]:
    """The axis that frames are stacked on, counted from the first, and the space of one frame."""
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"observation_space has {space} as {key!r}, but only a Box holds stacked frames; wrap the environment in "
            "gymnasium's FlattenObservation before its frames are stacked."
        )
    shape = list(space.shape)
    if stack_axis is None:
        stack_axis = 0 if is_image_space(space, normalized_image=normalized_image) else -1
    if not -len(shape) <= stack_axis < len(shape):
        raise ValueError(f"stack_axis={stack_axis} is no axis of {key!r} with shape {space.shape}; give one that is, or None.")
    axis = stack_axis % len(shape)
    if shape[axis] % n_stack != 0:
        raise ValueError(
            f"n_stack={n_stack} does not divide axis {axis} of {key!r} with shape {space.shape}; give the number "
            "of frames that were stacked, and stack_axis=0 if gymnasium's FrameStackObservation stacked them."
        )
    shape[axis] //= n_stack
    # Bounds as wide as any: VecFrameStack repeats them entry by entry, so which one belongs where is lost
    low, high = np.min(space.low), np.max(space.high)
    return axis, spaces.Box(low, high, tuple(shape), space.dtype.type)
