import sb3_attn.envs  # noqa: F401  registers the tasks with Gymnasium
from sb3_attn.dqn import (
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
from sb3_attn.extractors import HardAttentionExtractor, SelfAttentionExtractor, SoftAttentionExtractor
from sb3_attn.memory import GRUCore, IdentityCore, LSTMCore, MemoryCore
from sb3_attn.recurrent_dqn import CnnPolicy, DARQNPolicy, MlpPolicy, MultiInputPolicy, RecurrentDQN
from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from sb3_attn.version import __version__

__all__ = [
    "CnnPolicy",
    "DARQNPolicy",
    "DQNSAPolicy",
    "GRUCore",
    "HardAttentionCnnPolicy",
    "HardAttentionExtractor",
    "HardAttentionMlpPolicy",
    "HardAttentionMultiInputPolicy",
    "IdentityCore",
    "LSTMCore",
    "MemoryCore",
    "MlpPolicy",
    "MultiInputPolicy",
    "PrioritizedSequenceReplayBuffer",
    "RecurrentDQN",
    "SelfAttentionCnnPolicy",
    "SelfAttentionExtractor",
    "SelfAttentionMlpPolicy",
    "SelfAttentionMultiInputPolicy",
    "SequenceReplayBuffer",
    "SoftAttentionCnnPolicy",
    "SoftAttentionExtractor",
    "SoftAttentionMlpPolicy",
    "SoftAttentionMultiInputPolicy",
    "__version__",
]
