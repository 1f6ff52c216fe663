import sys
from typing import Any

import sb3_attn.envs  # noqa: F401  registers the tasks with Gymnasium
from sb3_attn import dqn, extractors, recurrent_dqn
from sb3_attn.dqn import (
    CORE_POLICIES,
    DQNSAPolicy,
    HardAttentionPolicy,
    MemoryPolicy,
    SelfAttentionPolicy,
    SoftAttentionPolicy,
)
from sb3_attn.extractors import (
    CORE_EXTRACTORS,
    HardAttentionExtractor,
    MemoryExtractor,
    SelfAttentionExtractor,
    SoftAttentionExtractor,
)
from sb3_attn.memory import (
    DNCCore,
    GRUCore,
    GTrXLCore,
    IdentityCore,
    KeyValueMemoryCore,
    LSTMCore,
    MemoryCore,
    NTMCore,
    gtrxl,
)
from sb3_attn.memory.external import dnc as dnc_module
from sb3_attn.memory.external import ntm as ntm_module
from sb3_attn.r2d2 import R2D2
from sb3_attn.recurrent_dqn import DARQNPolicy, RecurrentDQN
from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from sb3_attn.version import __version__

__all__ = [
    "R2D2",
    "DARQNPolicy",
    "DNCCore",
    "DQNSAPolicy",
    "GRUCore",
    "GTrXLCore",
    "HardAttentionExtractor",
    "HardAttentionPolicy",
    "IdentityCore",
    "KeyValueMemoryCore",
    "LSTMCore",
    "MemoryCore",
    "MemoryExtractor",
    "MemoryPolicy",
    "NTMCore",
    "PrioritizedSequenceReplayBuffer",
    "RecurrentDQN",
    "SelfAttentionExtractor",
    "SelfAttentionPolicy",
    "SequenceReplayBuffer",
    "SoftAttentionExtractor",
    "SoftAttentionPolicy",
    "__version__",
]
__all__ += list(CORE_EXTRACTORS) + list(CORE_POLICIES)  # the parser of the API pages reads only literals above

# Modules that have moved since, by the names that models of earlier versions know them by
sys.modules["sb3_attn.memory.dnc"] = dnc_module
sys.modules["sb3_attn.memory.gated_transformer"] = gtrxl
sys.modules["sb3_attn.memory.ntm"] = ntm_module


def __getattr__(name: str) -> Any:
    """
    Names derived from the registry of cores, such as ``NTMPolicy``, and those of earlier versions.

    SB3's habit of three names for each policy is one of the latter: ``NTMPolicy`` is ``NTMPolicy``.
    """
    if name == "GatedTransformerCore":
        return GTrXLCore
    for module in (dqn, extractors, recurrent_dqn):
        if name.endswith(("Policy", "Extractor")) and hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
