"""Attention in PyTorch alone: functions and modules that know nothing of reinforcement learning."""

from sb3_attn.attention.modules import (
    SCORES,
    HardAttention,
    MultiHeadSelfAttention,
    SelfAttentionBlock,
    SoftAttention,
)

__all__ = ["SCORES", "HardAttention", "MultiHeadSelfAttention", "SelfAttentionBlock", "SoftAttention"]
