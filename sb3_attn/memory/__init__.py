from sb3_attn.memory.core import IdentityCore, MemoryCore, make_core
from sb3_attn.memory.rnn import GRUCore, LSTMCore

#: The cores that ``policy_kwargs=dict(core=...)`` knows by name
CORES: dict[str, type[MemoryCore]] = {
    "gru": GRUCore,
    "identity": IdentityCore,
    "lstm": LSTMCore,
}

__all__ = ["CORES", "GRUCore", "IdentityCore", "LSTMCore", "MemoryCore", "make_core"]
