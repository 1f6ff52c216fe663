"""A page for a browser that steps through an episode: one file, without anything from the network."""

import base64
import html
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from matplotlib.cm import ScalarMappable

from sb3_attn.viz.action_scores import PROBABILITY
from sb3_attn.viz.episode_figures import order_of_units, state_scale
from sb3_attn.viz.figures import entropy_captions, frames_are_observed, image_parts, observed_image, overlay_ratios
from sb3_attn.viz.heat_maps import MAX_NAMES, even_weight, past_map, token_names, weight_scale
from sb3_attn.viz.recorded_weights import RecordedWeights
from sb3_attn.viz.recording import Episode
from sb3_attn.viz.video import check_fps

#: Height of a heat map in pixels: of a row with a name, and of all rows without
ROW, HEIGHT = 14, 180
#: Number of tokens whose weights are written below a heat map
N_LARGEST = 3


def write_page(path: str | Path, episode: Episode, title: str, fps: float | None = None) -> Path:
    """
    Write an HTML page with a slider through the steps of an episode.

    :param path: of the file
    :param episode: a recording
    :param title: its heading
    :param fps: steps per second while it plays; ``None`` takes the environment's
    :return: the path
    :raises ValueError: if ``fps`` is not a finite number above 0
    """
    fps = episode.fps if fps is None else fps
    check_fps(fps)
    data = dict(
        title=title,
        fps=fps,
        actions=[np.array2string(np.asarray(action), precision=3) for action in episode.actions],
        rewards=_numbers(episode.rewards),
        returns=_numbers(episode.rewards.cumsum()),
        scores=_scores(episode),
        panels=_panels(episode),
        maps=[
            *(_states(name, states) for name, states in episode.recurrent_states.items()),
            *(found for recorded in episode.recorded_weights for found in _maps(recorded)),
        ],
    )
    # Within a script element only "<" could end it
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    Path(path).write_text(template.replace("DATA", text, 1), encoding="utf-8")
    return Path(path)


def write_index(path: str | Path, title: str, pages: Sequence[tuple[str, str]]) -> Path:
    """
    Write a page with links to the pages of several episodes.

    :param path: of the file, in the folder of the pages
    :param title: its heading
    :param pages: name of the file and text of each link
    :return: the path
    """
    heading = html.escape(title)
    links = "\n".join(f'<li><a href="{html.escape(name)}">{html.escape(text)}</a></li>' for name, text in pages)
    Path(path).write_text(
        f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{heading}</title>\n'
        "<style>:root { color-scheme: light dark } body { font: 16px/1.8 system-ui, sans-serif; margin: 24px }</style>\n"
        f"<h1>{heading}</h1>\n<ol>\n{links}\n</ol>\n</html>\n",
        encoding="utf-8",
    )
    return Path(path)


def _scores(episode: Episode) -> dict[str, Any] | None:
    if episode.action_scores is None:
        return None
    finite = episode.action_scores[np.isfinite(episode.action_scores)]
    if episode.score_name == PROBABILITY or not finite.size:  # a network that has diverged values nothing
        low, high = 0.0, 1.0
    else:
        low, high = float(finite.min()), float(finite.max())
    values = [_numbers(scores) for scores in episode.action_scores]
    return dict(title=f"{episode.score_name} of each action, from {low:.3g} to {high:.3g}", values=values, low=low, high=high)


def _panels(episode: Episode) -> list[dict[str, Any]]:
    """Everything that is an image at each step: frames, observations, overlays, matrices."""
    keys = _image_keys(episode)
    panels: list[dict[str, Any]] = []
    if episode.frames is not None and not any(frames_are_observed(episode, key) for key in keys):
        # Frames may be large and have all colours, so they are compressed with losses; what the model saw is not
        panels.append(dict(title="rendered", images=_uris(episode.frames, "webp"), smooth=True))
    steps = range(len(episode))
    observed: dict[str | None, int] = {}  # numbers of panels: a page has each image once
    for key in keys:
        observed[key] = len(panels)
        images = _uris(observed_image(episode, key, step) for step in steps)
        panels.append(dict(title="observed" if key is None else f"observed: {key}", images=images))
    for recorded in episode.recorded_weights:
        panels += _overlays(recorded, observed) if recorded.rows is None else _matrices(recorded)
    return panels


def _overlays(recorded: RecordedWeights, observed: dict[str | None, int]) -> Iterable[dict[str, Any]]:
    """A panel for each image that is attended to and each head, over the images of another panel; none if no image is."""
    if not image_parts(recorded):
        return
    ratios, scale = overlay_ratios(recorded)
    captions = entropy_captions(recorded)
    for (part, _), of_part in zip(image_parts(recorded), ratios, strict=True):
        for head in range(of_part.shape[1]):
            yield dict(
                title=_head_title(recorded, head),
                images=observed[part.key],
                overlays=_uris(_colours(scale, ratios) for ratios in of_part[:, head]),
                captions=[heads[head] for heads in captions],
                scale=_ratio_scale(scale),
            )


def _matrices(recorded: RecordedWeights) -> Iterable[dict[str, Any]]:
    """A panel for each head."""
    scale, rows = weight_scale(recorded), recorded.rows
    assert rows is not None, "the caller has checked"
    axes = f"{rows.label} from left to right, {recorded.parts[0].label} from top to bottom"
    for head in range(recorded.weights.shape[1]):
        yield dict(
            title=_head_title(recorded, head),
            images=_uris(_colours(scale, matrix.T) for matrix in recorded.weights[:, head]),  # transposed, as in figures
            captions=[axes] * len(recorded.weights),
            scale=_scale(scale, even_weight(recorded)),
        )


def _image_keys(episode: Episode) -> list[str | None]:
    """The keys of the images among the observations; ``[None]`` if the observation itself is one."""
    observations = episode.observations if isinstance(episode.observations, dict) else {None: episode.observations}
    return [key for key, array in observations.items() if array.ndim == 4]


def _maps(recorded: RecordedWeights) -> Iterable[dict[str, Any]]:
    """The heat maps of one source, tokens by steps."""
    if recorded.rows is not None:
        return
    scale, names = weight_scale(recorded), token_names(recorded.parts)
    for head in range(recorded.weights.shape[1]):
        weights: np.ndarray = recorded.weights[:, head]
        if recorded.by_step is not None:
            weights = past_map(recorded, head)[:, ::-1]  # the oldest step at the bottom, as in figures
            names = [f"step {step}" for step in reversed(range(weights.shape[1]))]
        named = len(names) <= MAX_NAMES
        yield dict(
            title=f"{_head_title(recorded, head)}, {recorded.token_label} by step",
            image=_uri(_colours(scale, weights.T)),
            names=names if named else [names[0], names[-1]],
            height=max(ROW * len(names), 40) if named else HEIGHT,
            captions=[_largest(step, names) for step in weights],
            scale=_scale(scale, even_weight(recorded)),
        )


def _states(name: str, states: np.ndarray) -> dict[str, Any]:
    """The heat map of a recurrent memory's units, in the colours and the order of ``states_figure``."""
    scale, order = state_scale(states), order_of_units(states)
    largest = float(scale.get_clim()[1] or 0)
    bar = _uri(_colours(scale, np.linspace(-largest, largest, 256)[None]))
    return dict(
        title=f"state: {name}, unit by step",
        image=_uri(_colours(scale, states[:, order].T)),
        names=[f"{states.shape[1]} units"],
        height=HEIGHT,
        captions=[f"root mean square {np.sqrt(np.square(step).mean()):.3g}" for step in states],
        scale=dict(image=bar, ticks=[(0, f"{-largest:.3g}"), (0.5, "0"), (1, f"{largest:.3g}")], even=None),
    )


def _head_title(recorded: RecordedWeights, head: int) -> str:
    return f"{recorded.title}, head {head + 1}" if recorded.weights.shape[1] > 1 else recorded.title


def _largest(weights: np.ndarray, names: Sequence[str]) -> str:
    order = np.argsort(-np.ma.filled(weights, 0), kind="stable")[:N_LARGEST]
    return "largest: " + ", ".join(f"{names[token]} {weights[token]:.3g}" for token in order if weights[token] > 0)


def _scale(scale: ScalarMappable, even: float | None = None) -> dict[str, Any]:
    """A bar of colours from 0 to its largest value."""
    largest = float(scale.get_clim()[1] or 0)
    place = None if even is None else even / largest
    # The text of the even weight would lie over that of an end which is near
    ticks: list[tuple[float, str]] = [(0, "0")] if place is None or place > 0.25 else []
    if place is not None and place < 0.75:
        ticks.append((place, f"even {even:.2g}"))
    ticks.append((1, f"{largest:.3g}"))
    image = _uri(_colours(scale, np.linspace(0, largest, 256)[None]))
    return dict(image=image, ticks=ticks, even=place)


def _ratio_scale(scale: ScalarMappable) -> dict[str, Any]:
    largest = float(scale.get_clim()[1] or 1)
    image = _uri(_colours(scale, np.geomspace(1 / largest, largest, 256)[None]))
    return dict(image=image, ticks=[(0, f"1/{largest:.3g}"), (0.5, "even"), (1, f"{largest:.3g} times")], even=0.5)


def _colours(scale: ScalarMappable, values: np.ndarray) -> np.ndarray:
    return scale.to_rgba(values, bytes=True)


def _numbers(values: np.ndarray) -> list[float | None]:
    """Numbers that JSON has, with six digits; ``None`` for minus infinity, the score of an invalid action."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _uris(images: Iterable[np.ndarray], kind: str = "png") -> list[str]:
    return [_uri(image, kind) for image in images]


def _uri(image: np.ndarray, kind: str = "png") -> str:
    encoded = imageio.imwrite("<bytes>", image, format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
