"""Projections to pixels: weights of regions to maps, observations to RGB images, and maps over images."""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize

from sb3_attn.extractors.tokenizers import ReceptiveField

#: Of heat maps: brighter is more; readable in grey and for the colour-blind
COLORMAP = "inferno"
#: Of overlays, RGBA. Orange is more and blue is less; in between the image shows through as it is
MORE, LESS = (1.0, 0.55, 0.0), (0.25, 0.45, 1.0)
RATIO_COLORS = LinearSegmentedColormap.from_list(
    "ratio", [(0, (*LESS, 0.35)), (0.5, (*LESS, 0)), (0.5, (*MORE, 0)), (1, (*MORE, 0.65))]
)
AMOUNT_COLORS = LinearSegmentedColormap.from_list("amount", [(*MORE, 0), (*MORE, 0.65)])
#: The smallest upper end of a scale of ratios, so that noise around even attention hardly shows
LEAST_RATIO = 2.0
#: The smallest upper end of a scale, so that an image or a map of zeros is not divided by 0
TINY = 1e-12


def pixel_map(
    weights: np.ndarray,
    grid: tuple[int, int],
    receptive_field: ReceptiveField,
    image_size: tuple[int, int],
    reduce: str = "sum",
) -> np.ndarray:
    """
    Give each pixel the weights of the regions that see it.

    Region (i, j) sees the pixels [i * stride, i * stride + size) x [j * stride, j * stride + size). The sum is the share of
    the attention that can have seen a pixel: every region looks the same, wherever it lies, but where receptive fields
    overlap, even attention looks brighter in the middle of an image, which more regions see than its edges. The mean turns
    even attention into an even map, but a region in a corner, which no other region overlaps, looks brighter than one in
    the middle.

    :param weights: ``[..., n]``, the regions row by row
    :param grid: rows and columns of regions
    :param receptive_field: size and stride of what one region sees, in pixels
    :param image_size: height and width of the image
    :param reduce: ``"sum"`` or ``"mean"`` over the regions that see a pixel; 0 where none does
    :return: ``[..., height, width]``
    :raises ValueError: if ``reduce`` is neither
    """
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce={reduce!r} is unknown; choose 'sum' or 'mean'.")
    # A region sees a rectangle, so both axes are independent: two small products replace a loop over the regions
    rows, columns = (coverage(n, receptive_field, length) for n, length in zip(grid, image_size, strict=True))
    summed = rows.T @ weights.reshape(*weights.shape[:-1], *grid) @ columns  # [..., height, width]
    if reduce == "sum":
        return summed
    return summed / np.maximum(np.outer(rows.sum(axis=0), columns.sum(axis=0)), 1.0)


def coverage(n: int, receptive_field: ReceptiveField, length: int) -> np.ndarray:
    """
    The pixels that each region sees along one axis: 1 or 0, ``[n, length]``.

    :param n: number of regions
    :param receptive_field: size and stride of what one region sees, in pixels
    :param length: number of pixels
    """
    starts = np.arange(n)[:, None] * receptive_field.stride
    pixels = np.arange(length)
    return ((pixels >= starts) & (pixels < starts + receptive_field.size)).astype(np.float64)


def to_rgb(image: np.ndarray, n_stack: int = 1) -> np.ndarray:
    """
    Turn an observed image into one that can be shown: the newest frame of a stack, in colour if it has three channels.

    :param image: channels first, ``[C, H, W]``; floats are scaled so that the smallest becomes 0 and the largest 255
    :param n_stack: number of frames in it
    :return: RGB, uint8 ``[H, W, 3]``
    """
    channels = len(image) // n_stack if len(image) % n_stack == 0 else len(image)
    frame = image[-channels:]
    # A multiple of three is RGB, and if it is a larger one, the observation itself is a stack; anything else is shown in grey
    frame = frame[-3:] if channels % 3 == 0 else frame[-1:].repeat(3, axis=0)
    frame = frame.transpose(1, 2, 0)
    if frame.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        frame = (255 * (frame - low) / max(high - low, TINY)).astype(np.uint8)
    return np.ascontiguousarray(frame)


def ratio_scale(largest: float) -> ScalarMappable:
    """
    The colours of ratios to even attention: 1 is transparent, and so is NaN; twice as much is as strong as half as much.

    :param largest: the ratio that gets the strongest colour, at least ``LEAST_RATIO``; the other end is its inverse
    """
    largest = max(largest, LEAST_RATIO)
    return ScalarMappable(LogNorm(1 / largest, largest, clip=True), RATIO_COLORS)


def amount_scale(largest: float) -> ScalarMappable:
    """
    The colours of amounts: 0 is transparent.

    :param largest: the amount that gets the strongest colour
    """
    return ScalarMappable(Normalize(0, max(largest, TINY), clip=True), AMOUNT_COLORS)


def overlay(image: np.ndarray, values: np.ndarray, scale: ScalarMappable | None = None) -> np.ndarray:
    """
    Lay a map over an image, which keeps its own colours where the scale is transparent.

    :param image: RGB, uint8 ``[H, W, 3]``
    :param values: at least 0, ``[H, W]``
    :param scale: as returned by ``ratio_scale`` or ``amount_scale``; ``None`` takes amounts up to the largest value
    :return: RGB, uint8 ``[H, W, 3]``
    """
    colours = (amount_scale(float(values.max())) if scale is None else scale).to_rgba(values)
    opacity = colours[..., 3:]
    return ((1 - opacity) * image + 255 * opacity * colours[..., :3]).round().astype(np.uint8)
