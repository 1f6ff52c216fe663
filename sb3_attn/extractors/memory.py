"""Features extractors with a memory over the stacked frames of one observation."""

import warnings
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

    The memory starts in its initial state and reads the frames of one observation, oldest first; its output at the newest
    frame becomes the features. No state is kept between observations, so it works with every algorithm and every replay
    buffer.

    Frames are expected where ``VecFrameStack`` puts them: on the first axis of an image, which SB3 has transposed to channels
    first by then, and on the last axis of anything else. For gymnasium's ``FrameStackObservation`` give ``stack_axis=0``.

    ``VecFrameStack`` pads the stack with zeros at the start of an episode. The oldest frames are therefore skipped as long as
    they are all zero, in every key of a Dict, so that the features depend on the real frames alone. In a task whose first
    observations may be all zero these are skipped too; ``mask_blank_frames=False`` keeps all frames. Padding by repeating the
    first frame, as in ``FrameStackObservation`` unless ``padding_type="zero"``, is read like any other frame.

    With DQN, ``VecNormalize`` must wrap ``VecFrameStack``, not the other way round: SB3's replay buffer stores the original
    observations that ``VecNormalize`` receives, which would be single frames. Set ``norm_obs=False``, or the padding is no
    longer zero. RL Zoo's ``frame_stack`` puts ``VecNormalize`` inside; use its ``vec_env_wrapper`` instead.

    PPO and A2C reset the biases of all linear layers to 0, including those of the forget gates of NTM and DNC, of
    minGRU's gates and an NTM's ``gate_bias``, unless ``policy_kwargs=dict(ortho_init=False)``.

    :param observation_space: stacked frames: vectors, matrices, images, or a Dict of these
    :param features_dim: Number of features extracted.
    :param n_stack: number k of frames, as given to ``VecFrameStack`` or to RL Zoo's ``frame_stack``; without it a warning says
        that four are assumed, as in models of earlier versions
    :param core: one of the keys of ``sb3_attn.memory.CORES``, or a ``MemoryCore`` subclass; ``None`` means ``default_core``,
        with a window of ``n_stack`` steps if it has one
    :param core_kwargs: further arguments of the core
    :param frame_size: size F of an encoded frame, the core's input
    :param mask_blank_frames: whether to skip the frames before the start of the episode
    :param stack_axis: the axis that frames are stacked on, not counting the batch axis, the same in every key of a Dict;
        ``None`` means that of ``VecFrameStack``
    :param normalized_image: as for SB3's ``NatureCNN``: treat every Box with three axes as an image
    :raises ValueError: if an argument does not fit the observation space
    """

    default_core: str = "lstm"

    def __init__(
        self,
        observation_space: spaces.Space,
        features_dim: int = 64,
        n_stack: int | None = None,
        core: str | type[MemoryCore] | None = None,
        core_kwargs: dict[str, Any] | None = None,
        frame_size: int = 64,
        mask_blank_frames: bool = True,
        stack_axis: int | None = None,
        normalized_image: bool = False,
    ) -> None:
        if n_stack is None:
            n_stack = 4
            warnings.warn(
                f"{type(self).__name__} was not given n_stack and takes every observation for 4 stacked frames, even 4 plain "
                "numbers; give features_extractor_kwargs=dict(n_stack=...) as VecFrameStack has it.",
                stacklevel=2,
            )
        check_sizes(self, features_dim=features_dim, n_stack=n_stack, frame_size=frame_size)
        super().__init__(observation_space, features_dim)
        self.n_stack = n_stack
        self.mask_blank_frames = mask_blank_frames
        #: The axis of the frames for each key; observations other than a Dict have the single key "frame"
        self.stack_axes: dict[str, int] = {}
        frame_spaces: dict[str, spaces.Space] = {}
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"frame": observation_space}
        for key, space in parts.items():
            self.stack_axes[key], frame_spaces[key] = _locate_frames(space, key, n_stack, stack_axis, normalized_image)
        self.encoder = CombinedExtractor(spaces.Dict(frame_spaces), normalized_image=normalized_image)
        self.projection = nn.Sequential(nn.Linear(self.encoder.features_dim, frame_size), nn.ReLU())
        if core is None:
            # As far back as there are frames: a longer window would remember the same and take more time
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
        # Rotate the frames of each row until the first real one comes first. One unroll then serves all rows: the blank
        # frames, now last, come after the newest real one, whose output is read, and so have no influence on it.
        steps = th.arange(self.n_stack, device=inputs.device).unsqueeze(1)
        order = (steps + n_blank) % self.n_stack  # [k, 1] + [B] -> [k, B]
        inputs = inputs.gather(0, order.unsqueeze(-1).expand_as(inputs))
        outputs, _ = self.core.unroll(inputs, self.core.initial_state(inputs.shape[1]))
        newest = (self.n_stack - 1 - n_blank).view(1, -1, 1).expand(1, *outputs.shape[1:])
        return self.linear(outputs.gather(0, newest).squeeze(0))

    def frames(self, observations: PyTorchObs) -> dict[str, th.Tensor]:
        """
        Split observations into their frames, oldest first.

        :param observations: ``[B, ...]``
        :return: for each key a tensor ``[k, B, ...]``; observations other than a Dict have the single key ``"frame"``
        """
        parts = observations if isinstance(observations, dict) else {"frame": observations}
        frames = {}
        for key, axis in self.stack_axes.items():
            split = parts[key].unflatten(axis + 1, (self.n_stack, -1))  # + 1 for the batch axis
            frames[key] = split.movedim(axis + 1, 0)
        return frames

    def encode(self, frames: dict[str, th.Tensor]) -> th.Tensor:
        """
        Encode each frame by itself.

        :param frames: tensors ``[k, B, ...]``
        :return: ``[k, B, F]``
        """
        flat = {key: tensor.flatten(0, 1) for key, tensor in frames.items()}  # [k * B, ...]
        return self.projection(self.encoder(flat)).unflatten(0, (self.n_stack, -1))

    def count_blank(self, frames: dict[str, th.Tensor]) -> th.Tensor:
        """
        Count the frames before the start of the episode: the oldest ones that are all zero, but never the newest.

        :param frames: tensors ``[k, B, ...]``
        :return: ``[B]``
        """
        blank = th.stack([(tensor == 0).flatten(2).all(dim=2) for tensor in frames.values()]).all(dim=0)  # [k, B]
        # The cumulative product is 1 up to the first frame that is not blank, so a later frame of zeros does not count
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


def _locate_frames(
    space: spaces.Space, key: str, n_stack: int, stack_axis: int | None, normalized_image: bool
) -> tuple[int, spaces.Box]:
    """The axis that frames are stacked on, as an index from 0, and the space of a single frame."""
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"observation_space has {space} as {key!r}, but only a Box can hold stacked frames; wrap the environment in "
            "gymnasium's FlattenObservation before stacking its frames."
        )
    shape = list(space.shape)
    if stack_axis is None:
        stack_axis = 0 if is_image_space(space, normalized_image=normalized_image) else -1
    if not -len(shape) <= stack_axis < len(shape):
        raise ValueError(f"stack_axis={stack_axis} is not an axis of {key!r} with shape {space.shape}; give one, or None.")
    axis = stack_axis % len(shape)
    if shape[axis] % n_stack != 0:
        raise ValueError(
            f"n_stack={n_stack} does not divide axis {axis} of {key!r} with shape {space.shape}; give the number "
            "of stacked frames, and stack_axis=0 if gymnasium's FrameStackObservation stacked them."
        )
    if not (_are_stacked(space.low, axis, n_stack) and _are_stacked(space.high, axis, n_stack)):
        warnings.warn(
            f"{key!r} with the bounds {space.low} to {space.high} does not look like n_stack={n_stack} frames, since these "
            f"would have the same bounds; wrap the environment in VecFrameStack(env, {n_stack}).",
            stacklevel=3,
        )
    shape[axis] //= n_stack
    # The widest bounds: VecFrameStack repeats the bounds entry by entry, so which entry each one belongs to is lost
    low, high = np.min(space.low), np.max(space.high)
    return axis, spaces.Box(low, high, tuple(shape), space.dtype.type)


def _are_stacked(bounds: np.ndarray, axis: int, n_stack: int) -> bool:
    """Whether all frames have equal bounds: each entry's repeated, as by ``VecFrameStack``, or a whole frame's repeated."""
    entries = np.moveaxis(bounds, axis, -1)
    by_entry = entries.reshape(*entries.shape[:-1], -1, n_stack)
    by_frame = entries.reshape(*entries.shape[:-1], n_stack, -1)
    return bool((by_entry == by_entry[..., :1]).all() or (by_frame == by_frame[..., :1, :]).all())
