"""What attention is over: observations as sets of tokens."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_attn.attention.functional import grid_coordinates
from sb3_attn.common.former_names import FormerParameterNames

#: A convolution each: channels, kernel size, stride
Trunk = Sequence[tuple[int, int, int]]

TRUNKS: dict[str, Trunk] = {
    # Mnih et al. (2015): 84 x 84 pixels become 7 x 7 regions that overlap
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
    # Regions of 8 x 8 pixels that do not overlap: 64 x 64 pixels become 8 x 8 regions
    "patches": ((512, 8, 8),),
}


class ReceptiveField(NamedTuple):
    """Which pixels a region of an image sees; the same along both axes."""

    #: Pixels across
    size: int
    #: Pixels from one region to the next
    stride: int


class Tokenizer(nn.Module, ABC):
    """
    Turns observations, as SB3's preprocessing leaves them, into tokens.

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
        Which tokens are real.

        :param observations: ``[B, ...]``
        :return: True on real tokens, False on padding, bool ``[B, n]``; ``None`` if all are real always
        """
        return None


class ImageTokenizer(Tokenizer):
    """
    The regions of an image: the positions of a convolution's output, row by row.

    :param space: channels first, ``[C, H, W]``
    :param trunk: key of ``TRUNKS``, or the convolutions themselves
    :param coordinates: append the two coordinates of each region; attention loses *where* without them
    :param channels_last: lay the images out as the convolutions like it, which changes only the speed. The weights stay
        as they are: SB3's orthogonal initialisation refuses any other layout.
    :raises ValueError: if the trunk is unknown or does not fit the image
    """

    coordinates: th.Tensor | None

    def __init__(
        self, space: spaces.Box, trunk: str | Trunk = "nature", coordinates: bool = True, channels_last: bool = True
    ) -> None:
        layers = _trunk(trunk)
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
        # Not a buffer that is saved: it follows from the image's size
        self.register_buffer("coordinates", grid_coordinates(*self.grid) if coordinates else None, persistent=False)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        assert isinstance(observations, th.Tensor), "a Dict has tokens of its own"
        regions = self.trunk(observations.contiguous(memory_format=self.memory_format)).flatten(2).transpose(1, 2)
        if self.coordinates is None:
            return regions
        return th.cat((regions, self.coordinates.expand(len(regions), -1, -1)), dim=-1)


class EntityTokenizer(Tokenizer):
    """
    A token for each row of a matrix ``[entities, features]``; all rows are treated alike.

    :param space: of two dimensions
    :param token_size: size d of a token
    """

    def __init__(self, space: spaces.Box, token_size: int = 64) -> None:
        super().__init__(space.shape[0], token_size)
        self.projection = nn.Linear(space.shape[1], token_size)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        return self.projection(observations)


class FeatureTokenizer(Tokenizer):
    """
    A token for each entry of a vector: its value times a learned vector, plus another that says which entry it is.

    Gorishniy et al. (2021), section 3.3.

    :param space: any space that SB3 flattens to a vector
    :param token_size: size d of a token
    """

    def __init__(self, space: spaces.Space, token_size: int = 64) -> None:
        super().__init__(get_flattened_obs_dim(space), token_size)
        self.weight = nn.Parameter(th.empty(self.n_tokens, token_size))
        self.bias = nn.Parameter(th.empty(self.n_tokens, token_size))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(token_size**-0.5), token_size**-0.5)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        assert isinstance(observations, th.Tensor), "a Dict has tokens of its own"
        return observations.flatten(1).unsqueeze(-1) * self.weight + self.bias


class DictTokenizer(FormerParameterNames, Tokenizer):
    """
    The tokens of all entries of a Dict, brought to one size and marked with the key that they come from.

    :param space: of images, matrices and vectors
    :param token_size: size d of a token
    :param mask_keys: for matrices with a changing number of entities: from the key of a matrix ``[n, features]`` to the key
        of the vector ``[n]`` that is 1 on its real rows and 0 on padding. The vector has no tokens of its own; entries
        that are not in here are real always.
    :param image_kwargs: further arguments of ``ImageTokenizer``
    :raises ValueError: if a key of ``mask_keys`` is missing, or what it stands for does not fit
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
        assert isinstance(observations, dict), "others have tokens of their own"
        parts = []
        for key, tokenizer in self.tokenizers.items():
            entry = observations[key]
            if key in self.mask_keys:
                # A weight of 0 is not enough: times what may lie in padding, it can be NaN
                entry = entry.masked_fill(~self._real(observations, key).unsqueeze(-1), 0.0)
            parts.append(self.projections[key](tokenizer(entry)))  # the bias of a key's projection is its mark
        return th.cat(parts, dim=1)

    def mask(self, observations: PyTorchObs) -> th.Tensor | None:
        if not self.mask_keys:
            return None
        assert isinstance(observations, dict), "others have no mask"
        return th.cat([self._real(observations, key) for key in self.sizes], dim=1)

    def _real(self, observations: dict[str, th.Tensor], key: str) -> th.Tensor:
        """Which tokens of an entry are real, bool ``[B, n]``."""
        if key in self.mask_keys:
            return observations[self.mask_keys[key]] > 0.5  # SB3 has made floats of it
        entry = observations[key]
        return th.ones(len(entry), self.sizes[key], dtype=th.bool, device=entry.device)


def make_tokenizer(
    space: spaces.Space, token_size: int = 64, mask_keys: Mapping[str, str] | None = None, **image_kwargs: object
) -> Tokenizer:
    """
    Tokens for a space: regions of an image, rows of a matrix, entries of anything else, and all of them for a Dict.

    :param space: Observation space, images channels first
    :param token_size: size d of a token; regions are as wide as the trunk's last convolution (and coordinates) instead
    :param mask_keys: as for ``DictTokenizer``
    :param image_kwargs: further arguments of ``ImageTokenizer``
    :return: the module that makes them
    :raises ValueError: if ``mask_keys`` are given for anything but a Dict
    """
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
            raise ValueError(f"mask_keys={mask_keys}: {key!r} is {matrix}; only the rows of a matrix can be masked.")
        if not isinstance(mask, spaces.Box | spaces.MultiBinary) or mask.shape != matrix.shape[:1]:
            raise ValueError(
                f"mask_keys={mask_keys}: {mask_key!r} is {mask}, which does not fit the {matrix.shape[0]} rows of {key!r}; "
                f"make it MultiBinary({matrix.shape[0]}), or a Box of that shape."
            )


def _trunk(trunk: str | Trunk) -> Trunk:
    if not isinstance(trunk, str):
        return trunk
    if trunk not in TRUNKS:
        raise ValueError(f"trunk={trunk!r} is unknown; choose one of {sorted(TRUNKS)}, or give (channels, kernel, stride)s.")
    return TRUNKS[trunk]


def _grid_and_field(name: str | Trunk, layers: Trunk, size: tuple[int, ...]) -> tuple[tuple[int, int], ReceptiveField]:
    """The grid that is left of an image, and what each of its regions sees."""
    height, width = size
    field, jump = 1, 1
    for i, (_, kernel_size, stride) in enumerate(layers):
        if min(height, width) < kernel_size:
            raise ValueError(
                f"trunk={name!r} does not fit an image of {size[0]} x {size[1]} pixels: its convolution {i} needs "
                f"{kernel_size} x {kernel_size} and gets {height} x {width}; give other (channels, kernel, stride)s, or "
                "images channels first."
            )
        height, width = ((length - kernel_size) // stride + 1 for length in (height, width))
        field += (kernel_size - 1) * jump
        jump *= stride
    return (height, width), ReceptiveField(field, jump)
