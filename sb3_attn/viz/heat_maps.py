"""Heat maps of weights: tokens over time, past steps over present ones, and one matrix for each step."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sb3_attn.viz.figures import color_bar, new_figure
from sb3_attn.viz.projection import COLORMAP, TINY
from sb3_attn.viz.recorded_weights import RecordedWeights, TokenPart

#: An axis with more tokens than this shows their numbers, or only some of their names
MAX_NAMES = 24


def tokens_figure(recorded: RecordedWeights, mark_parts: bool = True) -> Figure:
    """
    A heat map of all tokens over time, one for each head.

    Weights on past steps are drawn over the steps of the episode where ``RecordedWeights.by_step`` gives them.

    :param recorded: the weights of an episode
    :param mark_parts: draw lines between the parts of a Dict
    :raises ValueError: if they have rows
    """
    if recorded.rows is not None:
        raise ValueError(f"{recorded.name!r} has a matrix for each step; draw it with matrices_figure.")
    n_steps, n_heads, n_tokens = recorded.weights.shape
    n_drawn = n_tokens if recorded.by_step is None else n_steps
    figure = new_figure(9, min(1.0 + n_heads * max(1.6, min(0.22 * n_drawn, 4.0)), 16.0))
    rows = figure.subplots(n_heads, 1, sharex=True, squeeze=False)[:, 0]
    for head, axes in enumerate(rows):
        draw_tokens(axes, recorded, head, mark_parts)
    rows[-1].set_xlabel("step")
    weight_bar(figure, list(rows), recorded)
    quantity = f"{recorded.title}: weight" if recorded.is_distribution else recorded.title
    figure.suptitle(f"{quantity} of each {recorded.token_label} over {n_steps} steps")
    return figure


def matrices_figure(
    recorded: RecordedWeights, steps: Sequence[int] | None = None, titles: Sequence[str] | None = None
) -> Figure:
    """
    The matrices of some steps side by side, one line for each head.

    :param recorded: the weights of an episode, with rows
    :param steps: the steps to draw, 0 being the first; ``None`` takes at most four, evenly spread, the last among them
    :param titles: of the steps
    :raises ValueError: if the weights have no rows
    """
    if recorded.rows is None:
        raise ValueError(f"{recorded.name!r} has no matrix for each step; draw it with tokens_figure.")
    n_steps, n_heads = recorded.weights.shape[:2]
    if steps is None:
        # One point more than there are panels, and the first left out: a memory has hardly been written at step 0
        steps = [int(step) for step in np.unique(np.linspace(0, n_steps - 1, min(n_steps, 4) + 1).round()[1:])]
    figure = new_figure(2.7 * len(steps) + 1.8, 2.7 * n_heads + 0.8)
    panels = figure.subplots(n_heads, len(steps), sharex=True, sharey=True, squeeze=False)
    for head, row in enumerate(panels):
        for column, axes in enumerate(row):
            draw_matrix(axes, recorded, steps[column], head)
            name = f"step {steps[column]}" if titles is None else titles[column]
            axes.set_title(f"head {head + 1}, {name}" if n_heads > 1 else name)
            axes.label_outer()
    weight_bar(figure, list(panels.flat), recorded)
    figure.suptitle(recorded.title)
    return figure


def recall_figure(density: np.ndarray) -> Figure:
    """
    What the Q-values of each step depend on: the present from left to right, the past from bottom to top.

    :param density: of ``recall_density``, ``[T, T]``
    """
    figure = new_figure(6.5, 5.5)
    axes = figure.subplots()
    # The first step has seen nothing but itself, so its share is 1 whatever the network does, and the next ones' are large
    largest = float(density[len(density) // 2 :].max())
    scale = ScalarMappable(Normalize(0, max(largest, TINY)), COLORMAP)
    to_come = np.triu(np.ones_like(density, dtype=bool), k=1)
    _heat_map(axes, scale, np.ma.masked_where(to_come, density).T, origin="lower")
    axes.set_facecolor("lightgrey")
    axes.set(xlabel="step", ylabel="observation of step", title="What the Q-values depend on")
    color_bar(figure, [axes], scale, "share of the gradients", extend="max" if density.max() > largest else "neither")
    return figure


def weight_bar(figure: Figure, axes: Sequence[Axes], recorded: RecordedWeights) -> None:
    """
    Add the scale of heat maps.

    :param figure: the figure
    :param axes: the axes that the scale is for
    :param recorded: the weights that are drawn there
    """
    label = "weight" if recorded.is_distribution else recorded.title
    scale, even = weight_scale(recorded), even_weight(recorded)
    color_bar(figure, axes, scale, label, extend="max" if recorded.weights.max() > scale.norm.vmax else "neither", even=even)


def weight_scale(recorded: RecordedWeights) -> ScalarMappable:
    """
    The colours of a heat map.

    A step that can look back on only a few others puts large weights on them whatever the network does. So the scale ends at
    the largest weight of those steps that can reach at least half as many tokens as any step can. It goes to twice the even
    weight at least, so that the noise around even weights does not look like structure.

    :param recorded: the weights that are drawn there
    """
    n_reachable = recorded.n_reachable
    largest = float(recorded.weights[2 * n_reachable >= n_reachable.max()].max())
    even = even_weight(recorded)
    return ScalarMappable(Normalize(0, max(largest, TINY if even is None else min(2 * even, 1.0))), COLORMAP)


def draw_tokens(axes: Axes, recorded: RecordedWeights, head: int, mark_parts: bool = True) -> None:
    """
    Draw the heat map of one head.

    :param axes: the axes to draw on
    :param recorded: the weights of an episode
    :param head: 0 is the first
    :param mark_parts: draw lines between the parts of a Dict
    """
    axes.set_title(f"head {head + 1}")
    if recorded.by_step is not None:
        _heat_map(axes, weight_scale(recorded), past_map(recorded, head).T, origin="lower")
        axes.set_facecolor("lightgrey")  # shows where the heat map is masked
        axes.set_ylabel("past step")
        return
    _heat_map(axes, weight_scale(recorded), recorded.weights[:, head].T)
    names, first_part = token_names(recorded.parts), recorded.parts[0]
    if first_part.newest_age is not None:
        every = -(-len(names) // MAX_NAMES)  # rounded up
        places = range(len(names) - 1, -1, -every)  # from the newest backwards, so that it always has its name
        axes.set_yticks(places, [names[place] for place in places], fontsize="small")
        axes.set_ylabel(f"past {first_part.label}")
    elif len(names) <= MAX_NAMES:
        axes.set_yticks(range(len(names)), names, fontsize="small")
    elif len(recorded.parts) > 1:
        # One name in the middle of each part
        axes.set_yticks([(part.start + part.stop - 1) / 2 for part in recorded.parts], [p.label for p in recorded.parts])
    else:
        axes.set_ylabel(first_part.label)
    if mark_parts:
        for part in recorded.parts[1:]:
            axes.axhline(part.start - 0.5, color="white", linewidth=0.8)


def draw_matrix(axes: Axes, recorded: RecordedWeights, step: int, head: int) -> None:
    """
    Draw the matrix of one head at one step, the rows from left to right and the tokens from top to bottom.

    :param axes: the axes to draw on
    :param recorded: the weights of an episode, with rows
    :param step: 0 is the first
    :param head: 0 is the first
    """
    # Transposed, so that rows that are frames run from left to right, as time does in all other heat maps
    _heat_map(axes, weight_scale(recorded), recorded.weights[step, head].T)
    rows = recorded.rows
    assert rows is not None, "the callers have checked"
    axes.set(xlabel=rows.label, ylabel=recorded.parts[0].label)
    if rows.newest_age is not None and len(rows.names) <= MAX_NAMES:
        axes.set_xticks(range(len(rows.names)), rows.names, fontsize="small", rotation=90)


def past_map(recorded: RecordedWeights, head: int) -> np.ma.MaskedArray:
    """
    The weights of present steps on past steps, ``[T, T]``, masked where a step cannot look.

    :param recorded: the weights of an episode, which has them by step
    :param head: 0 is the first
    """
    by_step, newest_age = recorded.by_step, recorded.parts[0].newest_age
    assert by_step is not None and newest_age is not None, "the callers have checked"
    weights = by_step[:, head]
    present, past = np.indices(weights.shape)
    slots_ago = present - newest_age - past  # 0 for the last slot, which is step t - newest
    out_of_reach = (slots_ago < 0) | (slots_ago >= recorded.weights.shape[-1])  # still to come, or too long ago
    return np.ma.masked_where(out_of_reach, weights)


def _heat_map(axes: Axes, scale: ScalarMappable, values: np.ndarray, origin: Literal["upper", "lower"] = "upper") -> None:
    axes.imshow(values, aspect="auto", interpolation="nearest", cmap=COLORMAP, clim=scale.get_clim(), origin=origin)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def even_weight(recorded: RecordedWeights) -> float | None:
    """
    The weight of each token if all were equal.

    :param recorded: the weights of an episode
    :return: ``None`` if they are not a distribution
    """
    return 1 / max(int(recorded.n_reachable.max()), 1) if recorded.is_distribution else None


def token_names(parts: Sequence[TokenPart]) -> list[str]:
    """
    A name for each token, such as ``"speed: entry 2"``.

    :param parts: the parts of the tokens
    """
    return [name for part in parts for name in part.names]
