"""
Pictures of what a model attends to and remembers (needs the ``viz`` extra).

The way from a model to a video, and the module of each step::

    model                                       of any of SB3's algorithms; zoo/loading.py loads one from a zip file
      |  find_sources      sources.py           the parts of its network that attend, read or write: WeightSource
      v
    sources
      |  record_episode    recording.py         the model acts, and every step's weights are kept: Episode
      v
    recorded weights       recorded_weights.py  [T, heads, tokens], and what the tokens are: RecordedWeights, TokenPart
      |  pixel_map         projection.py        weights of regions to pixels, observations to RGB, maps over images
      v
    figures                figures.py           curves of entropy and peak, overlays over images, occlusion
      |                    heat_maps.py         tokens over time, past steps over present ones, one matrix for each step
      |  attention_video
      v
    video                  video.py             one frame for each step
    page                   page.py, page.html   the whole episode for a browser, one step at a time

``report.py`` writes all of these for one episode, as ``sb3-attn show`` does; ``callback.py`` draws figures during training.
A recording also has what the model says about each action (``action_scores.py``) and what its recurrent memory holds
(``recurrent_states.py``); ``episode_figures.py`` draws both. Three measurements stand beside this way: ``occlusion.py`` finds
what part of an image an action depends on, with or without attention, ``recall.py`` which earlier observations it depends on,
with any memory, and ``atari_ball.py`` how much of the attention is on the ball.

Attention shows what a network takes in, not why it acts: see ``docs/guide/seeing.md``.
"""

try:
    import imageio  # noqa: F401
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"sb3_attn.viz needs {error.name}, which is not installed; pip install 'sb3_attn[viz]'.", name=error.name
    ) from error

from sb3_attn.viz.atari_ball import BallAttention, ball_position, measure_ball_attention
from sb3_attn.viz.callback import AttentionFiguresCallback
from sb3_attn.viz.episode_figures import states_figure, values_figure
from sb3_attn.viz.figures import (
    attention_maps,
    attention_ratios,
    contact_sheet_figure,
    curves_figure,
    occlusion_figure,
    overlays_figure,
    save_figure,
)
from sb3_attn.viz.heat_maps import matrices_figure, recall_figure, tokens_figure
from sb3_attn.viz.occlusion import occlusion_saliency
from sb3_attn.viz.page import write_index, write_page
from sb3_attn.viz.projection import amount_scale, overlay, pixel_map, ratio_scale, to_rgb
from sb3_attn.viz.recall import recall_density
from sb3_attn.viz.recorded_weights import ImageGrid, RecordedWeights, TokenPart
from sb3_attn.viz.recording import Episode, record_episode
from sb3_attn.viz.report import write_report
from sb3_attn.viz.sources import SOURCES, WeightSource, find_sources
from sb3_attn.viz.video import attention_video, write_video

__all__ = [
    "SOURCES",
    "AttentionFiguresCallback",
    "BallAttention",
    "Episode",
    "ImageGrid",
    "RecordedWeights",
    "TokenPart",
    "WeightSource",
    "amount_scale",
    "attention_maps",
    "attention_ratios",
    "attention_video",
    "ball_position",
    "contact_sheet_figure",
    "curves_figure",
    "find_sources",
    "matrices_figure",
    "measure_ball_attention",
    "occlusion_figure",
    "occlusion_saliency",
    "overlay",
    "overlays_figure",
    "pixel_map",
    "ratio_scale",
    "recall_density",
    "recall_figure",
    "record_episode",
    "save_figure",
    "states_figure",
    "to_rgb",
    "tokens_figure",
    "values_figure",
    "write_index",
    "write_page",
    "write_report",
    "write_video",
]
