"""Tasks for memory and for visual attention, registered with Gymnasium on import, environment wrappers and a VecEnv."""

import gymnasium as gym

from sb3_attn.envs.masked_tasks import CardOrder, WindingCorridor
from sb3_attn.envs.memory_tasks import AssociativeRecall, MemoryChain, MemoryTask, RememberedSearch, TMaze
from sb3_attn.envs.minigrid_rgb import dynamic_obstacles_rgb
from sb3_attn.envs.remembered_glyph import RememberedGlyph
from sb3_attn.envs.subproc_vec_env import WatchedSubprocVecEnv
from sb3_attn.envs.visual_search import VisualSearch
from sb3_attn.envs.wrappers import FinalActionMasks, FlattenSpaces, PreviousActionReward

__all__ = [
    "AssociativeRecall",
    "CardOrder",
    "FinalActionMasks",
    "FlattenSpaces",
    "MemoryChain",
    "MemoryTask",
    "PreviousActionReward",
    "RememberedGlyph",
    "RememberedSearch",
    "TMaze",
    "VisualSearch",
    "WatchedSubprocVecEnv",
    "WindingCorridor",
    "dynamic_obstacles_rgb",
]

for task in (MemoryChain, TMaze, AssociativeRecall, RememberedSearch, RememberedGlyph, CardOrder, WindingCorridor):
    gym.register(id=f"{task.__name__}-v0", entry_point=f"{task.__module__}:{task.__name__}")

# Variants have ids of their own, for the reason given below
gym.register(
    id="AssociativeRecall8-v0", entry_point=f"{AssociativeRecall.__module__}:{AssociativeRecall.__name__}", kwargs={"pairs": 8}
)
visual_search = f"{VisualSearch.__module__}:{VisualSearch.__name__}"
gym.register(id="VisualSearch-v0", entry_point=visual_search)
gym.register(id="VisualSearchCue-v0", entry_point=visual_search, kwargs={"cued": True})

# POPGym registers RepeatPrevious only with k = 4, 32 and 64. RL Zoo passes the `env_kwargs` of a YAML file neither to its
# evaluation environments nor to record-video, so another k needs an id of its own. POPGym stays optional: only the entry point
# imports it.
gym.register(id="popgym-RepeatPrevious8-v0", entry_point="sb3_attn.envs.optional:repeat_previous")

# MiniGrid stays optional too: only the entry point imports it
gym.register(id="MiniGridRGB-DynamicObstacles-v0", entry_point="sb3_attn.envs.minigrid_rgb:dynamic_obstacles_rgb")
