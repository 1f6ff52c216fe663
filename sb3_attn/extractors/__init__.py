"""Features extractors for ``policy_kwargs`` of SB3's algorithms."""

from typing import Any

from sb3_attn.extractors import memory
from sb3_attn.extractors.attention import (
    AttentionExtractor,
    HardAttentionExtractor,
    RegionExtractor,
    SelfAttentionExtractor,
    SoftAttentionExtractor,
)
from sb3_attn.extractors.memory import CORE_EXTRACTORS, MemoryExtractor

__all__ = [
    "AttentionExtractor",
    "HardAttentionExtractor",
    "MemoryExtractor",
    "RegionExtractor",
    "SelfAttentionExtractor",
    "SoftAttentionExtractor",
]
__all__ += list(CORE_EXTRACTORS)  # the parser of the API pages reads only literals above


def __getattr__(name: str) -> Any:
    return getattr(memory, name)
