"""Memory cores: recurrent networks whose state is an argument."""

from sb3_attn.memory import registry
from sb3_attn.memory.core import MemoryCore, WeightsInfo
from sb3_attn.memory.registry import *

__all__ = ["MemoryCore", "WeightsInfo", *registry.__all__]
