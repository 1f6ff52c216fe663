"""The files of one recorded episode, as ``sb3-attn show`` writes them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_attn.viz.episode_figures import states_figure, values_figure
from sb3_attn.viz.figures import (
    attention_ratios,
    contact_sheet_figure,
    curves_figure,
    entropy_captions,
    image_parts,
    observed_image,
    occlusion_figure,
    save_figure,
)
from sb3_attn.viz.heat_maps import matrices_figure, tokens_figure
from sb3_attn.viz.occlusion import image_key, occlusion_saliency
from sb3_attn.viz.page import write_page
from sb3_attn.viz.recorded_weights import RecordedWeights
from sb3_attn.viz.recording import Episode
from sb3_attn.viz.video import attention_video, write_video

#: In place of a video's format: no videos and figures
PAGE = "html"


def write_report(
    episode: Episode,
    folder: Path,
    name: str,
    video_format: str = "mp4",
    fps: float | None = None,
    title: str | None = None,
) -> None:
    """
    Write an episode's numbers and figures, a page to step through it, and for each source of weights a video and figures.

    The files are ``<name>.npz``, ``<name>.html``, ``<name>_values.png`` and, with a recurrent memory, ``<name>_states.png``;
    for each source ``<name>_<source>.mp4``, and ``<name>_<source>_tokens.png`` and ``..._curves.png``, or
    ``..._matrices.png`` for one with rows. A source that is not a distribution has no curves.

    :param episode: a recording
    :param folder: an existing folder
    :param name: the beginning of all file names
    :param video_format: ``"mp4"``, ``"gif"``, or ``"html"`` for the page and the weights alone
    :param fps: frames per second; ``None`` takes the environment's
    :param title: of the page; ``None`` takes the name
    """
    episode.save(folder / f"{name}.npz")
    write_page(folder / f"{name}.html", episode, title or name, fps)
    if video_format == PAGE:
        return
    save_figure(values_figure(episode), folder / f"{name}_values.png")
    if episode.recurrent_states:
        save_figure(states_figure(episode), folder / f"{name}_states.png")
    for recorded in episode.recorded_weights:
        stem = f"{name}_{recorded.name}"
        write_video(folder / f"{stem}.{video_format}", attention_video(episode, recorded), fps or episode.fps)
        if recorded.rows is not None:
            save_figure(matrices_figure(recorded), folder / f"{stem}_matrices.png")
            continue
        save_figure(tokens_figure(recorded), folder / f"{stem}_tokens.png")
        if recorded.is_distribution:
            save_figure(curves_figure(recorded), folder / f"{stem}_curves.png")


def summary(episode: Episode) -> list[str]:
    """
    Entropy, peak and sum of every head, as means over the episode.

    :param episode: a recording
    :return: one line for each head of each source that has a single distribution at each step
    """
    lines = []
    for recorded in episode.recorded_weights:
        if recorded.rows is not None or not recorded.is_distribution:
            continue
        even = np.log(np.maximum(recorded.n_reachable, 1)).mean()
        for head in range(recorded.weights.shape[1]):
            entropy, peak, total = (quantity[:, head].mean() for quantity in (recorded.entropy, recorded.peak, recorded.total))
            less = f", sum {total:.2f}" if total < 0.995 else ""  # anything larger is printed as 1.00
            lines.append(
                f"{recorded.name}, head {head + 1}: entropy {entropy:.2f} nats (even: {even:.2f}), peak {peak:.2f}{less}"
            )
    return lines


def write_occlusion(model: BaseAlgorithm, episode: Episode, n_observations: int, path: Path) -> None:
    """
    Write a figure of occlusion saliency, beside the attention to the same image if there is any.

    :param model: the model that was recorded
    :param episode: a recording of it
    :param n_observations: number of observations, evenly spread over the episode
    :param path: of the figure
    :raises ValueError: if the observations have no image
    """
    key = image_key(model.observation_space)[1]
    steps = np.unique(np.linspace(0, len(episode) - 1, n_observations).round().astype(int))
    saliency = [
        occlusion_saliency(model, episode.observation(step), key, state=episode.states[step], action=episode.actions[step])
        for step in steps
    ]
    images = [observed_image(episode, key, step) for step in steps]
    titles, attention = [f"step {step}" for step in steps], _attention(episode.recorded_weights, key)
    if attention is None:
        figure = occlusion_figure(images, saliency, titles=titles)
    else:
        ratios, captions = attention
        figure = occlusion_figure(images, saliency, ratios[steps], titles, [captions[step] for step in steps])
    save_figure(figure, path)


def fits_contact_sheet(episode: Episode, model: BaseAlgorithm) -> bool:
    """
    Whether an episode is a single image, of which a film would be over at once.

    :param episode: a recording
    :param model: the model that was recorded
    """
    return episode.finished and len(episode) == 1 and image_key(model.observation_space)[0]


def write_contact_sheet(model: BaseAlgorithm, episodes: Sequence[Episode], path: Path) -> None:
    """
    Write a figure with the first observation of each episode, and the attention to it if there is any.

    :param model: the model that was recorded
    :param episodes: recordings of it
    :param path: of the figure
    """
    key = image_key(model.observation_space)[1]
    attention = [_attention(episode.recorded_weights, key) for episode in episodes]
    images = [observed_image(episode, key, 0) for episode in episodes]
    titles = [f"action {episode.actions[0]}, reward {episode.rewards[0]:g}" for episode in episodes]
    of_first_steps = [ratios[0] for ratios, _ in filter(None, attention)]
    save_figure(contact_sheet_figure(images, of_first_steps or None, titles), path)


def _attention(recorded_weights: Sequence[RecordedWeights], key: str | None) -> tuple[np.ndarray, list[list[str]]] | None:
    """Ratios ``[T, heads, H, W]`` and captions, of the first source that attends to an image."""
    for recorded in recorded_weights:
        for part, _ in image_parts(recorded):
            if part.key == key:
                return attention_ratios(recorded, part), entropy_captions(recorded)
    return None
