"""Figures, made without pyplot: they need no screen, and none stays open."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from sb3_attn.viz.projection import COLORMAP, overlay, picture, pixel_map
from sb3_attn.viz.recording import Episode
from sb3_attn.viz.weights import Attention, ImageGrid, TokenPart

DPI = 100
#: What the colours of an overlay mean
SHARE = "share of the attention,\nof regions that see the pixel"


def new_figure(width: float, height: float) -> Figure:
    """
    An empty figure with a canvas of its own.

    :param width: in inches; 100 pixels each
    :param height: in inches
    """
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """
    Write a figure to a file.

    :param figure: to be written
    :param path: its ending gives the format: png, pdf, svg
    :return: the path
    """
    figure.savefig(path)
    return Path(path)


def show_image(axes: Axes, image: np.ndarray, title: str) -> None:
    """
    Show a picture with sharp pixels.

    :param axes: where
    :param image: RGB, uint8 ``[H, W, 3]``
    :param title: above it
    """
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])


def color_bar(figure: Figure, axes: Sequence[Axes], largest: float, label: str, extend: str = "neither") -> None:
    """
    The scale of overlays and heat maps.

    :param figure: the figure
    :param axes: those whose scale it is
    :param largest: the value of the brightest colour
    :param label: what the values are
    :param extend: ``"max"`` if there are larger ones, too
    """
    scale = ScalarMappable(Normalize(0, largest), COLORMAP)
    figure.colorbar(scale, ax=list(axes), label=label, shrink=0.85, extend=extend)


def curves_figure(attention: Attention) -> Figure:
    """
    Entropy and peak (the largest weight) over an episode, a line for each head; their sum, too, where it is less than 1.

    :param attention: of the episode
    :raises ValueError: if it is no distribution, or has rows
    """
    if not attention.is_distribution or attention.rows is not None:
        raise ValueError(
            f"{attention.name!r} has no single distribution at each step; draw it with tokens_figure or matrices_figure."
        )
    n_heads = attention.weights.shape[1]
    quantities = {"entropy [nats]": np.where(attention.total > 0, attention.entropy, np.nan), "largest weight": attention.peak}
    if ((attention.total > 0) & (np.abs(attention.total - 1) > 1e-3)).any():
        quantities["sum of weights"] = attention.total
    n_tokens = np.maximum(attention.n_available, 1)
    even, least, most = (np.log(n_tokens), 1 / n_tokens), n_tokens.min(), n_tokens.max()
    names = (f"even over {most} tokens", f"even: 1/{most}") if least == most else (f"even over {least} to {most} tokens",) * 2
    figure = new_figure(8, 2.5 * len(quantities))
    panels = figure.subplots(len(quantities), 1, sharex=True)
    style = "-" if len(attention.weights) > 1 else "o"  # a line through one point is none
    for axes, (quantity, values) in zip(panels, quantities.items(), strict=True):
        for head in range(n_heads):
            axes.plot(values[:, head], style, label=f"head {head + 1}")
        axes.set(ylabel=quantity, ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
    for axes, values, name in zip(panels, even, names, strict=False):
        axes.plot(values, "--" if len(values) > 1 else "_", color="grey", label=name)
    panels[0].set_ylim(-0.03 * np.log(most), 1.08 * np.log(most) + 1e-3)
    panels[-1].set_xlabel("step")
    for axes in panels:
        axes.legend(loc="best", fontsize="small", ncols=min(n_heads + 1, 4))
    figure.suptitle(f"{attention.title}: how sharp it is")
    return figure


def image_parts(attention: Attention) -> list[tuple[TokenPart, ImageGrid]]:
    """
    The images among the things that were attended to, and where their regions lie.

    :param attention: of an episode
    """
    return [(part, part.image) for part in attention.parts if part.image is not None]


def attention_maps(attention: Attention, part: TokenPart, reduce: str = "sum") -> np.ndarray:
    """
    The weights of an image's regions, on its pixels.

    :param attention: of an episode
    :param part: one of ``image_parts``
    :param reduce: as for ``pixel_map``
    :return: ``[T, heads, height, width]``
    :raises ValueError: if the part is no image
    """
    if part.image is None:
        raise ValueError(f"The part {part.label!r} is no image; draw it with tokens_figure.")
    return pixel_map(attention.weights[..., part.start : part.stop], *part.image, reduce=reduce)


def observed_image(episode: Episode, part: TokenPart, step: int) -> np.ndarray:
    """
    What the model saw.

    :param episode: a recording
    :param part: which image of it
    :param step: 0 is the first
    :return: RGB, uint8 ``[H, W, 3]``
    """
    observation = episode.observation(step)
    return picture(observation if part.key is None else observation[part.key], episode.n_stack)


def overlays_figure(images: Sequence[np.ndarray], maps: Sequence[np.ndarray], titles: Sequence[str] | None = None) -> Figure:
    """
    Pictures in a column, beside each the overlay of every head.

    :param images: RGB, uint8 ``[H, W, 3]`` each
    :param maps: ``[heads, H, W]`` each
    :param titles: of the pictures
    """
    n_heads = len(maps[0])
    largest = max(float(heads.max()) for heads in maps)
    figure = new_figure(2.4 * (n_heads + 1) + 1.2, 2.5 * len(images) + 0.4)
    rows = figure.subplots(len(images), n_heads + 1, squeeze=False)
    for i, (row, image, heads) in enumerate(zip(rows, images, maps, strict=True)):
        show_image(row[0], image, f"observation {i + 1}" if titles is None else titles[i])
        for head, axes in enumerate(row[1:]):
            show_image(axes, overlay(image, heads[head], largest), f"head {head + 1}")
    color_bar(figure, list(rows.flat), largest, SHARE)
    return figure


def occlusion_figure(
    images: Sequence[np.ndarray],
    saliency: Sequence[np.ndarray],
    maps: Sequence[np.ndarray] | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """
    Occlusion saliency beside the attention of the same observations. Each picture has a scale of its own.

    :param images: RGB, uint8 ``[H, W, 3]`` each
    :param saliency: ``[H, W]`` each
    :param maps: attention ``[heads, H, W]`` each; ``None`` for a model without
    :param titles: of the pictures
    """
    n_heads = 0 if maps is None else len(maps[0])
    figure = new_figure(2.6 * (n_heads + 2) + 0.9, 2.7 * len(images) + 0.4)
    rows = figure.subplots(len(images), n_heads + 2, squeeze=False)
    for i, (row, image) in enumerate(zip(rows, images, strict=True)):
        show_image(row[0], image, f"observation {i + 1}" if titles is None else titles[i])
        for head in range(n_heads):
            assert maps is not None
            show_image(row[1 + head], overlay(image, maps[i][head]), f"attention, head {head + 1}")
        largest = float(saliency[i].max())
        show_image(row[-1], overlay(image, saliency[i]), "occlusion")
        color_bar(figure, [row[-1]], max(largest, 1e-12), "change of the action's score")
    figure.suptitle("Where attention looks, and what the action depends on")
    return figure
