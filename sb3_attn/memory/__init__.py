from sb3_attn.memory.core import IdentityCore, MemoryCore, make_core
from sb3_attn.memory.dnc import DNCCore
from sb3_attn.memory.gated_transformer import GatedTransformerCore
from sb3_attn.memory.key_value import KeyValueMemoryCore
from sb3_attn.memory.ntm import NTMCore
from sb3_attn.memory.rnn import GRUCore, LSTMCore

#: The cores that ``policy_kwargs=dict(core=...)`` knows by name
CORES: dict[str, type[MemoryCore]] = {
    "dnc": DNCCore,
    "gated_transformer": GatedTransformerCore,
    "gru": GRUCore,
    "identity": IdentityCore,
    "key_value": KeyValueMemoryCore,
    "lstm": LSTMCore,
    "ntm": NTMCore,
}

__all__ = [
    "CORES",
    "DNCCore",
    "GRUCore",
    "GatedTransformerCore",
    "IdentityCore",
    "KeyValueMemoryCore",
    "LSTMCore",
    "MemoryCore",
    "NTMCore",
    "make_core",
]
