from sb3_attn.replay.prioritized import PrioritizedSequenceReplayBuffer
from sb3_attn.replay.samples import SequenceReplayBufferSamples
from sb3_attn.replay.sequence_buffer import SequenceReplayBuffer

__all__ = ["PrioritizedSequenceReplayBuffer", "SequenceReplayBuffer", "SequenceReplayBufferSamples"]
