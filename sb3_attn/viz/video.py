"""Videos of an episode together with its weights."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from sb3_attn.viz.figures import (
    entropy_captions,
    frames_are_observed,
    image_parts,
    new_figure,
    observed_image,
    overlay_ratios,
    ratio_bar,
    show_image,
)
from sb3_attn.viz.heat_maps import draw_matrix, draw_tokens, weight_bar
from sb3_attn.viz.projection import overlay
from sb3_attn.viz.recorded_weights import RecordedWeights
from sb3_attn.viz.recording import Episode

FORMATS = ("mp4", "gif")
PANEL = 2.88  # inches, 288 pixels: enough to tell the pixels of an 84 x 84 image apart
MAX_COLUMNS = 4

#: Gives the image of a panel at a step
Paint = Callable[[int], np.ndarray]
#: Moves a figure to a step, and returns the artists that it changed
Update = Callable[[int], list[Artist]]


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float = 10.0) -> Path:
    """
    Write images as a video.

    :param path: its suffix sets the format, ``.mp4`` or ``.gif``
    :param frames: RGB, uint8 ``[height, width, 3]``, all of the same size, which has to be even
    :param fps: frames per second
    :return: the path
    :raises ValueError: if the suffix is another, or ``fps`` is not a finite number above 0
    """
    path = Path(path)
    if path.suffix[1:] not in FORMATS:
        raise ValueError(f"path={str(path)!r} has to end in .mp4 or .gif.")
    check_fps(fps)
    # H.264 needs even sizes; imageio's default would stretch frames to multiples of 16
    options: dict[str, Any] = dict(fps=fps, macro_block_size=2) if path.suffix == ".mp4" else dict(duration=1000 / fps, loop=0)
    with imageio.get_writer(path, **options) as opened:
        writer: Any = opened  # imageio annotates it without its methods
        for frame in frames:
            writer.append_data(frame)
    return path


def check_fps(fps: float) -> None:
    """
    Check a number of frames per second.

    :param fps: the number
    :raises ValueError: if it is not finite, or not above 0
    """
    if not 0 < fps < math.inf:  # as a comparison with NaN is false, too
        raise ValueError(f"fps={fps} has to be a finite number above 0.")


def attention_video(episode: Episode, recorded: RecordedWeights | None = None) -> Iterator[np.ndarray]:
    """
    The frames of a video: what the model saw, and beside it the overlay of each head.

    If no image was attended to, the video shows a heat map of the tokens over time instead, with a line at the present step;
    if each step has a matrix, it shows the matrix. The colours mean the same in all frames.

    :param episode: a recording
    :param recorded: one of the episode's ``recorded_weights``; ``None`` takes the first
    :return: an iterator over RGB images, uint8 ``[height, width, 3]``
    :raises ValueError: if the episode has no weights
    """
    if recorded is None and not episode.recorded_weights:
        raise ValueError("The episode has no weights to show; draw values_figure or states_figure, or record another model.")
    recorded = episode.recorded_weights[0] if recorded is None else recorded
    if recorded.rows is not None:
        drawn = _matrix_panels(episode, recorded)
    else:
        drawn = _overlay_panels(episode, recorded) if image_parts(recorded) else _token_panels(episode, recorded)
    return _animate(episode, *drawn)


def _overlay_panels(episode: Episode, recorded: RecordedWeights) -> tuple[Figure, Update]:
    parts = [part for part, _ in image_parts(recorded)]
    ratios, scale = overlay_ratios(recorded)
    images: list[tuple[str, Paint]] = []
    if episode.frames is not None and not any(frames_are_observed(episode, part.key) for part in parts):
        images.append(("rendered", episode.frames.__getitem__))
    heads: list[tuple[int, int]] = []  # panel and head of each overlay
    for part, of_part in zip(parts, ratios, strict=True):
        observed = partial(observed_image, episode, part.key)
        images.append(("observed" if part.key is None else f"observed: {part.key}", observed))
        for head in range(of_part.shape[1]):
            heads.append((len(images), head))
            images.append((f"head {head + 1}", partial(_overlay, observed, of_part[:, head], scale)))
    figure, panels = _panel_grid(len(images))
    for axes, (title, paint) in zip(panels, images, strict=False):
        show_image(axes, paint(0), title)
    ratio_bar(figure, panels, scale)
    repaint, captions = _repaint(panels, [paint for _, paint in images]), entropy_captions(recorded)

    def update(step: int) -> list[Artist]:
        labels = []
        for panel, head in heads:
            panels[panel].set_xlabel(captions[step][head])
            labels.append(panels[panel].xaxis.label)
        return [*repaint(step), *labels]

    return figure, update


def _matrix_panels(episode: Episode, recorded: RecordedWeights) -> tuple[Figure, Update]:
    n_heads, n_frames = recorded.weights.shape[1], int(episode.frames is not None)
    figure, panels = _panel_grid(n_frames + n_heads)
    paints: list[Paint] = []
    if episode.frames is not None:
        show_image(panels[0], episode.frames[0], "rendered")
        paints.append(episode.frames.__getitem__)
    for head, axes in enumerate(panels[n_frames : n_frames + n_heads]):
        draw_matrix(axes, recorded, 0, head)
        axes.set_title(recorded.title + (f", head {head + 1}" if n_heads > 1 else ""))
        paints.append(recorded.weights[:, head].swapaxes(1, 2).__getitem__)  # transposed, as draw_matrix draws it
    weight_bar(figure, panels, recorded)
    return figure, _repaint(panels, paints)


def _token_panels(episode: Episode, recorded: RecordedWeights) -> tuple[Figure, Update]:
    n_heads = recorded.weights.shape[1]
    figure: Any = new_figure(PANEL * (4 if episode.frames is not None else 3), max(PANEL + 0.6, 1.8 * n_heads + 0.6))
    repaint, right = _repaint([], []), figure
    if episode.frames is not None:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 2))
        rendered = left.subplots()
        show_image(rendered, episode.frames[0], "rendered")
        repaint = _repaint([rendered], [episode.frames.__getitem__])
    rows = right.subplots(n_heads, 1, sharex=True, squeeze=False)[:, 0]
    for head, axes in enumerate(rows):
        draw_tokens(axes, recorded, head)
    rows[-1].set_xlabel("step")
    weight_bar(right, list(rows), recorded)
    lines = [axes.axvline(0, color="cyan", linewidth=1.5) for axes in rows]

    def update(step: int) -> list[Artist]:
        for line in lines:
            line.set_xdata([step, step])
        return [*repaint(step), *lines]

    return figure, update


def _panel_grid(n_panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of panels of which the first ``n_panels`` are used, and the others invisible."""
    columns = min(n_panels, MAX_COLUMNS)
    rows = -(-n_panels // columns)  # rounded up
    figure = new_figure(columns * PANEL + 1.2, rows * (PANEL + 0.2) + 0.4)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[n_panels:]:
        axes.set_axis_off()
    return figure, panels


def _repaint(panels: Sequence[Axes], paints: Sequence[Paint]) -> Update:
    images = [axes.images[0] for axes in panels[: len(paints)]]

    def update(step: int) -> list[Artist]:
        for image, paint in zip(images, paints, strict=True):
            image.set_data(paint(step))
        return [*images]

    return update


def _overlay(observed: Paint, ratios: np.ndarray, scale: ScalarMappable, step: int) -> np.ndarray:
    return overlay(observed(step), ratios[step], scale)


def _animate(episode: Episode, figure: Figure, update: Update) -> Iterator[np.ndarray]:
    """
    Draw what moves again at each step, over a background that is drawn once.

    Drawing a whole figure takes ten times as long.
    """
    canvas: Any = figure.canvas
    text = figure.suptitle(_caption(episode, len(episode) - 1), fontsize="medium", family="monospace")
    moving = [*update(0), text]
    # The first drawing settles the layout with everything in it; then the layout is fixed, the moving artists are hidden, and
    # the second drawing gives the background
    canvas.draw()
    figure.set_layout_engine("none")
    for artist in moving:
        artist.set_visible(False)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    for artist in moving:
        artist.set_visible(True)
    for step in range(len(episode)):
        canvas.restore_region(background)
        update(step)
        text.set_text(_caption(episode, step))
        for artist in moving:
            artist.draw(canvas.get_renderer())
        yield np.array(canvas.buffer_rgba())[..., :3]


def _caption(episode: Episode, step: int) -> str:
    action = np.array2string(np.asarray(episode.actions[step]), precision=2)
    total = episode.rewards[: step + 1].sum()
    return f"step {step:4d}   action {action:>3}   reward {episode.rewards[step]:6.2f}   return {total:8.2f}"
