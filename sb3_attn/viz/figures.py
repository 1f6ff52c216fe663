"""Figures made without pyplot, so that they need no display and none stays open."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure

from sb3_attn.viz.projection import amount_scale, overlay, pixel_map, ratio_scale, to_rgb
from sb3_attn.viz.recorded_weights import ImageGrid, RecordedWeights, TokenPart
from sb3_attn.viz.recording import Episode

DPI = 100


def new_figure(width: float, height: float) -> Figure:
    """
    An empty figure with a canvas of its own.

    :param width: in inches of 100 pixels; rounded to an even number of pixels, since videos need that
    :param height: in inches; rounded likewise
    """
    width, height = (2 * round(length * DPI / 2) / DPI for length in (width, height))
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """
    Write a figure to a file.

    :param figure: the figure
    :param path: its suffix sets the format: png, pdf or svg
    :return: the path
    """
    figure.savefig(path)
    return Path(path)


def show_image(axes: Axes, image: np.ndarray, title: str) -> None:
    """
    Show an image with sharp pixels.

    :param axes: the axes to draw on
    :param image: RGB, uint8 ``[H, W, 3]``
    :param title: the title above it
    """
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])


def color_bar(
    figure: Figure,
    axes: Sequence[Axes],
    scale: ScalarMappable,
    label: str,
    extend: str = "neither",
    even: float | None = None,
    **options: Any,
) -> Colorbar:
    """
    Add the scale of overlays or heat maps.

    :param figure: the figure
    :param axes: the axes that the scale is for
    :param scale: values to colours
    :param label: what the values are
    :param extend: ``"max"`` if some values are larger than the scale's, ``"both"`` if others are also smaller
    :param even: the value that even weights would have, which is marked; ``None`` if there is none
    :param options: further arguments of ``Figure.colorbar``
    :return: the scale
    """
    bar = figure.colorbar(scale, ax=list(axes), label=label, extend=extend, **(dict(shrink=0.85) | options))
    if even is not None and bar.orientation == "vertical":
        bar.ax.axhline(even, color="tab:cyan", linewidth=1.5)
        place: Any = dict(xy=(0, even), xycoords=("axes fraction", "data"), xytext=(-3, 0), ha="right", va="center")
        bar.ax.annotate("even", **place, textcoords="offset points", fontsize="small")
    elif even is not None:
        bar.ax.axvline(even, color="tab:cyan", linewidth=1.5)
        place = dict(xy=(even, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), ha="center", va="bottom")
        bar.ax.annotate("even", **place, textcoords="offset points", fontsize="small")
    return bar


def ratio_bar(figure: Figure, axes: Sequence[Axes], scale: ScalarMappable, **options: Any) -> None:
    """
    Add the scale of ratios to even attention.

    :param figure: the figure
    :param axes: the axes that the scale is for
    :param scale: as returned by ``ratio_scale``
    :param options: further arguments of ``Figure.colorbar``
    """
    bar = color_bar(figure, axes, scale, "ratio to even attention", extend="both", even=1.0, **options)
    smallest, largest = scale.get_clim()
    assert smallest is not None and largest is not None, "ratio_scale sets both"
    bar.set_ticks([smallest, 1, largest], labels=[f"1/{largest:.3g}", "1", f"{largest:.3g}"])
    bar.minorticks_off()


def curves_figure(recorded: RecordedWeights) -> Figure:
    """
    Entropy and peak (the largest weight) over an episode, one line for each head; also the sum where it is less than 1.

    :param recorded: the weights of an episode
    :raises ValueError: if they are not a distribution, or have rows
    """
    if not recorded.is_distribution or recorded.rows is not None:
        raise ValueError(
            f"{recorded.name!r} has no single distribution at each step; draw it with tokens_figure or matrices_figure."
        )
    n_heads = recorded.weights.shape[1]
    # Where all weights are 0 nothing is distributed, so there is no entropy to draw
    quantities = {"entropy [nats]": np.where(recorded.total > 0, recorded.entropy, np.nan), "largest weight": recorded.peak}
    if ((recorded.total > 0) & (np.abs(recorded.total - 1) > 1e-3)).any():
        quantities["sum of weights"] = recorded.total
    n_tokens = np.maximum(recorded.n_reachable, 1)
    even, least, most = (np.log(n_tokens), 1 / n_tokens), n_tokens.min(), n_tokens.max()
    names = (f"even over {most} tokens", f"even: 1/{most}") if least == most else (f"even over {least} to {most} tokens",) * 2
    figure = new_figure(8, 2.5 * len(quantities))
    panels = figure.subplots(len(quantities), 1, sharex=True)
    style = "-" if len(recorded.weights) > 1 else "o"  # a line through a single point is invisible
    for axes, (quantity, values) in zip(panels, quantities.items(), strict=True):
        for head in range(n_heads):
            axes.plot(values[:, head], style, label=f"head {head + 1}")
        axes.set(ylabel=quantity, ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
    for axes, values, name in zip(panels, even, names, strict=False):
        axes.plot(values, "--" if len(values) > 1 else "_", color="grey", label=name)
    panels[0].set_ylim(-0.03 * np.log(most), 1.08 * np.log(most) + 1e-3)  # never empty, also for a single token: ln 1 = 0
    panels[-1].set_xlabel("step")
    for axes in panels:
        axes.legend(loc="best", fontsize="small", ncols=min(n_heads + 1, 4))
    figure.suptitle(f"{recorded.title}: how sharp it is")
    return figure


def image_parts(recorded: RecordedWeights) -> list[tuple[TokenPart, ImageGrid]]:
    """
    The images among the parts of some weights, and the layout of their regions.

    :param recorded: the weights of an episode
    """
    return [(part, part.image) for part in recorded.parts if part.image is not None]


def attention_maps(recorded: RecordedWeights, part: TokenPart, reduce: str = "sum") -> np.ndarray:
    """
    Project the weights of an image's regions onto its pixels.

    :param recorded: the weights of an episode
    :param part: one of the parts in ``image_parts``
    :param reduce: as for ``pixel_map``
    :return: ``[T, heads, height, width]``
    :raises ValueError: if the part is not an image
    """
    if part.image is None:
        raise ValueError(f"The part {part.label!r} is not an image; draw it with tokens_figure.")
    return pixel_map(recorded.weights[..., part.start : part.stop], *part.image, reduce=reduce)


def attention_ratios(recorded: RecordedWeights, part: TokenPart) -> np.ndarray:
    """
    The attention at each pixel, divided by what even attention over all tokens that are not padding would give there.

    Unlike the sum of the weights, it is 1 everywhere if the attention is even, also where many regions overlap.

    :param recorded: the weights of an episode
    :param part: one of the parts in ``image_parts``
    :return: ``[T, heads, height, width]``, NaN where no region sees the pixel
    :raises ValueError: if the part is not an image
    """
    steps = slice(1) if recorded.reachable is None else slice(None)  # without padding, one step's even map is that of all
    even = replace(recorded, weights=recorded.even[steps, None])
    maps, even_map = (attention_maps(weights, part).astype(np.float32) for weights in (recorded, even))
    return np.divide(maps, even_map, out=np.full_like(maps, np.nan), where=even_map > 0)


def overlay_ratios(recorded: RecordedWeights) -> tuple[list[np.ndarray], ScalarMappable]:
    """
    What overlays of an episode show.

    :param recorded: the weights of an episode, of images among others
    :return: for each image the ratios to even attention, ``[T, heads, height, width]``, and one scale for all
    """
    ratios = [attention_ratios(recorded, part) for part, _ in image_parts(recorded)]
    # One frame in a hundred may exceed the scale, so that a single peak does not make all the others pale
    return ratios, ratio_scale(max(float(np.quantile(np.nanmax(heads, axis=(1, 2, 3)), 0.99)) for heads in ratios))


def entropy_captions(recorded: RecordedWeights) -> list[list[str]]:
    """
    The entropy of each step and head, and the largest that is possible there, for below an overlay.

    :param recorded: the weights of an episode
    :return: T lists with a text for each head
    """
    most = np.log(np.maximum(recorded.n_reachable, 1))
    return [[f"entropy {e:.2f} of {even:.2f}" for e in heads] for heads, even in zip(recorded.entropy, most, strict=True)]


def observed_image(episode: Episode, key: str | None, step: int) -> np.ndarray:
    """
    The image that the model saw.

    :param episode: a recording
    :param key: of the image in a Dict; ``None`` if the observation is the image
    :param step: 0 is the first
    :return: RGB, uint8 ``[H, W, 3]``
    """
    observation = episode.observation(step)
    return to_rgb(observation if key is None else observation[key], episode.n_stack)


def frames_are_observed(episode: Episode, key: str | None) -> bool:
    """
    Whether the rendered frames are the observed images, possibly in larger pixels, so that one of them is enough.

    :param episode: a recording with frames
    :param key: of the image in a Dict; ``None`` if the observation is the image
    """
    assert episode.frames is not None, "the callers have checked"
    height, width = observed_image(episode, key, 0).shape[:2]
    pixel = max(episode.frames.shape[1] // height, 1)
    if episode.frames.shape[1:3] != (height * pixel, width * pixel):
        return False
    enlarged = (observed_image(episode, key, step).repeat(pixel, 0).repeat(pixel, 1) for step in range(len(episode)))
    return all(np.array_equal(frame, image) for frame, image in zip(episode.frames, enlarged, strict=True))


def overlays_figure(
    images: Sequence[np.ndarray],
    ratios: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """
    Images in a column, each with the overlays of all heads beside it.

    :param images: RGB, uint8 ``[H, W, 3]`` each
    :param ratios: of ``attention_ratios``, ``[heads, H, W]`` each
    :param titles: of the images
    :param captions: of the overlays, for each image one for each head
    """
    n_heads = len(ratios[0])
    scale = ratio_scale(max(float(np.nanmax(heads)) for heads in ratios))
    figure = new_figure(2.4 * (n_heads + 1) + 1.2, 2.7 * len(images) + 0.4)
    rows = figure.subplots(len(images), n_heads + 1, squeeze=False)
    for i, (row, image, heads) in enumerate(zip(rows, images, ratios, strict=True)):
        show_image(row[0], image, f"observation {i + 1}" if titles is None else titles[i])
        for head, axes in enumerate(row[1:]):
            show_image(axes, overlay(image, heads[head], scale), f"head {head + 1}")
            axes.set_xlabel("" if captions is None else captions[i][head])
    ratio_bar(figure, list(rows.flat), scale)
    return figure


def contact_sheet_figure(
    images: Sequence[np.ndarray], ratios: Sequence[np.ndarray] | None = None, titles: Sequence[str] | None = None
) -> Figure:
    """
    Many images at a glance, four in a row, each with the overlays of all heads to its right.

    :param images: RGB, uint8 ``[H, W, 3]`` each
    :param ratios: of ``attention_ratios``, ``[heads, H, W]`` each; ``None`` for a model without attention
    :param titles: of the images
    """
    scale = ratio_scale(1.0 if ratios is None else max(float(np.nanmax(heads)) for heads in ratios))
    strips = []
    for i, image in enumerate(images):
        heads = [] if ratios is None else [overlay(image, head, scale) for head in ratios[i]]
        gap = np.full((len(image), -(-len(image) // 16), 3), 255, np.uint8)  # white, and never empty
        strips.append(np.hstack([image, *(part for head in heads for part in (gap, head))]))
    columns = min(len(strips), 4)
    rows = -(-len(strips) // columns)  # rounded up
    width = 1.5 * strips[0].shape[1] / strips[0].shape[0]
    figure = new_figure(columns * (width + 0.3), rows * 1.8 + (0.2 if ratios is None else 1.0))
    layout: Any = figure.get_layout_engine()
    layout.set(wspace=0.06)  # more than between an image and its overlays
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(strips) :]:
        axes.set_axis_off()
    for i, (axes, strip) in enumerate(zip(panels, strips, strict=False)):
        show_image(axes, strip, "" if titles is None else titles[i])
        axes.title.set_fontsize("small")
        axes.set_frame_on(False)
    if ratios is not None:
        ratio_bar(figure, panels, scale, location="bottom", shrink=0.4, aspect=40, pad=0.03)
    return figure


def occlusion_figure(
    images: Sequence[np.ndarray],
    saliency: Sequence[np.ndarray],
    ratios: Sequence[np.ndarray] | None = None,
    titles: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """
    Occlusion saliency beside the attention to the same observations. Each image has a scale of saliency of its own.

    :param images: RGB, uint8 ``[H, W, 3]`` each
    :param saliency: ``[H, W]`` each
    :param ratios: of ``attention_ratios``, ``[heads, H, W]`` each; ``None`` for a model without
    :param titles: of the images
    :param captions: of the attention, for each image one for each head
    """
    n_heads = 0 if ratios is None else len(ratios[0])
    figure = new_figure(2.6 * (n_heads + 2) + (2.2 if n_heads else 0.9), 2.7 * len(images) + 0.4)
    rows = figure.subplots(len(images), n_heads + 2, squeeze=False)
    scale = ratio_scale(1.0 if ratios is None else max(float(np.nanmax(heads)) for heads in ratios))
    for i, (row, image) in enumerate(zip(rows, images, strict=True)):
        show_image(row[0], image, f"observation {i + 1}" if titles is None else titles[i])
        for head, axes in enumerate(row[1:-1]):
            assert ratios is not None
            show_image(axes, overlay(image, ratios[i][head], scale), f"attention, head {head + 1}")
            axes.set_xlabel("" if captions is None else captions[i][head])
        amounts = amount_scale(float(saliency[i].max()))
        show_image(row[-1], overlay(image, saliency[i], amounts), "occlusion")
        color_bar(figure, [row[-1]], amounts, "change of the action's score")
    if n_heads:
        ratio_bar(figure, list(rows[:, :-1].flat), scale)
    figure.suptitle("Where attention looks, and what the action depends on")
    return figure
