"""IMPALA's residual convolutions."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_attn.memory.core import check_sizes

__all__ = ["ImpalaCNN"]

#: Channels of the three stages
CHANNELS = (16, 32, 32)


class ResidualBlock(nn.Module):
    """
    x + conv(ReLU(conv(ReLU(x)))).

    :param n_channels: number C of channels
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(n_channels, n_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(n_channels, n_channels, kernel_size=3, padding=1),
        )

    def forward(self, images: th.Tensor) -> th.Tensor:
        """
        Compute the block.

        :param images: ``[B, C, H, W]``
        :return: ``[B, C, H, W]``
        """
        return images + self.layers(images)


class ImpalaCNN(BaseFeaturesExtractor):
    """
    Image -> three stages, each of a convolution, max pooling and two residual blocks -> max pooling -> linear layer.

    The large network of Espeholt et al. (2018), figure 3, https://arxiv.org/abs/1802.01561. Wider, and pooled at the end, it
    is what helped most in Beyond the Rainbow (Clark et al. 2024, https://arxiv.org/abs/2411.03820).

    :param observation_space: an image, channels first
    :param features_dim: Number of features extracted.
    :param width: factor by which there are more channels than 16, 32 and 32; Beyond the Rainbow has 2
    :param pool_size: side of the grid of parts whose maxima the linear layer gets, so that it does not grow with the image;
        where the last stage is smaller than that, or with ``None``, it gets all outputs
    :param normalized_image: as for SB3's ``NatureCNN``: treat every Box with three axes as an image
    :raises ValueError: if the observations are no images, or a size is not positive
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        features_dim: int = 256,
        width: int = 1,
        pool_size: int | None = 6,
        normalized_image: bool = False,
    ) -> None:
        check_sizes(self, features_dim=features_dim, width=width)
        super().__init__(observation_space, features_dim)
        if not is_image_space(observation_space, check_channels=False, normalized_image=normalized_image):
            raise ValueError(
                f"observation_space={observation_space} of ImpalaCNN is not an image; use it for uint8 images with three "
                "axes, or pass normalized_image=True for images of float32."
            )
        assert observation_space.shape is not None, "images have one"
        n_channels, rows, columns = observation_space.shape
        layers: list[nn.Module] = []
        for n_outputs in (width * n for n in CHANNELS):
            layers += [
                nn.Conv2d(n_channels, n_outputs, kernel_size=3, padding=1),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                ResidualBlock(n_outputs),
                ResidualBlock(n_outputs),
            ]
            n_channels = n_outputs
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        if pool_size is not None:
            check_sizes(self, pool_size=pool_size)
            rows, columns = min(rows, pool_size), min(columns, pool_size)
            layers.append(nn.AdaptiveMaxPool2d((rows, columns)))
        self.cnn = nn.Sequential(*layers, nn.ReLU(), nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(n_channels * rows * columns, features_dim), nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        Features.

        :param observations: ``[B, C, H, W]``, between 0 and 1
        :return: ``[B, features_dim]``
        """
        # The memory layout in which convolutions are fastest; it changes nothing else. An image of one channel has none of its
        # own, so there it begins behind the first convolution
        layout = th.channels_last
        images = self.cnn[0](observations.contiguous(memory_format=layout)).contiguous(memory_format=layout)
        return self.linear(self.cnn[1:](images))
