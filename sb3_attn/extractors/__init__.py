"""Features extractors for ``policy_kwargs`` of SB3's algorithms."""

from sb3_attn.extractors.attention import (
    AttentionExtractor,
    HardAttentionExtractor,
    RegionExtractor,
    SelfAttentionExtractor,
    SoftAttentionExtractor,
)

__all__ = [
    "AttentionExtractor",
    "HardAttentionExtractor",
    "RegionExtractor",
    "SelfAttentionExtractor",
    "SoftAttentionExtractor",
]
