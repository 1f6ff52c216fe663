"""Attention in plain PyTorch: functions and modules that know nothing about reinforcement learning."""

from sb3_attn.attention.modules import (
    SCORES,
    HardAttention,
    MultiHeadSelfAttention,
    SelfAttentionBlock,
    SoftAttention,
)

__all__ = ["SCORES", "HardAttention", "MultiHeadSelfAttention", "SelfAttentionBlock", "SoftAttention"]
