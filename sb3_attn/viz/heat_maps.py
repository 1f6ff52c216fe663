"""Heat maps of weights: tokens over time, past steps over present ones, and a matrix for each step."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sb3_attn.viz.figures import color_bar, new_figure
from sb3_attn.viz.projection import COLORMAP
from sb3_attn.viz.weights import Attention, TokenPart

#: With more tokens than this, an axis shows their numbers, or some of their names, rather than all names
MAX_NAMES = 24
#: The least upper end of a scale, for weights that are all 0
TINY = 1e-12


def tokens_figure(attention: Attention, mark_images: bool = True) -> Figure:
    """
    A heat map of all tokens over time, one for each head.

    Weights on the last steps are drawn over the steps of the episode (see ``Attention.by_step``), unless these are many.

    :param attention: of the episode
    :param mark_images: draw lines between the parts of a Dict
    :raises ValueError: if it has rows
    """
    if attention.rows is not None:
        raise ValueError(f"{attention.name!r} has a matrix for each step; draw it with matrices_figure.")
    n_steps, n_heads, n_tokens = attention.weights.shape
    n_drawn = n_tokens if attention.by_step is None else n_steps
    figure = new_figure(9, min(1.0 + n_heads * max(1.6, min(0.22 * n_drawn, 4.0)), 16.0))
    rows = figure.subplots(n_heads, 1, sharex=True, squeeze=False)[:, 0]
    for head, axes in enumerate(rows):
        draw_tokens(axes, attention, head, mark_images)
    rows[-1].set_xlabel("step")
    weight_bar(figure, list(rows), attention)
    kind = attention.parts[0].label if len(attention.parts) == 1 else "token"
    past = "past " if attention.parts[0].newest is not None else ""
    quantity = f"{attention.title}: weight" if attention.is_distribution else attention.title
    figure.suptitle(f"{quantity} of each {past}{kind} over {n_steps} steps")
    return figure


def matrices_figure(attention: Attention, steps: Sequence[int] | None = None, titles: Sequence[str] | None = None) -> Figure:
    """
    The matrices of some steps beside each other, the heads below each other.

    :param attention: of the episode, with rows
    :param steps: which steps, 0 being the first; ``None`` takes at most four, evenly spread, among them the last
    :param titles: of the steps
    :raises ValueError: if it has no rows
    """
    if attention.rows is None:
        raise ValueError(f"{attention.name!r} has no matrix for each step; draw it with tokens_figure.")
    n_steps, n_heads = attention.weights.shape[:2]
    if steps is None:
        steps = [int(step) for step in np.unique(np.linspace(0, n_steps - 1, min(n_steps, 4) + 1).round()[1:])]
    figure = new_figure(2.7 * len(steps) + 1.8, 2.7 * n_heads + 0.8)
    panels = figure.subplots(n_heads, len(steps), sharex=True, sharey=True, squeeze=False)
    for head, row in enumerate(panels):
        for column, axes in enumerate(row):
            draw_matrix(axes, attention, steps[column], head)
            name = f"step {steps[column]}" if titles is None else titles[column]
            axes.set_title(f"head {head + 1}, {name}" if n_heads > 1 else name)
            axes.label_outer()
    weight_bar(figure, list(panels.flat), attention)
    figure.suptitle(attention.title)
    return figure


def weight_bar(figure: Figure, axes: Sequence[Axes], attention: Attention) -> None:
    """
    The scale of heat maps.

    :param figure: the figure
    :param axes: those whose scale it is
    :param attention: what is drawn there
    """
    label = "weight" if attention.is_distribution else attention.title
    largest = _largest(attention)
    color_bar(figure, axes, largest, label, extend="max" if attention.weights.max() > largest else "neither")


def draw_tokens(axes: Axes, attention: Attention, head: int, mark_parts: bool = True) -> None:
    """
    One head's heat map.

    :param axes: where
    :param attention: of the episode
    :param head: 0 is the first
    :param mark_parts: draw lines between the parts of a Dict
    """
    axes.set_title(f"head {head + 1}")
    by_step = attention.by_step
    if by_step is not None:
        _draw_past(axes, attention, by_step[:, head])
        return
    _heat_map(axes, attention, attention.weights[:, head].T)
    names, first_part = token_names(attention.parts), attention.parts[0]
    if first_part.newest is not None:
        every = -(-len(names) // MAX_NAMES)  # counted from the newest
        places = range(len(names) - 1, -1, -every)
        axes.set_yticks(places, [names[place] for place in places], fontsize="small")
        axes.set_ylabel(f"past {first_part.label}")
    elif len(names) <= MAX_NAMES:
        axes.set_yticks(range(len(names)), names, fontsize="small")
    elif len(attention.parts) > 1:
        axes.set_yticks([(part.start + part.stop - 1) / 2 for part in attention.parts], [p.label for p in attention.parts])
    else:
        axes.set_ylabel(first_part.label)
    if mark_parts:
        for part in attention.parts[1:]:
            axes.axhline(part.start - 0.5, color="white", linewidth=0.8)


def draw_matrix(axes: Axes, attention: Attention, step: int, head: int) -> None:
    """
    One head's matrix at one step: the rows from left to right, the tokens from top to bottom.

    :param axes: where
    :param attention: of the episode, with rows
    :param step: 0 is the first
    :param head: 0 is the first
    """
    _heat_map(axes, attention, attention.weights[step, head].T)
    rows = attention.rows
    assert rows is not None, "the callers have checked"
    axes.set(xlabel=rows.label, ylabel=attention.parts[0].label)
    if rows.newest is not None and len(rows.names) <= MAX_NAMES:
        axes.set_xticks(range(len(rows.names)), rows.names, fontsize="small", rotation=90)


def _draw_past(axes: Axes, attention: Attention, weights: np.ndarray) -> None:
    """Weights ``[T, T]`` of present steps, from left to right, on past steps, from bottom to top."""
    present, past = np.indices(weights.shape)
    newest = attention.parts[0].newest
    assert newest is not None, "only then there are weights by step"
    slots_ago = present - newest - past
    out_of_reach = (slots_ago < 0) | (slots_ago >= attention.weights.shape[-1])  # still to come, or too long ago
    _heat_map(axes, attention, np.ma.masked_where(out_of_reach, weights).T, origin="lower")
    axes.set_facecolor("lightgrey")
    axes.set_ylabel("past step")


def _heat_map(axes: Axes, attention: Attention, values: np.ndarray, origin: Literal["upper", "lower"] = "upper") -> None:
    largest = _largest(attention)
    axes.imshow(values, aspect="auto", interpolation="nearest", cmap=COLORMAP, vmin=0, vmax=largest, origin=origin)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _largest(attention: Attention) -> float:
    """
    The upper end of a heat map's scale.

    Steps that have few others to look back on put large weights on them whatever they do. So only those count that have at
    least half as many as any.
    """
    available = attention.n_available
    return max(float(attention.weights[2 * available >= available.max()].max()), TINY)


def token_names(parts: Sequence[TokenPart]) -> list[str]:
    """
    A name for each token, such as ``"speed: entry 2"``.

    :param parts: what the tokens are
    """
    return [name for part in parts for name in part.names]
