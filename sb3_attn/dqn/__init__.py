"""Policies for stock DQN."""

from typing import Any

from sb3_attn.dqn import policies
from sb3_attn.dqn.policies import (
    CORE_POLICIES,
    DQNSAPolicy,
    HardAttentionPolicy,
    MemoryPolicy,
    SelfAttentionPolicy,
    SoftAttentionPolicy,
)

__all__ = [
    "DQNSAPolicy",
    "HardAttentionPolicy",
    "MemoryPolicy",
    "SelfAttentionPolicy",
    "SoftAttentionPolicy",
]
__all__ += list(CORE_POLICIES)  # the parser of the API pages reads only literals above


def __getattr__(name: str) -> Any:
    return getattr(policies, name)
