"""Features extractors for ``policy_kwargs`` of SB3's algorithms."""

from sb3_attn.extractors.attention import (
    AttentionExtractor,
    HardAttentionExtractor,
    SelfAttentionExtractor,
    SoftAttentionExtractor,
)

__all__ = ["AttentionExtractor", "HardAttentionExtractor", "SelfAttentionExtractor", "SoftAttentionExtractor"]
