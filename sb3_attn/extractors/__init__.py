"""Features extractors for ``policy_kwargs`` of SB3's algorithms."""

from sb3_attn.extractors.attention import (
    AttentionExtractor,
    HardAttentionExtractor,
    RegionExtractor,
    SelfAttentionExtractor,
    SoftAttentionExtractor,
)
from sb3_attn.extractors.memory import (
    DNCExtractor,
    KeyValueMemoryExtractor,
    MemoryExtractor,
    NTMExtractor,
    TransformerExtractor,
)

__all__ = [
    "AttentionExtractor",
    "DNCExtractor",
    "HardAttentionExtractor",
    "KeyValueMemoryExtractor",
    "MemoryExtractor",
    "NTMExtractor",
    "RegionExtractor",
    "SelfAttentionExtractor",
    "SoftAttentionExtractor",
    "TransformerExtractor",
]
