"""Occlusion saliency: the parts of an image that an action depends on, found by covering them."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_attn.common.checks import check_whole
from sb3_attn.extractors.tokenizers import ReceptiveField
from sb3_attn.viz.action_scores import action_scores
from sb3_attn.viz.projection import pixel_map
from sb3_attn.viz.recording import evaluation_mode


def occlusion_saliency(
    model: BaseAlgorithm,
    observation: Any,
    key: str | None = None,
    patch_size: int = 8,
    stride: int = 4,
    fill: str | float = "mean",
    state: Any = None,
    batch_size: int = 64,
    action: int | None = None,
) -> np.ndarray:
    """
    Measure how much the score of the chosen action changes when a patch of the image is covered.

    Zeiler and Fergus (2014), section 4.2; for agents Greydanus et al. (2018), who blur instead of covering. The score is
    the Q-value, or the logarithm of the action's probability.
    A patch covers all frames of a stack. A pixel gets the mean over the patches that cover it. Works with any model, with or
    without attention.

    :param model: with discrete actions
    :param observation: a single observation, as the policy gets it, without a batch axis; images channels first
    :param key: of the image, if the observation is a Dict; ``None`` takes its first image
    :param patch_size: side of a patch, in pixels
    :param stride: distance from one patch to the next, in pixels
    :param fill: ``"mean"`` (of each channel), ``"grey"`` (the middle of the space's range), or a value
    :param state: the memory of a recurrent model before the step, as returned by ``predict``
    :param batch_size: number of covered images to evaluate at once
    :param action: the chosen action; ``None`` takes the greedy one for the uncovered observation, as if all were valid
    :return: absolute changes, ``[H, W]``
    :raises ValueError: if there is no image, the patch does not fit, or the policy has no scores that are known here
    """
    key, space = _image_space(model, key)
    image = np.asarray(observation if key is None else observation[key])
    height, width = image.shape[1:]
    for name, number in (("patch_size", patch_size), ("stride", stride), ("batch_size", batch_size)):
        check_whole(name, number, at_least=1)
    if patch_size > min(height, width):
        raise ValueError(f"patch_size={patch_size} with stride={stride} does not fit an image of {height} x {width} pixels.")
    # All patches in one batch of images: the network is then called a few times instead of once for each patch
    covered, grid = _cover(image, patch_size, stride, _fill_values(image, space, fill))
    with evaluation_mode(model):
        scores = action_scores(model, _batch(observation, key, image[None]), state)[0]
        action = int(scores.argmax() if action is None else action)
        if not 0 <= action < len(scores):
            raise ValueError(f"action={action} is none of the {len(scores)} actions, which are numbered from 0.")
        changed = [
            action_scores(model, _batch(observation, key, covered[i : i + batch_size]), state)[:, action]
            for i in range(0, len(covered), batch_size)
        ]
    changes = np.abs(np.concatenate(changed) - scores[action])
    return pixel_map(changes, grid, ReceptiveField(patch_size, stride), (height, width), reduce="mean")


def image_key(space: spaces.Space) -> tuple[bool, str | None]:
    """
    Find the first image in a space.

    :param space: Observation space
    :return: True if there is one, and its key; the key is ``None`` if the space itself is the image
    """
    if isinstance(space, spaces.Dict):
        keys = [name for name, part in space.spaces.items() if image_key(part)[0]]
        return bool(keys), keys[0] if keys else None
    return isinstance(space, spaces.Box) and len(space.shape) == 3, None


def _image_space(model: BaseAlgorithm, key: str | None) -> tuple[str | None, spaces.Box]:
    space: Any = model.observation_space
    found, first_key = image_key(space)
    if key is not None and isinstance(space, spaces.Dict) and key in space.spaces:
        found, first_key = image_key(space[key])[0], key
    if not found or (key is not None and key != first_key):
        raise ValueError(f"key={key!r}: there is no such image in the observations {space}; occlusion covers images only.")
    return first_key, space if first_key is None else space[first_key]


def _fill_values(image: np.ndarray, space: spaces.Box, fill: str | float) -> np.ndarray:
    """The value that fills a patch, for each channel, ``[C, 1, 1]``."""
    if fill == "mean":
        values = image.mean(axis=(1, 2))
    elif fill == "grey":
        values = (space.low.astype(np.float64).min(axis=(1, 2)) + space.high.astype(np.float64).max(axis=(1, 2))) / 2
    elif isinstance(fill, str):
        raise ValueError(f"fill={fill!r} is unknown; choose 'mean', 'grey' or a value.")
    else:
        low, high = space.low.min(), space.high.max()
        if not low <= fill <= high or (np.issubdtype(image.dtype, np.integer) and fill % 1 != 0):
            raise ValueError(f"fill={fill} must be a value of {image.dtype} images between {low} and {high}.")
        values = np.full(len(image), fill)
    return values.astype(image.dtype)[:, None, None]


def _cover(image: np.ndarray, patch_size: int, stride: int, values: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Copies of an image, each with another patch covered, ``[rows * columns, C, H, W]``, and the grid (rows, columns)."""
    rows, columns = ((length - patch_size) // stride + 1 for length in image.shape[1:])
    covered = np.repeat(image[None], rows * columns, axis=0)
    for i in range(rows):
        for j in range(columns):
            y, x = i * stride, j * stride
            covered[i * columns + j, :, y : y + patch_size, x : x + patch_size] = values
    return covered, (rows, columns)


def _batch(observation: Any, key: str | None, images: np.ndarray) -> Any:
    """One observation for each image; all other parts of a Dict are repeated."""
    if key is None:
        return images
    parts = {name: np.repeat(np.asarray(value)[None], len(images), axis=0) for name, value in observation.items()}
    return {**parts, key: images}
