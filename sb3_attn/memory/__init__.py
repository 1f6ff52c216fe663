from sb3_attn.memory.core import IdentityCore, MemoryCore, WeightsInfo
from sb3_attn.memory.external.dnc import DNCCore
from sb3_attn.memory.external.ntm import NTMCore
from sb3_attn.memory.gtrxl import GTrXLCore
from sb3_attn.memory.key_value import KeyValueMemoryCore
from sb3_attn.memory.registry import CORES, get_core_class, make_core
from sb3_attn.memory.rnn import GRUCore, LSTMCore

__all__ = [
    "CORES",
    "DNCCore",
    "GRUCore",
    "GTrXLCore",
    "IdentityCore",
    "KeyValueMemoryCore",
    "LSTMCore",
    "MemoryCore",
    "NTMCore",
    "WeightsInfo",
    "get_core_class",
    "make_core",
]
