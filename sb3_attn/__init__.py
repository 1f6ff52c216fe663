"""Attention and memory for Stable-Baselines3's DQN."""

from typing import Any

import sb3_attn.envs  # noqa: F401  registers the tasks with Gymnasium
from sb3_attn import dqn, extractors
from sb3_attn.common.former_names import alias_former_modules, find_by_former_name
from sb3_attn.dqn.policies import *
from sb3_attn.envs import FinalActionMasks
from sb3_attn.extractors.attention import *
from sb3_attn.extractors.frozen import *
from sb3_attn.extractors.impala import *
from sb3_attn.extractors.memory import *
from sb3_attn.memory import MemoryCore, registry
from sb3_attn.memory.registry import *
from sb3_attn.r2d2 import R2D2
from sb3_attn.recurrent_dqn import (
    DARQNPolicy,
    FrozenFeaturesPolicy,
    MaskableDQN,
    RecurrentDQN,
    RecurrentDQNPolicy,
    SaveCheckpoints,
    SaveOnSignal,
    StepGuard,
)
from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from sb3_attn.version import __version__

__all__ = [
    "R2D2",
    "DARQNPolicy",
    "FinalActionMasks",
    "FrozenFeaturesPolicy",
    "MaskableDQN",
    "MemoryCore",
    "PrioritizedSequenceReplayBuffer",
    "RecurrentDQN",
    "RecurrentDQNPolicy",
    "SaveCheckpoints",
    "SaveOnSignal",
    "SequenceReplayBuffer",
    "StepGuard",
    "__version__",
    *dqn.__all__,
    *extractors.__all__,
    *registry.__all__,
]

alias_former_modules()


def __getattr__(name: str) -> Any:
    return find_by_former_name(__name__, name)
