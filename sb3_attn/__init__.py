import sb3_attn.envs  # noqa: F401  registers the tasks with Gymnasium
from sb3_attn.memory import GRUCore, IdentityCore, LSTMCore, MemoryCore
from sb3_attn.recurrent_dqn import CnnPolicy, MlpPolicy, MultiInputPolicy, RecurrentDQN
from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from sb3_attn.version import __version__

__all__ = [
    "CnnPolicy",
    "GRUCore",
    "IdentityCore",
    "LSTMCore",
    "MemoryCore",
    "MlpPolicy",
    "MultiInputPolicy",
    "PrioritizedSequenceReplayBuffer",
    "RecurrentDQN",
    "SequenceReplayBuffer",
    "__version__",
]
