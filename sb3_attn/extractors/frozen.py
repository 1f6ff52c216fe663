"""Frozen features of images: computed once for each image, so that a memory over images costs no convolutions in training."""

import pathlib
from collections.abc import Sequence
from operator import itemgetter
from pickle import UnpicklingError
from typing import cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import nn

from sb3_attn.common.checks import check_whole
from sb3_attn.common.files import replace_on_success
from sb3_attn.common.observations import map_obs
from sb3_attn.memory.core import check_sizes

__all__ = ["FrozenEncoder", "VecFrozenFeatures"]

#: The key of the features in the observations of ``VecFrozenFeatures``, and of the image if the observation was no Dict
FEATURES_KEY, IMAGE_KEY = "frozen_features", "image"

#: Number of images that are encoded together
BATCH_SIZE = 256


class FrozenEncoder(nn.Module):
    """
    Images -> network -> features with mean 0 and variance 1, without gradient.

    ``random`` and ``autoencoder`` make one for an environment; the constructor takes a network of one's own, such as one of
    torchvision's.

    :param space: of the images as the environment has them, channels first or last
    :param network: maps ``[B, C, H, W]`` between 0 and 1 to ``[B, features_dim]``
    :param features_dim: number of features
    :raises ValueError: if the space is not one of images
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, space: spaces.Box, network: nn.Module, features_dim: int) -> None:
        super().__init__()
        check_sizes(self, features_dim=features_dim)
        _image_key(space)
        self.space = space
        self.network = network.eval().requires_grad_(False)
        self.features_dim = features_dim
        self.is_nature_cnn = False
        self.register_buffer("mean", th.zeros(features_dim))
        self.register_buffer("std", th.ones(features_dim))

    @classmethod
    def random(cls, env: VecEnv, features_dim: int = 256, n_images: int = 2000, seed: int = 0) -> "FrozenEncoder":
        """
        Make one with random weights: ``NatureCNN`` without its last ReLU, standardised on images of random actions.

        :param env: the environment, which is reset
        :param features_dim: number of features
        :param n_images: number of images
        :param seed: of the weights and the actions
        :return: the encoder
        """
        check_whole("n_images", n_images, at_least=2)
        encoder = cls._nature_cnn(_image_space(env.observation_space), features_dim, seed)
        encoder.standardise(collect_images(env, n_images, seed))
        return encoder

    @classmethod
    def autoencoder(
        cls,
        env: VecEnv,
        features_dim: int = 256,
        n_images: int = 10_000,
        n_epochs: int = 5,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> "FrozenEncoder":
        """
        Train one on images of random actions: ``NatureCNN`` without its last ReLU, from whose features a decoder draws the
        image again.

        The loss is the squared error of each pixel, divided by the pixel's variance, so that the parts of an image that change
        count, however small they are.

        :param env: the environment, which is reset
        :param features_dim: number of features
        :param n_images: number of images
        :param n_epochs: number of passes over them
        :param batch_size: number of images in a gradient update
        :param learning_rate: The learning rate
        :param seed: of the weights and the actions
        :return: the encoder, standardised on the same images
        """
        for name, value, least in (("n_images", n_images, 2), ("n_epochs", n_epochs, 1), ("batch_size", batch_size, 1)):
            check_whole(name, value, at_least=least)
        encoder = cls._nature_cnn(_image_space(env.observation_space), features_dim, seed)
        images = collect_images(env, n_images, seed)
        pixels = encoder.preprocess(images[:1000])
        scale = pixels.std(dim=0).clamp(min=0.05)  # the variance of a pixel that hardly ever changes would be all noise
        with th.random.fork_rng(devices=[]):
            th.manual_seed(seed)
            decoder = Decoder(features_dim, pixels.shape[1:])
        encoder.network.train().requires_grad_(True)
        optimizer = th.optim.Adam([*encoder.network.parameters(), *decoder.parameters()], lr=learning_rate)
        rng = np.random.default_rng(seed)
        for _ in range(n_epochs):
            for rows in np.array_split(rng.permutation(n_images), max(n_images // batch_size, 1)):
                pixels = encoder.preprocess(images[rows])
                loss = ((decoder(encoder.network(pixels)) - pixels) / scale).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        encoder.network.eval().requires_grad_(False)
        encoder.standardise(images)
        return encoder

    @classmethod
    def _nature_cnn(cls, space: spaces.Box, features_dim: int, seed: int = 0) -> "FrozenEncoder":
        shape = space.shape if is_image_space_channels_first(space) else (space.shape[2], *space.shape[:2])
        with th.random.fork_rng(devices=[]):
            th.manual_seed(seed)
            nature_cnn = NatureCNN(spaces.Box(0, 255, shape, np.uint8), features_dim)
        # Without the ReLU at the end, which would leave half of the features
        encoder = cls(space, nn.Sequential(nature_cnn.cnn, nature_cnn.linear[0]), features_dim)
        encoder.is_nature_cnn = True
        return encoder

    def preprocess(self, images: np.ndarray) -> th.Tensor:
        """
        Turn images into inputs of the network.

        :param images: uint8, as the environment has them, ``[B, ...]``
        :return: ``[B, C, H, W]``, between 0 and 1
        """
        pixels = th.as_tensor(images)
        return (pixels if is_image_space_channels_first(self.space) else pixels.permute(0, 3, 1, 2)).float() / 255

    def standardise(self, images: np.ndarray) -> None:
        """
        Give the features mean 0 and variance 1 over these images; a feature that does not differ among them becomes 0.

        :param images: ``[n, ...]``
        """
        self.mean.zero_()
        self.std.fill_(1.0)
        features = np.concatenate([self(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)])
        std = th.as_tensor(features.std(axis=0))
        self.mean.copy_(th.as_tensor(features.mean(axis=0)))
        self.std.copy_(th.where(std > 1e-6, std, th.inf))

    @th.no_grad()
    def forward(self, images: np.ndarray) -> np.ndarray:
        """
        Encode images.

        :param images: uint8, as the environment has them, ``[B, ...]``
        :return: float32, ``[B, features_dim]``
        """
        return ((self.network(self.preprocess(images)) - self.mean) / self.std).numpy()

    def save(self, path: str | pathlib.Path) -> None:
        """
        Save an encoder that ``random`` or ``autoencoder`` made.

        :param path: the file
        :raises ValueError: if the network is one's own, which this class could not build again
        """
        if not self.is_nature_cnn:
            raise ValueError(f"network={type(self.network).__name__} is one's own; save its parameters with torch.save.")
        data = {"shape": list(self.space.shape), "features_dim": self.features_dim, "state_dict": self.state_dict()}
        with replace_on_success(path, suffix="pt") as temporary:
            th.save(data, temporary)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "FrozenEncoder":
        """
        Load an encoder that ``save`` has written. The file holds numbers only: loading it runs no code.

        :param path: the file
        :return: the encoder
        :raises ValueError: if ``save`` has not written it
        """
        path = pathlib.Path(path)
        try:
            data = th.load(path if path.suffix else path.with_suffix(".pt"), map_location="cpu", weights_only=True)
            encoder = cls._nature_cnn(spaces.Box(0, 255, tuple(data["shape"]), np.uint8), data["features_dim"])
            encoder.load_state_dict(data["state_dict"])
        except (UnpicklingError, EOFError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"path={path} is not an encoder that save() has written; give another file.") from error
        return encoder


class Decoder(nn.Module):
    """
    Features -> linear layer -> three transposed convolutions -> image.

    :param features_dim: number of features
    :param shape: of the images, ``[C, H, W]``
    """

    def __init__(self, features_dim: int, shape: Sequence[int]) -> None:
        super().__init__()
        n_channels, *self.size = shape
        rows, columns = (-(-n // 8) for n in self.size)  # rounded up: three layers of stride 2 make it 8 times as large
        self.layers = nn.Sequential(
            nn.Linear(features_dim, 64 * rows * columns),
            nn.ReLU(),
            nn.Unflatten(1, (64, rows, columns)),
            nn.ConvTranspose2d(64, 64, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, n_channels, kernel_size=4, stride=2, padding=1),
        )

    def forward(self, features: th.Tensor) -> th.Tensor:
        """
        Draw images.

        :param features: ``[B, features_dim]``
        :return: ``[B, C, H, W]``
        """
        return self.layers(features)[..., : self.size[0], : self.size[1]]


class VecFrozenFeatures(VecEnvWrapper):
    """
    Add an image's frozen features to the observation, for ``FrozenFeaturesPolicy``.

    An image becomes a Dict with the keys ``"image"`` and ``"frozen_features"``; a Dict with one image gets the latter. The
    features are float16, which halves their room in the replay. Wrap the environments of training and of evaluation with the
    same encoder.

    :param venv: vectorised environments
    :param encoder: the encoder, or the path of a saved one
    :raises ValueError: if the observations do not have exactly one image, or it is not one that the encoder takes
    """

    def __init__(self, venv: VecEnv, encoder: FrozenEncoder | str | pathlib.Path) -> None:
        self.encoder = encoder if isinstance(encoder, FrozenEncoder) else FrozenEncoder.load(encoder)
        self.image_key, image = _image_key(venv.observation_space), _image_space(venv.observation_space)
        if image.shape != self.encoder.space.shape:
            raise ValueError(f"encoder is for images of shape {self.encoder.space.shape}, but venv has {image.shape}.")
        kept = dict(venv.observation_space) if isinstance(venv.observation_space, spaces.Dict) else {IMAGE_KEY: image}
        if FEATURES_KEY in kept:
            raise ValueError(f"venv already has observations with the key {FEATURES_KEY!r}; wrap it only once.")
        features = spaces.Box(-np.inf, np.inf, (self.encoder.features_dim,), np.float16)
        super().__init__(venv, spaces.Dict({**kept, FEATURES_KEY: features}))

    def _add_features(self, obs: VecEnvObs) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = obs if isinstance(obs, dict) else {IMAGE_KEY: cast(np.ndarray, obs)}
        return {**arrays, FEATURES_KEY: self.encoder(arrays[self.image_key]).astype(np.float16)}

    def reset(self) -> dict[str, np.ndarray]:
        return self._add_features(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if (last := info.get("terminal_observation")) is not None:  # whose Discrete entries may be Python ints
                with_features = self._add_features(map_obs(lambda array: np.asarray(array)[None], last))
                info["terminal_observation"] = map_obs(itemgetter(0), with_features)
        return self._add_features(obs), rewards, dones, infos


def collect_images(env: VecEnv, n_images: int, seed: int = 0) -> np.ndarray:
    """
    Take random actions and keep the images.

    :param env: the environment, which is reset
    :param n_images: number of images n
    :param seed: of the environment and of the actions
    :return: uint8, as the environment has them, ``[n, ...]``
    """
    key = _image_key(env.observation_space)
    env.seed(seed)
    env.action_space.seed(seed)
    obs: VecEnvObs = env.reset()
    images: list[np.ndarray] = []
    while len(images) * env.num_envs < n_images:
        images.append(obs[key] if isinstance(obs, dict) else cast(np.ndarray, obs))
        obs = env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))[0]
    return np.concatenate(images)[:n_images]


def _image_key(space: spaces.Space) -> str:
    """The key of the only image; ``IMAGE_KEY`` if observations are no Dict."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {IMAGE_KEY: space}
    keys = [key for key, part in parts.items() if is_image_space(part)]
    if len(keys) != 1:
        raise ValueError(f"observation_space={space} has {len(keys)} images; frozen features need exactly one, of uint8.")
    return keys[0]


def _image_space(space: spaces.Space) -> spaces.Box:
    """The space of the only image."""
    return cast(spaces.Box, space[_image_key(space)] if isinstance(space, spaces.Dict) else space)
