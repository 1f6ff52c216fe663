"""Tokenizers: they turn observations into the sets of tokens that attention is over."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_attn.attention.functional import grid_coordinates
from sb3_attn.common.checks import check_flag, check_whole
from sb3_attn.common.former_names import FormerParameterNames

#: The convolutions that turn an image into regions, each as (channels, kernel size, stride)
Trunk = Sequence[tuple[int, int, int]]

TRUNKS: dict[str, Trunk] = {
    # Mnih et al. (2015): 84 x 84 pixels become 7 x 7 overlapping regions
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
    # Regions of 8 x 8 pixels that do not overlap: 64 x 64 pixels become 8 x 8 regions
    "patches": ((512, 8, 8),),
}


class ReceptiveField(NamedTuple):
    """The pixels that a region of an image depends on; the same along both axes."""

    #: Width in pixels
    size: int
    #: Distance in pixels from one region to the next
    stride: int


class Tokenizer(nn.Module, ABC):
    """
    Turns observations that SB3 has preprocessed into tokens.

    :param n_tokens: number n of tokens
    :param token_size: size d of a token
    """

    def __init__(self, n_tokens: int, token_size: int) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        self.token_size = token_size

    @abstractmethod
    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        Tokens.

        :param observations: ``[B, ...]``
        :return: ``[B, n, d]``
        """

    def mask(self, observations: PyTorchObs) -> th.Tensor | None:
        """
        Mask of the real tokens.

        :param observations: ``[B, ...]``
        :return: True on real tokens, False on padding, bool ``[B, n]``; ``None`` if there is never any padding
        """
        return None


class ImageTokenizer(Tokenizer):
    """
    A token for each region of an image: the positions of the last convolution's output, row by row.

    :param space: channels first, ``[C, H, W]``
    :param trunk: key of ``TRUNKS``, or the convolutions themselves
    :param coordinates: append the two coordinates of each region; without them attention loses *where* a region is
    :param channels_last: use the memory layout in which convolutions are fastest; it changes nothing else. Only images are
        laid out like this, not weights, since SB3's orthogonal initialisation refuses any other layout than the default.
    :raises ValueError: if the trunk is unknown or does not fit the image
    """

    coordinates: th.Tensor | None

    def __init__(
        self, space: spaces.Box, trunk: str | Trunk = "nature", coordinates: bool = True, channels_last: bool = True
    ) -> None:
        check_flag("coordinates", coordinates)
        layers = _layers(trunk)
        channels, *size = space.shape
        grid, receptive_field = _grid_and_field(trunk, layers, tuple(size))
        super().__init__(grid[0] * grid[1], layers[-1][0] + (2 if coordinates else 0))
        #: Rows and columns of regions
        self.grid = grid
        self.receptive_field = receptive_field
        self.memory_format = th.channels_last if channels_last else th.contiguous_format
        modules: list[nn.Module] = []
        for out_channels, kernel_size, stride in layers:
            modules += [nn.Conv2d(channels, out_channels, kernel_size, stride), nn.ReLU()]
            channels = out_channels
        self.trunk = nn.Sequential(*modules)
        # Not saved, since it follows from the size of the image
        self.register_buffer("coordinates", grid_coordinates(*self.grid) if coordinates else None, persistent=False)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        assert isinstance(observations, th.Tensor), "DictTokenizer is for a Dict"
        features = self.trunk(observations.contiguous(memory_format=self.memory_format))  # [B, d, rows, columns]
        regions = features.flatten(2).transpose(1, 2)
        if self.coordinates is None:
            return regions
        return th.cat((regions, self.coordinates.expand(len(regions), -1, -1)), dim=-1)


class EntityTokenizer(Tokenizer):
    """
    A token for each row of a matrix ``[entities, features]``, all projected by the same weights.

    :param space: a Box with two axes
    :param token_size: size d of a token
    """

    def __init__(self, space: spaces.Box, token_size: int = 64) -> None:
        super().__init__(space.shape[0], token_size)
        self.projection = nn.Linear(space.shape[1], token_size)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        return self.projection(observations)


class FeatureTokenizer(Tokenizer):
    """
    A token for each entry of a vector: its value times a learned vector, plus a learned vector that identifies the entry.

    Gorishniy et al. (2021), section 3.3.

    :param space: any space that SB3 flattens to a vector
    :param token_size: size d of a token
    """

    def __init__(self, space: spaces.Space, token_size: int = 64) -> None:
        super().__init__(get_flattened_obs_dim(space), token_size)
        self.weight = nn.Parameter(th.empty(self.n_tokens, token_size))
        self.bias = nn.Parameter(th.empty(self.n_tokens, token_size))
        for parameter in (self.weight, self.bias):
            # Within 1 / sqrt(d), as in the authors' implementation
            nn.init.uniform_(parameter, -(token_size**-0.5), token_size**-0.5)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        assert isinstance(observations, th.Tensor), "DictTokenizer is for a Dict"
        return observations.flatten(1).unsqueeze(-1) * self.weight + self.bias  # [B, n, 1] * [n, d]


class DictTokenizer(FormerParameterNames, Tokenizer):
    """
    The tokens of all keys of a Dict, projected to one size and marked with the key that they come from.

    :param space: of images, matrices and vectors
    :param token_size: size d of a token
    :param mask_keys: for matrices with a varying number of entities: maps the key of a matrix ``[n, features]`` to the key of
        the vector ``[n]`` that is 1 on its real rows and 0 on padding. The vector has no tokens of its own; the tokens of
        keys that are not listed are always real.
    :param image_kwargs: further arguments of ``ImageTokenizer``
    :raises ValueError: if the space lacks a key of ``mask_keys``, or the matrix or the mask has the wrong shape
    """

    former_parameters: ClassVar[dict[str, str]] = {"tokens": "tokenizers"}

    def __init__(
        self,
        space: spaces.Dict,
        token_size: int = 64,
        mask_keys: Mapping[str, str] | None = None,
        **image_kwargs: object,
    ) -> None:
        mask_keys = dict(mask_keys or {})
        _check_mask_keys(space, mask_keys)
        tokenizers = {
            key: make_tokenizer(subspace, token_size, None, **image_kwargs)
            for key, subspace in space.spaces.items()
            if key not in mask_keys.values()
        }
        super().__init__(sum(tokenizer.n_tokens for tokenizer in tokenizers.values()), token_size)
        self.mask_keys = mask_keys
        self.sizes = {key: tokenizer.n_tokens for key, tokenizer in tokenizers.items()}
        self.tokenizers = nn.ModuleDict(tokenizers)
        self.projections = nn.ModuleDict(
            {key: nn.Linear(tokenizer.token_size, token_size) for key, tokenizer in tokenizers.items()}
        )

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        assert isinstance(observations, dict), "the other tokenizers are for tensors"
        parts = []
        for key, tokenizer in self.tokenizers.items():
            entry = observations[key]
            if key in self.mask_keys:
                # Attention gives padding a weight of 0, but 0 times an infinity or a NaN in it would be NaN
                entry = entry.masked_fill(~self._real(observations, key).unsqueeze(-1), 0.0)
            parts.append(self.projections[key](tokenizer(entry)))  # the projection's bias marks the key
        return th.cat(parts, dim=1)

    def mask(self, observations: PyTorchObs) -> th.Tensor | None:
        if not self.mask_keys:
            return None
        assert isinstance(observations, dict), "the other tokenizers have no mask"
        return th.cat([self._real(observations, key) for key in self.sizes], dim=1)

    def _real(self, observations: dict[str, th.Tensor], key: str) -> th.Tensor:
        """Mask of the real tokens of a key, bool ``[B, n]``."""
        if key in self.mask_keys:
            return observations[self.mask_keys[key]] > 0.5  # SB3's preprocessing makes it float
        entry = observations[key]
        return th.ones(len(entry), self.sizes[key], dtype=th.bool, device=entry.device)


def make_tokenizer(
    space: spaces.Space, token_size: int = 64, mask_keys: Mapping[str, str] | None = None, **image_kwargs: object
) -> Tokenizer:
    """
    Choose the tokenizer for a space: regions of an image, rows of a matrix, entries of anything else, and all keys of a Dict.

    :param space: Observation space, images channels first
    :param token_size: size d of a token; the tokens of an image have the size of the trunk's last convolution instead, plus 2
        for the coordinates
    :param mask_keys: as for ``DictTokenizer``
    :param image_kwargs: further arguments of ``ImageTokenizer``
    :return: the tokenizer
    :raises ValueError: if ``mask_keys`` are given and the space is not a Dict, or an argument is out of range
    """
    check_whole("token_size", token_size, at_least=1)
    if mask_keys is not None and not isinstance(mask_keys, Mapping):
        raise ValueError(f'mask_keys={mask_keys!r} must map keys of matrices to keys of masks: {{"units": "units_mask"}}.')
    if isinstance(space, spaces.Dict):
        return DictTokenizer(space, token_size, mask_keys, **image_kwargs)
    if mask_keys:
        raise ValueError(f"mask_keys={mask_keys} name entries of a Dict, but observation_space={space}; put both into a Dict.")
    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        return ImageTokenizer(space, **image_kwargs)  # type: ignore[arg-type]
    if isinstance(space, spaces.Box) and len(space.shape) == 2:
        return EntityTokenizer(space, token_size)
    return FeatureTokenizer(space, token_size)


def _check_mask_keys(space: spaces.Dict, mask_keys: Mapping[str, str]) -> None:
    for key, mask_key in mask_keys.items():
        for name in (key, mask_key):
            if name not in space.spaces:
                raise ValueError(f"mask_keys={mask_keys}: there is no key {name!r}; choose from {sorted(space.spaces)}.")
        matrix, mask = space[key], space[mask_key]
        if not (isinstance(matrix, spaces.Box) and len(matrix.shape) == 2):
            raise ValueError(f"mask_keys={mask_keys}: {key!r} is {matrix}; only rows of a Box with two axes can be masked.")
        if not isinstance(mask, spaces.Box | spaces.MultiBinary) or mask.shape != matrix.shape[:1]:
            raise ValueError(
                f"mask_keys={mask_keys}: {mask_key!r} is {mask}, which does not fit the {matrix.shape[0]} rows of {key!r}; "
                f"make it MultiBinary({matrix.shape[0]}), or a Box of that shape."
            )


def _layers(trunk: str | Trunk) -> Trunk:
    if isinstance(trunk, str):
        if trunk not in TRUNKS:
            raise ValueError(f"trunk={trunk!r} is unknown; choose one of {sorted(TRUNKS)}, or give convolutions as a list.")
        return TRUNKS[trunk]
    if not (isinstance(trunk, list | tuple) and trunk and all(map(_is_layer, trunk))):
        raise ValueError(f"trunk={trunk!r} must be a list of (channels, kernel size, stride), each at least 1.")
    return trunk


def _is_layer(layer: Any) -> bool:
    return (
        isinstance(layer, list | tuple) and len(layer) == 3 and all(isinstance(n, int | np.integer) and n >= 1 for n in layer)
    )


def _grid_and_field(name: str | Trunk, layers: Trunk, size: tuple[int, ...]) -> tuple[tuple[int, int], ReceptiveField]:
    """The grid of regions that the convolutions make of an image, and the receptive field of a region."""
    height, width = size
    # Of one position of a convolution's output: the size of its field and the distance to the next position, in pixels
    field, distance = 1, 1
    for i, (_, kernel_size, stride) in enumerate(layers):
        if min(height, width) < kernel_size:
            raise ValueError(
                f"trunk={name!r} does not fit an image of {size[0]} x {size[1]} pixels: its convolution {i} needs "
                f"{kernel_size} x {kernel_size} and gets {height} x {width}; give a smaller (channels, kernel size, "
                "stride), or an image with its channels first."
            )
        height, width = ((length - kernel_size) // stride + 1 for length in (height, width))
        field += (kernel_size - 1) * distance
        distance *= stride
    return (height, width), ReceptiveField(field, distance)
