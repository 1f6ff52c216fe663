"""Figures of an episode that every model has: the actions' scores, the rewards, and the states of a recurrent memory."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sb3_attn.viz.figures import new_figure
from sb3_attn.viz.projection import TINY
from sb3_attn.viz.recording import Episode

#: Blue is negative, white is 0, red is positive
DIVERGING = "RdBu_r"
#: More actions than this have colours in their order instead of distinct ones, and more than `MAX_NAMED` no legend
MAX_DISTINCT, MAX_NAMED = 10, 20
HEIGHTS = {"states": 2.2, "scores": 1.8, "rewards": 0.9}  # inches


def values_figure(episode: Episode) -> Figure:
    """
    The scores of all actions over an episode, with the chosen actions marked, and the rewards below.

    Without scores the actions themselves are drawn, one line for each of their numbers.

    :param episode: a recording
    """
    return _figure(episode, {})


def states_figure(episode: Episode) -> Figure:
    """
    The states of a recurrent memory over an episode, units by steps, above what ``values_figure`` draws.

    The state of a step is the one after its observation, from which its scores were computed. Units are ordered by their
    share in the first principal component, so that those that move together lie together.

    :param episode: a recording
    :raises ValueError: if it has no such states
    """
    if not episode.recurrent_states:
        raise ValueError(
            "The episode has no recurrent states; draw values_figure, or record a RecurrentDQN with core='lstm', 'gru' or "
            "another memory without slots, or a RecurrentPPO."
        )
    return _figure(episode, episode.recurrent_states)


def order_of_units(states: np.ndarray) -> np.ndarray:
    """
    Order units by their loadings on the first principal component.

    :param states: ``[T, units]``
    :return: indices of the units
    """
    _, _, components = np.linalg.svd(states - states.mean(axis=0), full_matrices=False)
    return np.argsort(components[0], kind="stable")


def _figure(episode: Episode, states: dict[str, np.ndarray]) -> Figure:
    heights = [HEIGHTS["states"]] * len(states) + [HEIGHTS["scores"], HEIGHTS["rewards"]]
    figure = new_figure(9, sum(heights) + 0.6)
    panels = figure.subplots(len(heights), 1, sharex=True, gridspec_kw=dict(height_ratios=heights))
    for axes, (name, units) in zip(panels, states.items(), strict=False):
        _draw_states(figure, axes, name, units)
    _draw_scores(panels[-2], episode)
    panels[-1].axhline(0, color="lightgrey", linewidth=0.8)
    panels[-1].vlines(np.arange(len(episode)), 0, episode.rewards, color="black", linewidth=_size(episode))
    panels[-1].set_title("reward", loc="left")
    panels[-1].set(xlabel="step", xlim=(-0.5, len(episode) - 0.5))
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def state_scale(states: np.ndarray) -> ScalarMappable:
    """
    The colours of states, around 0.

    :param states: ``[T, units]``
    """
    # One number in two hundred may be beyond the scale, so that a single unit does not whiten all the others
    largest = max(float(np.quantile(np.abs(states), 0.995)), TINY)
    return ScalarMappable(Normalize(-largest, largest), DIVERGING)


def _draw_states(figure: Figure, axes: Axes, name: str, states: np.ndarray) -> None:
    clim = state_scale(states).get_clim()
    units = states[:, order_of_units(states)].T
    image = axes.imshow(units, aspect="auto", interpolation="nearest", cmap=DIVERGING, clim=clim)
    axes.set(ylabel=f"{states.shape[1]} units", yticks=[])
    axes.set_title(f"state: {name}", loc="left")
    figure.colorbar(image, ax=axes, pad=0.01, aspect=15, extend="both" if np.abs(states).max() > (clim[1] or 0) else "neither")


def _draw_scores(axes: Axes, episode: Episode) -> None:
    style = "-" if len(episode) > 1 else "_"  # a line through a single point is invisible
    if episode.action_scores is None:
        axes.plot(episode.actions.reshape(len(episode), -1), style)
        axes.set_title("action", loc="left")
        axes.grid(alpha=0.3)
        return
    scores = np.where(np.isfinite(episode.action_scores), episode.action_scores, np.nan)
    n_actions = scores.shape[1]
    if n_actions <= MAX_DISTINCT:
        colors: Any = colormaps["tab10"](np.arange(n_actions))
    else:
        colors = colormaps["turbo"](np.linspace(0, 1, n_actions))
    for action, color in enumerate(colors):
        axes.plot(scores[:, action], style, color=color, linewidth=1, label=str(action))
        (chosen,) = np.nonzero(episode.actions == action)
        axes.plot(chosen, scores[chosen, action], "o", color=color, markersize=_size(episode))
    axes.set_title(f"{episode.score_name} of each action (dot: chosen)", loc="left")
    axes.grid(alpha=0.3)
    if n_actions <= MAX_NAMED:
        place: Any = dict(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
        axes.legend(
            **place, ncols=min(n_actions, MAX_DISTINCT), fontsize="small", frameon=False, columnspacing=1, handlelength=1
        )


def _size(episode: Episode) -> float:
    """Of what marks a step, in points: smaller if there are many."""
    return float(np.clip(200 / len(episode), 1, 5))
