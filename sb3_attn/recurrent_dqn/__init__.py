from sb3_attn.recurrent_dqn.checkpoints import SaveCheckpoints
from sb3_attn.recurrent_dqn.darqn import DARQNPolicy
from sb3_attn.recurrent_dqn.maskable_dqn import MaskableDQN
from sb3_attn.recurrent_dqn.nan_checks import StepGuard
from sb3_attn.recurrent_dqn.networks import RecurrentQNetwork
from sb3_attn.recurrent_dqn.policies import (
    CnnPolicy,
    FrozenFeaturesPolicy,
    ImpalaPolicy,
    MlpPolicy,
    MultiInputPolicy,
    RecurrentDQNPolicy,
)
from sb3_attn.recurrent_dqn.recurrent_dqn import RecurrentDQN
from sb3_attn.recurrent_dqn.stopping import SaveOnSignal

__all__ = [
    "CnnPolicy",
    "DARQNPolicy",
    "FrozenFeaturesPolicy",
    "ImpalaPolicy",
    "MaskableDQN",
    "MlpPolicy",
    "MultiInputPolicy",
    "RecurrentDQN",
    "RecurrentDQNPolicy",
    "RecurrentQNetwork",
    "SaveCheckpoints",
    "SaveOnSignal",
    "StepGuard",
]
