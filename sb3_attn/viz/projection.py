"""From weights of regions to pixels, and from observations to pictures."""

import numpy as np
from matplotlib import colormaps

from sb3_attn.extractors.tokenizers import ReceptiveField

#: Bright is much; it stays readable in grey and for the colour-blind
COLORMAP = "inferno"


def pixel_map(
    weights: np.ndarray,
    grid: tuple[int, int],
    receptive_field: ReceptiveField,
    image_size: tuple[int, int],
    reduce: str = "sum",
) -> np.ndarray:
    """
    Give each pixel the weights of the regions that see it.

    Region (i, j) sees the pixels [i * stride, i * stride + size) x [j * stride, j * stride + size). The
    sum is the share of the attention that can have seen a pixel: a region looks the same wherever it lies, but where fields
    overlap, even attention is brighter in the middle of an image, which more regions see than its edges. The mean makes even
    attention an even map, but a region in a corner, which no other sees, brighter than one in the middle.

    :param weights: ``[..., n]``, the regions row by row
    :param grid: rows and columns of regions
    :param receptive_field: size and stride of what a region sees
    :param image_size: height and width of the image
    :param reduce: ``"sum"`` or ``"mean"`` over the regions that see a pixel; 0 where none does
    :return: ``[..., height, width]``
    :raises ValueError: if ``reduce`` is neither
    """
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce={reduce!r} is unknown; choose 'sum' or 'mean'.")
    rows, columns = (coverage(n, receptive_field, length) for n, length in zip(grid, image_size, strict=True))
    summed = rows.T @ weights.reshape(*weights.shape[:-1], *grid) @ columns  # [..., height, width]
    if reduce == "sum":
        return summed
    return summed / np.maximum(np.outer(rows.sum(axis=0), columns.sum(axis=0)), 1.0)


def coverage(n: int, receptive_field: ReceptiveField, length: int) -> np.ndarray:
    """
    Which pixels the regions see along one axis: 1 or 0, ``[n, length]``.

    :param n: number of regions
    :param receptive_field: size and stride of what a region sees
    :param length: number of pixels
    """
    starts = np.arange(n)[:, None] * receptive_field.stride
    pixels = np.arange(length)
    return ((pixels >= starts) & (pixels < starts + receptive_field.size)).astype(np.float64)


def picture(image: np.ndarray, n_stack: int = 1) -> np.ndarray:
    """
    An observed image as one to look at: the newest frame of a stack, in colour if it has three channels.

    :param image: channels first, ``[C, H, W]``; floats are stretched from their least to their largest value
    :param n_stack: number of frames in it
    :return: RGB, uint8 ``[H, W, 3]``
    """
    channels = len(image) // n_stack if len(image) % n_stack == 0 else len(image)
    frame = image[-channels:]
    frame = frame[-3:] if channels % 3 == 0 else frame[-1:].repeat(3, axis=0)  # of several the newest
    frame = frame.transpose(1, 2, 0)
    if frame.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        frame = (255 * (frame - low) / max(high - low, 1e-12)).astype(np.uint8)
    return np.ascontiguousarray(frame)


def overlay(image: np.ndarray, values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """
    A picture in grey with a map over it in colour: the larger the value, the less of the picture shows through.

    :param image: RGB, uint8 ``[H, W, 3]``
    :param values: at least 0, ``[H, W]``
    :param largest: the value that gets the brightest colour; ``None`` means the largest there is
    :return: RGB, uint8 ``[H, W, 3]``
    """
    largest = float(values.max()) if largest is None else largest
    strength = np.clip(values / max(largest, 1e-12), 0.0, 1.0)
    grey = image.astype(np.float64).mean(axis=-1, keepdims=True)
    colour = 255 * colormaps[COLORMAP](strength)[..., :3]
    opacity = (0.15 + 0.6 * strength)[..., None]
    return ((1 - opacity) * grey + opacity * colour).astype(np.uint8)
