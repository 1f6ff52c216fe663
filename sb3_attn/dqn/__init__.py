"""Policies for stock DQN."""

from sb3_attn.dqn.policies import (
    DQNSAPolicy,
    HardAttentionCnnPolicy,
    HardAttentionMlpPolicy,
    HardAttentionMultiInputPolicy,
    SelfAttentionCnnPolicy,
    SelfAttentionMlpPolicy,
    SelfAttentionMultiInputPolicy,
    SoftAttentionCnnPolicy,
    SoftAttentionMlpPolicy,
    SoftAttentionMultiInputPolicy,
)

__all__ = [
    "DQNSAPolicy",
    "HardAttentionCnnPolicy",
    "HardAttentionMlpPolicy",
    "HardAttentionMultiInputPolicy",
    "SelfAttentionCnnPolicy",
    "SelfAttentionMlpPolicy",
    "SelfAttentionMultiInputPolicy",
    "SoftAttentionCnnPolicy",
    "SoftAttentionMlpPolicy",
    "SoftAttentionMultiInputPolicy",
]
