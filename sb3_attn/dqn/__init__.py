"""Policies for stock DQN."""

from typing import Any

from sb3_attn.common.former_names import find_by_former_name
from sb3_attn.dqn import policies
from sb3_attn.dqn.policies import *

__all__ = policies.__all__


def __getattr__(name: str) -> Any:
    return find_by_former_name(__name__, name)
