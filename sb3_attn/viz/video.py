"""Videos of an episode and of what was attended to."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sb3_attn.viz.figures import DPI, SHARE, attention_maps, color_bar, image_parts, observed_image, show_image
from sb3_attn.viz.heat_maps import draw_matrix, draw_tokens, weight_bar
from sb3_attn.viz.projection import overlay
from sb3_attn.viz.recording import Episode
from sb3_attn.viz.weights import Attention

FORMATS = ("mp4", "gif")
PANEL = 2.88  # inches, 288 pixels: 64 and 84 become visible
MAX_COLUMNS = 4


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float = 10.0) -> Path:
    """
    Write pictures as a video.

    :param path: its ending gives the format, ``.mp4`` or ``.gif``
    :param frames: RGB, uint8 ``[height, width, 3]``, all of one size, which is even
    :param fps: frames per second
    :return: the path
    :raises ValueError: if the format is another
    """
    path = Path(path)
    if path.suffix[1:] not in FORMATS:
        raise ValueError(f"path={str(path)!r} has to end in .mp4 or .gif.")
    # H.264 wants even sizes only; imageio's default would stretch pictures to multiples of 16
    options: dict[str, Any] = dict(fps=fps, macro_block_size=2) if path.suffix == ".mp4" else dict(duration=1000 / fps, loop=0)
    with imageio.get_writer(path, **options) as opened:
        writer: Any = opened  # annotated without its methods
        for frame in frames:
            writer.append_data(frame)
    return path


def attention_video(episode: Episode, attention: Attention | None = None) -> Iterator[np.ndarray]:
    """
    The pictures of a video: what the model saw, beside it the overlay of each head.

    Where no image was attended to there is a heat map of the tokens over time instead, on which a line moves; where there is
    a matrix for each step, that matrix. The colours mean the same in all pictures.

    :param episode: a recording
    :param attention: one of the episode's; ``None`` means the first
    :return: an iterator over RGB pictures, uint8 ``[height, width, 3]``
    """
    attention = episode.attention[0] if attention is None else attention
    if attention.rows is not None:
        drawn = _matrix_panels(episode, attention)
    else:
        drawn = _overlay_panels(episode, attention) if image_parts(attention) else _token_panels(episode, attention)
    return _animate(episode, *drawn)


Update = Callable[[int], list[Artist]]


def _overlay_panels(episode: Episode, attention: Attention) -> tuple[Figure, Update]:
    parts = [part for part, _ in image_parts(attention)]
    n_heads = attention.weights.shape[1]
    n_panels = len(parts) * (1 + n_heads) + (episode.frames is not None)
    columns = min(n_panels, MAX_COLUMNS)
    figure = _figure(columns * PANEL + 1.2, -(-n_panels // columns) * (PANEL + 0.2) + 0.4)
    panels = list(figure.subplots(-(-n_panels // columns), columns, squeeze=False).flat)
    for axes in panels[n_panels:]:
        axes.set_axis_off()
    maps = [attention_maps(attention, part) for part in parts]
    # One frame in a hundred may be too bright, so that the others can be told apart
    largest = max(float(np.quantile(heads.max(axis=(1, 2, 3)), 0.99)) for heads in maps)
    color_bar(figure, panels, largest, SHARE)
    painters: list[tuple[Any, Callable[[int], np.ndarray]]] = []

    def add(title: str, paint: Callable[[int], np.ndarray]) -> None:
        axes = panels[len(painters)]
        show_image(axes, paint(0), title)
        painters.append((axes.images[0], paint))

    if episode.frames is not None:
        frames = episode.frames
        add("rendered", lambda step: frames[step])
    for part, heads in zip(parts, maps, strict=True):
        name = "observed" if part.key is None else f"observed: {part.key}"
        add(name, lambda step, part=part: observed_image(episode, part, step))  # type: ignore[misc]
        for head in range(n_heads):

            def paint(step: int, part: Any = part, head: int = head, heads: np.ndarray = heads) -> np.ndarray:
                return overlay(observed_image(episode, part, step), heads[step, head], largest)

            add(f"head {head + 1}", paint)

    def update(step: int) -> list[Artist]:
        for image, paint in painters:
            image.set_data(paint(step))
        return [image for image, _ in painters]

    return figure, update


def _token_panels(episode: Episode, attention: Attention) -> tuple[Figure, Update]:
    n_heads = attention.weights.shape[1]
    figure: Any = _figure(PANEL * (4 if episode.frames is not None else 3), max(PANEL + 0.6, 1.8 * n_heads + 0.6))
    left = None
    right: Any = figure
    if episode.frames is not None:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 2))
    rows = right.subplots(n_heads, 1, sharex=True, squeeze=False)[:, 0]
    for head, axes in enumerate(rows):
        draw_tokens(axes, attention, head)
    rows[-1].set_xlabel("step")
    weight_bar(right, list(rows), attention)
    lines = [axes.axvline(0, color="cyan", linewidth=1.5) for axes in rows]
    image = None
    if left is not None and episode.frames is not None:
        axes = left.subplots()
        show_image(axes, episode.frames[0], "rendered")
        image = axes.images[0]

    def update(step: int) -> list[Artist]:
        for line in lines:
            line.set_xdata([step, step])
        if image is None or episode.frames is None:
            return [*lines]
        image.set_data(episode.frames[step])
        return [image, *lines]

    return figure, update


def _matrix_panels(episode: Episode, attention: Attention) -> tuple[Figure, Update]:
    n_heads, n_frames = attention.weights.shape[1], int(episode.frames is not None)
    n_panels = n_frames + n_heads
    columns = min(n_panels, MAX_COLUMNS)
    figure = _figure(columns * PANEL + 1.2, -(-n_panels // columns) * (PANEL + 0.2) + 0.4)
    panels = list(figure.subplots(-(-n_panels // columns), columns, squeeze=False).flat)
    for axes in panels[n_panels:]:
        axes.set_axis_off()
    if episode.frames is not None:
        show_image(panels[0], episode.frames[0], "rendered")
    for head, axes in enumerate(panels[n_frames:n_panels]):
        draw_matrix(axes, attention, 0, head)
        axes.set_title(attention.title + (f", head {head + 1}" if n_heads > 1 else ""))
    weight_bar(figure, panels, attention)
    images = [axes.images[0] for axes in panels[:n_panels]]

    def update(step: int) -> list[Artist]:
        if episode.frames is not None:
            images[0].set_data(episode.frames[step])
        for head, image in enumerate(images[n_frames:]):
            image.set_data(attention.weights[step, head].T)
        return [*images]

    return figure, update


def _figure(width: float, height: float) -> Figure:
    """An empty figure of even size in pixels."""
    pixels = [2 * round(length * DPI / 2) for length in (width, height)]
    figure = Figure(figsize=(pixels[0] / DPI, pixels[1] / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _animate(episode: Episode, figure: Figure, update: Update) -> Iterator[np.ndarray]:
    """Draw what stays once, and what moves for each step: a whole figure takes ten times as long."""
    canvas: Any = figure.canvas
    text = figure.suptitle(_caption(episode, len(episode) - 1), fontsize="medium", family="monospace")
    moving = [*update(0), text]
    canvas.draw()  # settles the layout, with everything in it
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
