"""
See what a model attends to and remembers: recordings, overlays, maps of memories, videos, curves, occlusion saliency (needs
the ``viz`` extra).

Attention shows what a network takes in, not why it acts: see ``docs/guide/seeing.md``.
"""

from sb3_attn.viz.atari_ball import BallAttention, ball_position, measure_ball_attention
from sb3_attn.viz.callback import AttentionFiguresCallback
from sb3_attn.viz.figures import attention_maps, curves_figure, occlusion_figure, overlays_figure, save_figure
from sb3_attn.viz.heat_maps import matrices_figure, tokens_figure
from sb3_attn.viz.occlusion import occlusion_saliency
from sb3_attn.viz.projection import overlay, picture, pixel_map
from sb3_attn.viz.recording import Episode, record_episode
from sb3_attn.viz.sources import SOURCES, find_sources
from sb3_attn.viz.video import attention_video, write_video
from sb3_attn.viz.weights import Attention, ImageGrid, TokenPart, WeightSource

__all__ = [
    "SOURCES",
    "Attention",
    "AttentionFiguresCallback",
    "BallAttention",
    "Episode",
    "ImageGrid",
    "TokenPart",
    "WeightSource",
    "attention_maps",
    "attention_video",
    "ball_position",
    "curves_figure",
    "find_sources",
    "matrices_figure",
    "measure_ball_attention",
    "occlusion_figure",
    "occlusion_saliency",
    "overlay",
    "overlays_figure",
    "picture",
    "pixel_map",
    "record_episode",
    "save_figure",
    "tokens_figure",
    "write_video",
]
