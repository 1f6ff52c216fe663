from sb3_attn.recurrent_dqn.policies import (
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    RecurrentDQNPolicy,
    RecurrentQNetwork,
)
from sb3_attn.recurrent_dqn.recurrent_dqn import RecurrentDQN

__all__ = ["CnnPolicy", "MlpPolicy", "MultiInputPolicy", "RecurrentDQN", "RecurrentDQNPolicy", "RecurrentQNetwork"]
